"""PyTorch weight files into named numpy arrays: safetensors without torch, `.bin` and `.pth` with it."""

import json
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from fyp_jax.errors import UserError, reason

# As diffusers and transformers name them; what stands first is taken.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


class Form(NamedTuple):
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


FORMS = (Form(".safetensors"), Form(".bin"), Form(".safetensors", ".fp16"), Form(".bin", ".fp16"))


class WeightsError(UserError):
    """A weight file that is missing, damaged or refused; the message opens with its path."""


def find_weights(folder: Path) -> Path:
    """The weight file of one model's folder, or the index of its shards; safetensors and fp32 first."""
    for form in FORMS:
        for name in form.files:
            if (folder / name).is_file():
                return folder / name
    endings = (form.variant + form.ending for form in FORMS)
    raise WeightsError(f"{folder}: no weights (looked for {' '.join(STEMS)} with {' '.join(endings)})")


def read_weights(file: Path) -> dict[str, np.ndarray]:
    """Arrays by PyTorch's names; floats of any width become float32, the rest is kept.

    `file` is a `.safetensors`, a `.bin` or `.pth`, or the `.json` index of shards beside it. Raises
    WeightsError: no such file, damaged, a pickle that holds more than tensors, torch not installed.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    if file.suffix == ".json":
        try:
            names = set(json.loads(file.read_text())["weight_map"].values())
            shards = sorted(file.parent / name for name in names)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{file}: not an index of shards ({error!r})") from error
        return {name: value for shard in shards for name, value in read_weights(shard).items()}
    if file.suffix == ".safetensors":
        arrays = _read_safetensors(file)
    elif file.suffix in {".bin", ".pth", ".pt"}:
        arrays = _read_pickle(file)
    else:
        raise WeightsError(f"{file}: not a weight file (.safetensors, .bin, .pth)")
    return {name: _float32(value) for name, value in arrays.items()}


def _float32(value: np.ndarray) -> np.ndarray:
    is_float = value.dtype.kind == "f" or value.dtype.name.startswith("bfloat")
    return value.astype(np.float32, copy=False) if is_float else value


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{file}: not a whole safetensors file ({error})") from error


def _read_pickle(file: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{file}: reading it needs torch: pip install -e '.[torch]', or convert it to safetensors"
        ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"{file}: damaged, or holds more than tensors; refused ({reason(error)})"
        ) from error
    named = tensors.values() if isinstance(tensors, dict) else [None]
    if not all(isinstance(value, torch.Tensor) for value in named):
        raise WeightsError(f"{file}: not a state dict of named tensors")
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
        for name, tensor in tensors.items()
    }
