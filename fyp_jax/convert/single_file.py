"""A Stable Diffusion 1.x or 2.x in one `.safetensors` or `.ckpt` file, as the original code writes it.

model.diffusion_model.*               the UNet, and its moving average in model_ema.*
first_stage_model.*                   the VAE
cond_stage_model.transformer.*        the text encoder of 1.x (CLIP)
cond_stage_model.model.*              the text encoder of 2.x (OpenCLIP)

The file has no configs, which follow from its arrays (`single_file_configs`), and no tokenizer.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fyp_jax import trees
from fyp_jax.convert import ldm_names, single_file_configs
from fyp_jax.convert.encoder_names import present_text_names
from fyp_jax.convert.folders import find_folder, find_tokenizer
from fyp_jax.convert.hub import find_file
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.pipeline_folder import (
    PARTS_WITH_WEIGHTS,
    PipelineFolder,
    PipelineOptions,
)
from fyp_jax.convert.recognise import describe_arrays
from fyp_jax.convert.safetensors_files import WeightsError, is_safetensors, open_safetensors
from fyp_jax.convert.torch_files import open_weights
from fyp_jax.convert.weight_writer import ExportPlan
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS

log = logging.getLogger(__name__)

OPEN_CLIP_PREFIX = "cond_stage_model.model."
PREFIXES: dict[str, tuple[str, ...]] = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.transformer.", OPEN_CLIP_PREFIX),
}
EMA_PREFIX = "model_ema."
VARIANTS = ("ema", "non_ema")
TOKENIZER = "openai/clip-vit-large-patch14"
"""Hub id of CLIP's tokenizer. OpenCLIP has the same vocabulary."""
SIDES = {"epsilon": 64, "v_prediction": 96}
"""Height and width of the latents that Stable Diffusion 2.x was trained with, by what it predicts."""


