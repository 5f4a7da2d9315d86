"""LoRA files (Hu et al. 2021): read, matched with the layers of a model, and added to its weights.

A layer's weight W becomes W + scale * alpha / rank * up @ down. For a convolution, `down` has the kernel;
LoCon's Tucker form (LyCORIS) has the kernel in `mid`, between two 1x1 convolutions. The layers of a file are
those of the image model; the temporal layers of the video UNet are in no such file and stay as they are.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.lora_alpha import AdapterConfig, adapter_configs
from fyp_jax.convert.lora_keys import READ, LoraKey, parse_key, refuse_other_kinds
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.style_files import LORA_NAMES, find_style_file
from fyp_jax.convert.style_specs import LoraSpec
from fyp_jax.convert.torch_files import open_weights
from fyp_jax.convert.torch_key_mapping import TorchArray, torch_layout
from fyp_jax.models.unet import TEMPORAL
from fyp_jax.trees import list_names

PARTS = ("unet", "text_encoder")
GROUPS = ("UNet attention", "UNet convolution", "text encoder")
"""The columns of the table of matched layers. What is in no transformer of the UNet is in the second."""


@dataclasses.dataclass
class LoraLayer:
    """The arrays of one layer in a file."""

    arrays: dict[str, LazyArray] = dataclasses.field(default_factory=dict)
    """By role: down, up, mid, alpha."""
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    """Their names in the file, by role."""


class Lora(NamedTuple):
    """A LoRA file that was opened; its arrays are not read yet."""

    spec: LoraSpec
    file: Path
    layers: dict[tuple[str, str], LoraLayer]
    """By part and module (`LoraKey`)."""
    configs: dict[str, AdapterConfig]
    """By part: what diffusers notes about an adapter in the file's metadata."""


class MatchedLora(NamedTuple):
    """What was added to a model: a row of the table, and a part of a clip's record."""

    file: str
    scale: float
    ranks: list[int]
    """All ranks of its layers, in order."""
    layers: dict[str, int]
    """Number of layers by group (`GROUPS`)."""
    crc32: int

    def row(self) -> list[str]:
        """The cells of the table."""
        rank = " to ".join(str(rank) for rank in sorted({self.ranks[0], self.ranks[-1]}))
        return [Path(self.file).name, f"{self.scale:g}", rank, *(str(self.layers[x]) for x in GROUPS)]


def open_lora(spec: LoraSpec) -> Lora:
    """Open a LoRA: the names of its arrays are understood, or refused.

    Raises UserError where the file is missing or damaged, is of another kind, or has a name that is none of a
    LoRA.
    """
    file = find_style_file(spec.name, LORA_NAMES)
    arrays, metadata = open_safetensors(file) if file.suffix == ".safetensors" else (open_weights(file), {})
    refuse_other_kinds(arrays, str(file))
    parsed = {key: parse_key(key) for key in arrays}
    if unknown := [key for key, found in parsed.items() if found is None]:
        raise WeightsError(f"{file}: these are no names of a LoRA: {list_names(unknown)}; {READ}")
    layers: dict[tuple[str, str], LoraLayer] = {}
    for key, found in parsed.items():
        assert isinstance(found, LoraKey)
        layer = layers.setdefault((found.part, found.module), LoraLayer())
        if found.role in layer.keys:
            raise WeightsError(f"{file}: has two arrays for one ({key} and {layer.keys[found.role]})")
        layer.arrays[found.role], layer.keys[found.role] = arrays[key], key
    if not layers:
        raise WeightsError(f"{file}: holds no arrays")
    halves = [
        key
        for layer in layers.values()
        if not {"down", "up"} <= layer.keys.keys()
        for key in layer.keys.values()
    ]
    if halves:
        raise WeightsError(f"{file}: has layers without their `up` or `down` ({list_names(halves)})")
    return Lora(spec, file, layers, adapter_configs(metadata, str(file)))


