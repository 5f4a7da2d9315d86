"""Reads PyTorch weight files into named arrays: safetensors without torch, `.bin` and `.pth` with it."""

import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.weight_writer import shard_files
from fyp_jax.errors import reason

__all__ = [
    "WEIGHT_FORMATS",
    "WEIGHT_SUFFIXES",
    "WeightsError",
    "find_weights",
    "open_weights",
    "read_weights",
]

# The file names of diffusers and transformers; the first that exists is read.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

PICKLE_SUFFIXES = (".bin", ".pth", ".pt")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES, ".json")


class WeightFormat(NamedTuple):
    """A format in which repositories hold the weights of a model. Each format holds the complete model."""

    suffix: str
    variant: str = ""

    @property
    def files(self) -> list[str]:
        """Names of the file that is read: the only weight file, or the index of its shards."""
        index = f"{self.suffix}.index{self.variant}.json"
        return [name for stem in STEMS for name in (stem + self.variant + self.suffix, stem + index)]

    @property
    def shards(self) -> list[str]:
        """Name patterns of the shards that an index lists."""
        return [f"{stem}{self.variant}-?????-of-?????{self.suffix}" for stem in STEMS]


WEIGHT_FORMATS = (
    WeightFormat(".safetensors"),
    WeightFormat(".bin"),
    WeightFormat(".safetensors", ".fp16"),
    WeightFormat(".bin", ".fp16"),
)


def find_weights(folder: Path) -> Path:
    """The weight file in the folder of one model, or the index of its shards.

    Float32 comes before fp16, then safetensors before `.bin`. Raises WeightsError where there is none.
    """
    for weight_format in WEIGHT_FORMATS:
        for name in weight_format.files:
            if (folder / name).is_file():
                return folder / name
    suffixes = (weight_format.variant + weight_format.suffix for weight_format in WEIGHT_FORMATS)
    raise WeightsError(f"{folder}: no weights (looked for {' '.join(STEMS)} with {' '.join(suffixes)})")


def open_weights(file: Path) -> dict[str, LazyArray]:
    """Arrays by their PyTorch names, not read yet.

    `file` is a `.safetensors`, `.bin` or `.pth` file, or the `.json` index of shards beside it. An old `.bin`
    file, which is not a zip archive, is read into memory at once. Raises WeightsError where the file is
    missing or damaged, where a pickle holds more than tensors, or where torch is needed and not installed.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    if file.suffix == ".json":
        return {name: array for shard in shard_files(file) for name, array in open_weights(shard).items()}
    if file.suffix == ".safetensors":
        return open_safetensors(file)[0]
    if file.suffix in PICKLE_SUFFIXES:
        return _open_pickle(file)
    raise WeightsError(f"{file}: not a weight file (.safetensors, .bin, .pth)")


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Arrays by their PyTorch names. Floats of any width become float32; other dtypes are kept.

    Raises as `open_weights`.
    """
    return {name: array.astype(np.float32, name).read() for name, array in open_weights(file).items()}


def read_pickle(file: Path) -> Any:
    """What a file of `torch.save` holds, with LazyArrays for tensors, also for those in dicts of the outer
    dict.

    Nothing that a pickle names is run. Raises WeightsError where the file is damaged, holds more than tensors
    and plain values, or where torch is needed and not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{file}: reading it needs torch; run pip install -e '.[torch]', or convert it to safetensors"
        ) from error
    try:
        with warnings.catch_warnings(action="ignore"):  # of damaged files, which are told below
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors; refused ({reason(error)})"
        ) from error

    def lazy_array(tensor: Any) -> LazyArray:
        # numpy cannot read torch's bfloat16. Both narrow dtypes become float32 without a change of value.
        detached = tensor.detach()
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        dtype = np.float32 if narrow else torch.empty(0, dtype=tensor.dtype).numpy().dtype
        read = lambda: (detached.float() if narrow else detached).numpy()  # noqa: E731
        return LazyArray(tuple(tensor.shape), np.dtype(dtype), read)

    def plain(value: Any, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            return lazy_array(value)
        if depth and isinstance(value, dict):
            return {key: plain(inner, depth - 1) for key, inner in value.items()}
        return value

    return plain(content, 2)


def _open_pickle(file: Path) -> dict[str, LazyArray]:
    content = read_pickle(file)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, LazyArray) for name, value in content.items()
    ):
        raise WeightsError(f"{file}: not a state dict of named tensors")
    return content
