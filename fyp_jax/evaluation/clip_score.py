"""CLIP, text and image encoder, for scores of clips. It is read from a folder of transformers or the Hub."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt8
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule

from fyp_jax.convert.pipeline_folder import find_folder
from fyp_jax.convert.torch_files import find_weights, read_weights
from fyp_jax.convert.torch_key_mapping import params_from_torch
from fyp_jax.errors import UserError
from fyp_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class ClipModel:
    """CLIP (Radford et al. 2021), text and vision, without its parameters. It is never trained here."""

    module: FlaxCLIPModule
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessor

    @classmethod
    def build(cls, config: Mapping[str, Any], folder: Path) -> "ClipModel":
        """The model of a `config.json`, with the vocabulary and the image settings of its folder.

        Raises UserError where the folder lacks these files, or where the configuration is not CLIP's.
        """
        try:
            sizes = CLIPConfig(**config)
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            processor = CLIPImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: not a CLIP model that can be opened ({error})") from error
        return cls(FlaxCLIPModule(sizes), tokenizer, processor)

    def shapes(self) -> dict[str, Any]:
        """Names and shapes of the parameters; no parameter is computed."""
        side = self.module.config.vision_config.image_size
        ids, pixels = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, side, side, 3))
        init = functools.partial(self.module.init, jax.random.key(0))
        return dict(jax.eval_shape(init, ids, pixels, ids, ids)["params"])

    def embed(
        self, params: Params, prompt: str, video: UInt8[np.ndarray, "f h w 3"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "f d"]]:
        """Embeddings of a text and of each frame, of Euclidean length 1. A text that is too long is cut.

        Where `params` are on several devices (`replicate_params`), each of them embeds some of the frames.
        """
        length = self.module.config.text_config.max_position_embeddings
        # Texts are filled up, so that all of them run one program; the model does not see the filling.
        text = self.tokenizer(
            prompt, max_length=length, truncation=True, padding="max_length", return_tensors="np"
        )
        pixels = self.processor(list(video), return_tensors="np", input_data_format="channels_last")
        images = np.asarray(pixels["pixel_values"]).transpose(0, 2, 3, 1)
        sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
        if isinstance(sharding, NamedSharding):
            more = -len(images) % sharding.mesh.size
            images = np.concatenate([images, np.repeat(images[-1:], more, axis=0)])
            images = jax.device_put(images, NamedSharding(sharding.mesh, P(sharding.mesh.axis_names)))
        ids, mask = jnp.asarray(text["input_ids"]), jnp.asarray(text["attention_mask"])
        text_embeds, image_embeds = self._embed(params, ids, mask, images)
        return np.asarray(text_embeds[0]), np.asarray(image_embeds)[: len(video)]

    @functools.partial(jax.jit, static_argnames=("self",))
    def _embed(self, params: Params, ids: Array, mask: Array, images: Array) -> tuple[Array, Array]:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        out: Any = self.module.apply({"params": params}, ids, images, mask, positions)
        return out.text_embeds, out.image_embeds


def replicate_params(params: Params, devices: Sequence[Any]) -> Params:
    """Parameters whole on each of the devices, for `ClipModel.embed`."""
    return jax.device_put(params, NamedSharding(Mesh(np.array(devices), ("data",)), P()))


def load_clip(name: str) -> tuple[ClipModel, dict[str, Any]]:
    """The model of a folder or a Hub id ("openai/clip-vit-base-patch32"), and its float32 parameters.

    Raises UserError where there is no such model, or its weights do not fit its config.
    """
    folder = find_folder(name, (".",))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: not a CLIP folder ({error})") from error
    if not isinstance(config, dict) or "vision_config" not in config:
        raise UserError(f"{name}: its config.json does not describe a CLIP model of text and images")
    clip = ClipModel.build(config, folder)
    state_dict = read_weights(find_weights(folder))
    # Old files also hold the position ids, which are constants.
    weights = {key: x for key, x in state_dict.items() if not key.endswith("position_ids")}
    return clip, params_from_torch(weights, clip.shapes(), name)