def merge_lora(params: Mapping[str, Any], lora: Lora) -> tuple[dict[str, Any], MatchedLora]:
    """The parameters of "unet" and "text_encoder" (and others, unchanged) with a LoRA added, and what was
    matched.

    Changed arrays become float32 NumPy arrays. Raises UserError, with names and shapes, where the file has a
    layer that the model does not have, or of another shape, or numbers that are not finite.
    """
    targets = {(part, name): x for part in PARTS for name, x in _targets(params[part]).items()}
    unmatched = [
        key for path, layer in lora.layers.items() if path not in targets for key in layer.keys.values()
    ]
    if unmatched:
        raise WeightsError(
            f"{lora.file}: these belong to no layer of the model: {list_names(unmatched)}; a LoRA fits the "
            "Stable Diffusion that it was trained for (1.x or 2.x)"
        )
    deltas = {path: _Delta(layer, targets[path]) for path, layer in lora.layers.items()}
    if wrong := [problem for delta in deltas.values() if (problem := delta.problem())]:
        raise WeightsError(f"{lora.file}: shapes do not fit: {list_names(wrong)}")
    flat: dict[str, dict[str, Any]] = {part: dict(flatten_dict(params[part], sep="/")) for part in PARTS}
    layers: dict[str, int] = dict.fromkeys(GROUPS, 0)
    crc = 0
    for (part, module), delta in deltas.items():
        target, alpha = targets[part, module], delta.alpha(lora.configs.get(part))
        with np.errstate(over="ignore", invalid="ignore"):  # told below
            change = delta.read() * np.float32(lora.spec.scale * alpha / delta.rank)
        if not np.isfinite(change).all():
            raise WeightsError(f"{lora.file}: {delta.key} holds numbers that are not finite, or too large")
        crc = zlib.crc32(np.ascontiguousarray(change).view(np.uint8).data, crc)
        weight = np.asarray(flat[part][target.path], np.float32)
        flat[part][target.path] = weight + change.transpose(np.argsort(target.axes))
        layers[_group(part, target.path)] += 1
    ranks = sorted({delta.rank for delta in deltas.values()})
    merged = {part: unflatten_dict(tree, sep="/") for part, tree in flat.items()}
    return {**params, **merged}, MatchedLora(str(lora.file.absolute()), lora.spec.scale, ranks, layers, crc)


def lora_table(matched: Sequence[MatchedLora]) -> list[str]:
    """The lines of a table that says what was matched."""
    rows = [["LoRA", "scale", "rank", *GROUPS], *(one.row() for one in matched)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


class _Delta(NamedTuple):
    """The change of one layer's weight."""

    layer: LoraLayer
    target: TorchArray

    @property
    def key(self) -> str:
        return self.layer.keys["down"]

    @property
    def rank(self) -> int:
        return self.layer.arrays["down"].shape[0]

    def problem(self) -> str | None:
        """What does not fit: names and shapes, or None."""
        arrays = self.layer.arrays
        down, up, mid = arrays["down"].shape, arrays["up"].shape, None
        if "mid" in arrays:
            mid = arrays["mid"].shape
        fits = all(len(shape) in (2, 4) for shape in (down, up)) and up[2:] in ((), (1, 1)) and 0 not in down
        if fits and mid is not None:
            fits = len(mid) == 4 and down[2:] in ((), (1, 1)) and mid[:2] == (up[1], down[0])
        elif fits:
            fits = up[1] == down[0]
        if fits:
            whole = (up[0], down[1], *(down[2:] if mid is None else mid[2:]))
            fits = _without_1x1(whole) == _without_1x1(self.target.shape)
        fits = fits and ("alpha" not in arrays or arrays["alpha"].size == 1)
        if fits and all(
            jnp.issubdtype(x.dtype, jnp.floating) for role, x in arrays.items() if role != "alpha"
        ):
            return None
        found = ", ".join(f"{self.layer.keys[role]} {x.dtype}{list(x.shape)}" for role, x in arrays.items())
        return f"{found} for a layer of {list(self.target.shape)}"

    def alpha(self, config: AdapterConfig | None) -> float:
        """The file's alpha, or that of its metadata, or else the rank, which leaves the product as it is."""
        if "alpha" in self.layer.arrays:
            return float(self.layer.arrays["alpha"].read().reshape(()))
        module = self.target.path.replace("/", "_").removesuffix("_kernel")
        return float(self.rank) if config is None else config.alpha(module, self.rank)

    def read(self) -> np.ndarray:
        """up @ down in float32, with PyTorch's axes and the layer's shape."""
        down, up = self._read("down"), self._read("up")
        up = up.reshape(up.shape[:2])
        if "mid" in self.layer.arrays:
            mid = np.einsum("op,pqxy->oqxy", up, self._read("mid"), optimize=True)
            whole = np.einsum("oqxy,qi->oixy", mid, down.reshape(down.shape[:2]), optimize=True)
        else:
            whole = up @ down.reshape(len(down), -1)
        return whole.reshape(self.target.shape)

    def _read(self, role: str) -> np.ndarray:
        return np.asarray(
            self.layer.arrays[role].astype(np.float32, self.layer.keys[role]).read(), np.float32
        )


def _targets(params: Mapping[str, Any]) -> dict[str, TorchArray]:
    """The layers of an image model that a LoRA can change, by their module's path with underscores."""
    layout = torch_layout(params)
    return {
        name.removesuffix(".weight").replace(".", "_"): entry
        for name, entry in layout.items()
        if entry.path.endswith("kernel") and not TEMPORAL.search(entry.path)
    }


def _group(part: str, path: str) -> str:
    if part == "text_encoder":
        return GROUPS[2]
    return GROUPS[0] if "attentions" in path else GROUPS[1]


def _without_1x1(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else tuple(shape)