class SingleFile(PipelineFolder):
    """A pipeline in one file, which is read part by part, as a `PipelineFolder` is."""

    def __init__(self, name: str, parts: tuple[str, ...] = ENCODERS, options: PipelineOptions | None = None):
        """Open the file `name`, which may be OWNER/NAME/FILE of the Hub; no array is read yet.

        Raises WeightsError where the file is missing, damaged, or something else than a whole Stable
        Diffusion, and UserError where `options` do not suit it.
        """
        self.name = name
        self.path = find_file(name)
        self.options = options or PipelineOptions()
        if self.options.variant not in (None, *VARIANTS):
            raise UserError(
                f"{name}: variant={self.options.variant} is of pipeline folders; a single file has "
                f"{' and '.join(VARIANTS)}"
            )
        self._arrays = open_weights(self.path)
        self._metadata = open_safetensors(self.path)[1] if is_safetensors(self.path) else {}
        self._check_parts()
        self.is_sd2 = any(key.startswith(OPEN_CLIP_PREFIX) for key in self._arrays)
        self._opened: dict[str, dict[str, LazyArray]] = {}

    def download(self, parts: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        """Nothing: a single file has all parts."""

    def _check_parts(self) -> None:
        """Raise UserError unless the file is a whole Stable Diffusion; warn of what is left out of it."""
        names = list(self._arrays)
        missing = [x for x in PARTS_WITH_WEIGHTS if not any(key.startswith(PREFIXES[x]) for key in names)]
        what = None
        if missing or any(".label_emb." in key for key in names):
            what = describe_arrays(names)
        if what is not None:
            raise WeightsError(f"{self.name}: {what}")
        if missing:
            raise WeightsError(
                f"{self.name}: not a whole Stable Diffusion 1.x or 2.x; it lacks the "
                f"{' and the '.join(part.replace('_', ' ') for part in missing)} "
                f"({', '.join(PREFIXES[part][0] + '*' for part in missing)})"
            )
        # Names without a dot are buffers of the original code, such as alphas_cumprod, and marks.
        known = (*(prefix for prefixes in PREFIXES.values() for prefix in prefixes), EMA_PREFIX)
        unused = [key for key in names if "." in key and not key.startswith(known)]
        if unused:
            listed = trees.list_names(unused)
            log.warning("%s: %d arrays are of no part and left out (%s)", self.name, len(unused), listed)
        has_ema = any(key.startswith(EMA_PREFIX) for key in names)
        if self.options.variant == "ema" and not has_ema:
            raise UserError(f"{self.name}: has no moving average ({EMA_PREFIX}*); leave variant=ema out")
        if has_ema:
            taken = self.options.variant or "non_ema"
            (other,) = set(VARIANTS) - {taken}
            log.warning("%s: the UNet's variant %s is taken, not variant=%s", self.name, taken, other)

    def json(self, part: str) -> dict[str, Any]:
        """The configuration of a part, as its config.json would have it. Raises UserError where the arrays
        show none."""
        what = self._what(part)
        if part == "vae":
            return single_file_configs.vae_json(self.lazy_state_dict("vae"), what)
        if part == "text_encoder":
            return single_file_configs.text_json(self.lazy_state_dict(part), self.is_sd2, what)
        predicts = self._prediction_type()
        if part == "scheduler":
            return single_file_configs.scheduler_json(self._arrays, predicts, self.name)
        side = SIDES.get(predicts, 64) if self.is_sd2 else 64
        latents = self.json("vae")["latent_channels"]
        return single_file_configs.unet_json(self.lazy_state_dict(part), latents, self.is_sd2, side, what)

    def _prediction_type(self) -> str:
        if self.options.prediction_type is not None:
            return self.options.prediction_type
        config = self.path.with_suffix(".yaml")
        said = single_file_configs.find_prediction_type(self._arrays, self._metadata, config)
        if said is None and self.is_sd2:
            raise UserError(
                f"{self.name}: a Stable Diffusion 2.x predicts noise (512-base) or v (768), and the file "
                "does not say which; give prediction_type=epsilon or prediction_type=v_prediction"
            )
        return said or "epsilon"

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer: of `options`, or `tokenizer` beside the file, or from the Hub.

        Raises UserError where there is none.
        """
        beside = self.path.parent / "tokenizer"
        if self.options.tokenizer is not None:
            return find_tokenizer(self.options.tokenizer)
        if beside.is_dir():
            return beside
        try:
            return find_folder(TOKENIZER, ())
        except UserError as error:
            raise UserError(
                f"{self.name}: a single file has no tokenizer, and {TOKENIZER} is neither in the Hub's cache "
                "nor can it be downloaded; give tokenizer=FOLDER with CLIP's vocab.json and merges.txt, or "
                f"put it beside the file, as {beside}"
            ) from error

    @property
    def padding(self) -> int | None:
        """Id of the padding token: OpenCLIP's for 2.x, the tokenizer's own for 1.x."""
        return single_file_configs.OPEN_CLIP_PADDING if self.is_sd2 else None

    def export_plan(
        self,
        replaced: Mapping[str, Mapping[str, LazyArray]],
        config_changes: Mapping[str, Mapping[str, Any]],
        suffix: str = ".safetensors",
    ) -> ExportPlan:
        """The contents of a pipeline folder with these weights, as `PipelineFolder.export_plan`."""
        plan = super().export_plan(replaced, config_changes, suffix)
        if self.padding is None:
            return plan
        # CLIP's tokenizer pads with the end token, which a folder of 2.x must not do.
        encoders = self.latent_encoders()
        pad = {"pad_token": encoders.tokenizer.id_to_token(self.padding)}
        changed = {}
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            file = self.tokenizer_folder / name
            if file.is_file():
                changed[f"tokenizer/{name}"] = json.dumps(json.loads(file.read_text()) | pad, indent=2)
        changed.setdefault("tokenizer/tokenizer_config.json", json.dumps(pad))
        return plan._replace(text_files={**plan.text_files, **changed})

    def _open(self, part: str) -> dict[str, LazyArray]:
        """The arrays of a part under diffusers' names. Raises TreeMismatch for a name that has no place."""
        if part not in self._opened:
            try:
                self._opened[part] = self._convert(part)
            except trees.TreeMismatch as error:
                raise trees.TreeMismatch(f"{self.name}, {error}") from error
        return self._opened[part]

    def _convert(self, part: str) -> dict[str, LazyArray]:
        if part == "text_encoder" and self.is_sd2:
            return ldm_names.text_encoder_from_open_clip(self._part(OPEN_CLIP_PREFIX))
        arrays = self._part(PREFIXES[part][0])
        if part == "text_encoder":
            return present_text_names(arrays)
        if part == "vae":
            training = ("loss.", EMA_PREFIX)  # of the VAE's own training
            return ldm_names.vae_from_ldm(
                {key: x for key, x in arrays.items() if not key.startswith(training)}
            )
        if self.options.variant == "ema":
            averages = {key: self._arrays.get(ldm_names.ema_name(PREFIXES[part][0] + key)) for key in arrays}
            lost = [key for key, array in averages.items() if array is None]
            if lost:
                raise trees.TreeMismatch(f"{EMA_PREFIX}*: {len(lost)} missing ({trees.list_names(lost)})")
            arrays = {key: array for key, array in averages.items() if array is not None}
        return ldm_names.unet_from_ldm(arrays)

    def _part(self, prefix: str) -> dict[str, LazyArray]:
        return {
            key.removeprefix(prefix): array for key, array in self._arrays.items() if key.startswith(prefix)
        }
