"""Reads PyTorch weight files into named arrays: safetensors without torch, pickles with it."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.recognise import describe_content, describe_deepspeed
from fyp_jax.convert.safetensors_files import WeightsError, is_safetensors, open_safetensors
from fyp_jax.convert.torch_load import open_pickle
from fyp_jax.convert.weight_writer import shard_files
from fyp_jax.convert.wrappers import strip_prefixes

log = logging.getLogger(__name__)

__all__ = [
    "WEIGHT_SUFFIXES",
    "WeightsError",
    "find_weights",
    "has_weights",
    "open_weights",
    "read_weights",
    "variants",
    "weight_formats",
]

# The file names of diffusers and transformers; the first that exists is read.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".json")


class WeightFormat(NamedTuple):
    """A format in which repositories hold the weights of a model. Each format holds the complete model."""

    suffix: str
    variant: str | None = None
    """A second set of weights beside the usual one: fp16 and bf16 are rounded, non_ema is not averaged."""

    @property
    def _middle(self) -> str:
        return "" if self.variant is None else f".{self.variant}"

    @property
    def files(self) -> list[str]:
        """Names of the file that is read: the only weight file, or the index of its shards."""
        index = f"{self.suffix}.index{self._middle}.json"
        return [name for stem in STEMS for name in (stem + self._middle + self.suffix, stem + index)]

    @property
    def shards(self) -> list[str]:
        """Name patterns of the shards that an index lists."""
        return [f"{stem}{self._middle}-?????-of-?????{self.suffix}" for stem in STEMS]


def weight_formats(variant: str | None = None) -> tuple[WeightFormat, ...]:
    """The formats of one variant, in the order in which they are looked for."""
    return tuple(WeightFormat(suffix, variant) for suffix in (".safetensors", ".bin"))


def variants(folder: Path) -> list[str]:
    """The variants whose weights are in the folder of one model."""
    stems = "|".join(STEMS)
    names = re.compile(
        rf"(?:{stems})\.([\w-]+?)(?:-\d{{5}}-of-\d{{5}})?\.(?:safetensors|bin)"
        rf"|(?:{stems})\.(?:safetensors|bin)\.index\.([\w-]+)\.json"
    )
    found = (names.fullmatch(file.name) for file in folder.glob("*"))
    return sorted({match[1] or match[2] for match in found if match is not None})


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weight file in the folder of one model, or the index of its shards.

    `variant` chooses among several sets of weights; a model without that variant has its usual ones taken.
    Safetensors come before `.bin`. Where a variant alone is there, it is taken; a warning says which
    weights were taken wherever that is not plain. Raises WeightsError where there are none, or where the
    variants that are there leave it open.
    """
    found = _find(folder, variant)
    if found is not None:
        if variant is not None:
            log.warning("%s: the variant %s is taken (%s)", folder, variant, found.name)
        return found
    there = variants(folder)
    found = None if variant is None else _find(folder, None)
    if found is not None:
        log.warning("%s: has no variant %s; %s is taken", folder, variant, found.name)
        return found
    if variant is None and len(there) == 1:
        found = _find(folder, there[0])
        if found is not None:
            log.warning("%s: only %s is there; it is taken, as with variant=%s", folder, found.name, there[0])
            return found
    if there:
        flags = trees.list_names([f"variant={name}" for name in there])
        asked = "" if variant is None else f" and no variant {variant}"
        raise WeightsError(f"{folder}: no weights without a variant{asked}; give {flags}")
    what = describe_deepspeed(folder)
    if what is not None:
        raise WeightsError(f"{folder}: {what}")
    suffixes = " ".join(weight_format.suffix for weight_format in weight_formats())
    raise WeightsError(f"{folder}: no weights (looked for {' '.join(STEMS)} with {suffixes})")


def has_weights(folder: Path, variant: str | None = None) -> bool:
    """Whether the folder of one model has weights of just this variant (None: without a variant)."""
    return _find(folder, variant) is not None


def _find(folder: Path, variant: str | None) -> Path | None:
    files = (folder / name for weight_format in weight_formats(variant) for name in weight_format.files)
    return next((file for file in files if file.is_file()), None)


def open_weights(file: Path) -> dict[str, LazyArray]:
    """Arrays by their PyTorch names, not read yet, without what trainers put around them (`wrappers`).

    `file` is a `.safetensors`, `.bin`, `.ckpt`, `.pt` or `.pth` file, or the `.json` index of shards beside
    it. An old `.bin` file, which is not a zip archive, is read into memory at once. Raises WeightsError where
    the file is missing or damaged, where a pickle holds more than tensors, or where torch is needed and not
    installed.
    """
    return strip_prefixes(_open(file), file)


def _open(file: Path) -> dict[str, LazyArray]:
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    what = describe_content(file)
    if what is not None:
        raise WeightsError(f"{file}: {what}")
    if file.suffix == ".json":
        return {name: array for shard in shard_files(file) for name, array in _open(shard).items()}
    if file.suffix == ".safetensors" or (file.suffix in PICKLE_SUFFIXES and is_safetensors(file)):
        return open_safetensors(file)[0]
    if file.suffix in PICKLE_SUFFIXES:
        return open_pickle(file)
    raise WeightsError(f"{file}: not a weight file ({', '.join(WEIGHT_SUFFIXES)})")


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Arrays by their PyTorch names. Floats of any width become float32; other dtypes are kept.

    Raises as `open_weights`.
    """
    return {name: array.astype(np.float32, name).read() for name, array in open_weights(file).items()}
