"""Reads PyTorch's pickles (`.bin`, `.ckpt`, `.pt`, `.pth`) with torch, and runs nothing that they hold."""

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import WeightsError
from fyp_jax.convert.wrappers import find_state_dict
from fyp_jax.errors import reason

TRAINER_MODULES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
"""Modules whose objects stand beside the weights in checkpoints of trainers, as those of Stable Diffusion."""


class TrainerObject:
    """Stands for an object of a trainer, which is not needed: no code of the trainer is imported or run."""

    def __new__(cls, *_: object) -> "TrainerObject":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def open_pickle(file: Path) -> dict[str, LazyArray]:
    """Arrays by their names, not read yet where the file is a zip archive.

    Objects of trainers beside the weights are passed over. Raises WeightsError where torch is not installed,
    the file is damaged, or a pickle names anything else than tensors.
    """
    torch = _torch(file)
    state_dict = find_state_dict(_load(torch, file), torch.Tensor, file)
    return {name: _lazy_array(torch, file, name, tensor) for name, tensor in state_dict.items()}


def read_pickle(file: Path) -> Any:
    """What a file of `torch.save` holds, with LazyArrays for tensors, also for those in dicts of the outer
    dict.

    Raises as `open_pickle`.
    """
    torch = _torch(file)

    def plain(name: str, value: Any, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            return _lazy_array(torch, file, name, value)
        if depth and isinstance(value, dict):
            return {key: plain(str(key), inner, depth - 1) for key, inner in value.items()}
        return value

    return plain("its tensor", _load(torch, file), 2)


def _torch(file: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{file}: reading it needs torch; run pip install -e '.[torch]', or convert it to safetensors"
        ) from error
    return torch


def _load(torch: Any, file: Path) -> Any:
    def load() -> Any:
        with warnings.catch_warnings(action="ignore"):  # of damaged files, which are told below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))

    try:
        try:
            return load()
        except pickle.UnpicklingError:
            with _trainer_objects(torch, file):
                return load()
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to call for
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors; refused ({reason(error)})"
        ) from error


def _lazy_array(torch: Any, file: Path, name: str, tensor: Any) -> LazyArray:
    # numpy cannot read torch's narrow dtypes. They become float32 without a change of value.
    detached = tensor.detach()
    narrow = tensor.dtype.is_floating_point and tensor.dtype.itemsize < 4
    try:
        dtype = np.float32 if narrow else torch.empty(0, dtype=tensor.dtype).numpy().dtype
        if tensor.layout != torch.strided:
            raise TypeError(str(tensor.layout))
    except TypeError as error:
        raise WeightsError(f"{file}: {name} is of a kind that is not read ({reason(error)})") from error
    read = lambda: (detached.float() if narrow else detached).numpy()  # noqa: E731
    return LazyArray(tuple(tensor.shape), np.dtype(dtype), read)


@contextlib.contextmanager
def _trainer_objects(torch: Any, file: Path) -> Iterator[None]:
    """While it is open, `torch.load` makes TrainerObjects of the objects of trainers."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # an old file, which is no zip archive, or a damaged one: torch.load will say it
        names = []
    allowed = [(TrainerObject, name) for name in names if name.startswith(TRAINER_MODULES)]
    with torch.serialization.safe_globals(allowed):
        yield
