"""Takes off what trainers put around a state dict: dictionaries, and prefixes of names."""

from collections.abc import Mapping
from typing import Any, TypeVar

from fyp_jax import trees
from fyp_jax.convert.safetensors_files import WeightsError

ENTRIES = ("state_dict", "model", "module", "model_state_dict")
"""Entries of a trainer's dictionary that hold the state dict: of Lightning, of many scripts, of DeepSpeed."""
MAX_DEPTH = 3
COMPILED = "_orig_mod."
"""Part of the names of a module that went through `torch.compile`."""
PARALLEL = "module."
"""Start of all names of a model that went through `DataParallel` or `DistributedDataParallel`."""

T = TypeVar("T")


def find_state_dict(loaded: Any, kind: type, file: object) -> dict[str, Any]:
    """The dictionary of named tensors (objects of type `kind`) in what a file holds.

    Raises WeightsError where there is none, or more than one.
    """
    for _ in range(MAX_DEPTH):
        if not isinstance(loaded, Mapping):
            break
        if all(isinstance(name, str) and isinstance(x, kind) for name, x in loaded.items()):
            return dict(loaded)
        inner = [name for name in ENTRIES if isinstance(loaded.get(name), Mapping)]
        if len(inner) > 1:
            raise WeightsError(f"{file}: holds several state dicts ({', '.join(inner)}); save one alone")
        if not inner:
            break
        loaded = loaded[inner[0]]
    keys = [str(name)[:40] for name in loaded] if isinstance(loaded, Mapping) else [type(loaded).__name__]
    raise WeightsError(f"{file}: not a state dict of named tensors (it holds {trees.list_names(keys)})")


def strip_prefixes(state_dict: Mapping[str, T], file: object) -> dict[str, T]:
    """The same arrays without the prefixes of `torch.compile` and of data parallelism.

    Raises WeightsError where two arrays would get the same name.
    """
    stripped = {name: name.replace(COMPILED, "") for name in state_dict}
    while stripped and all(name.startswith(PARALLEL) for name in stripped.values()):
        stripped = {name: short.removeprefix(PARALLEL) for name, short in stripped.items()}
    if len(set(stripped.values())) < len(stripped):
        raise WeightsError(f"{file}: holds arrays of the same name with and without {COMPILED}")
    return {stripped[name]: x for name, x in state_dict.items()}
