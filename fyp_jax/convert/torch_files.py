"""PyTorch weight files into named numpy arrays: safetensors without torch, `.bin` and `.pth` with it."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.weight_writer import shard_files
from fyp_jax.errors import reason

__all__ = ["WEIGHT_FORMATS", "WEIGHT_SUFFIXES", "WeightsError", "find_weights", "open_weights", "read_weights"]

# As diffusers and transformers name them; what stands first is taken.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

PICKLES = (".bin", ".pth", ".pt")
WEIGHT_SUFFIXES = (".safetensors", *PICKLES, ".json")


class WeightFormat(NamedTuple):
    """A form in which repositories hold a model's weights; a model is whole in one form or another."""

    ending: str
    variant: str = ""

    @property
    def files(self) -> list[str]:
        """The names of what can be read: one file, or the index of its shards."""
        index = f"{self.ending}.index{self.variant}.json"
        return [name for stem in STEMS for name in (stem + self.variant + self.ending, stem + index)]

    @property
    def shards(self) -> list[str]:
        """Patterns of what an index names."""
        return [f"{stem}{self.variant}-?????-of-?????{self.ending}" for stem in STEMS]


WEIGHT_FORMATS = (WeightFormat(".safetensors"), WeightFormat(".bin"), WeightFormat(".safetensors", ".fp16"), WeightFormat(".bin", ".fp16"))


def find_weights(folder: Path) -> Path:
    """The weight file of one model's folder, or the index of its shards; safetensors and fp32 first."""
    for form in WEIGHT_FORMATS:
        for name in form.files:
            if (folder / name).is_file():
                return folder / name
    endings = (form.variant + form.ending for form in WEIGHT_FORMATS)
    raise WeightsError(f"{folder}: no weights (looked for {' '.join(STEMS)} with {' '.join(endings)})")


def open_weights(file: Path) -> dict[str, LazyArray]:
    """Arrays by PyTorch's names, not yet read (those of an old `.bin`, which is no zip, are in memory).

    `file` is a `.safetensors`, a `.bin` or `.pth`, or the `.json` index of shards beside it. Raises
    WeightsError: no such file, damaged, a pickle that holds more than tensors, torch not installed.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    if file.suffix == ".json":
        return {name: array for shard in shard_files(file) for name, array in open_weights(shard).items()}
    if file.suffix == ".safetensors":
        return open_safetensors(file)[0]
    if file.suffix in PICKLES:
        return _open_pickle(file)
    raise WeightsError(f"{file}: not a weight file (.safetensors, .bin, .pth)")


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Arrays by PyTorch's names; floats of any width become float32, the rest is kept.

    Raises as `open_weights`.
    """
    return {name: array.astype(np.float32, name).read() for name, array in open_weights(file).items()}


def _open_pickle(file: Path) -> dict[str, LazyArray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{file}: reading it needs torch: pip install -e '.[torch]', or convert it to safetensors"
        ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors; refused ({reason(error)})"
        ) from error
    named = tensors.values() if isinstance(tensors, dict) else [None]
    if not all(isinstance(value, torch.Tensor) for value in named):
        raise WeightsError(f"{file}: not a state dict of named tensors")

    def stored(tensor: Any) -> LazyArray:
        # numpy knows no bfloat16 of torch's; every width becomes float32 without a change of value.
        detached = tensor.detach()
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        dtype = np.float32 if narrow else torch.empty(0, dtype=tensor.dtype).numpy().dtype
        read = lambda: (detached.float() if narrow else detached).numpy()  # noqa: E731
        return LazyArray(tuple(tensor.shape), np.dtype(dtype), read)

    return {name: stored(tensor) for name, tensor in tensors.items()}
