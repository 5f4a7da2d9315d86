"""Arrays that stay in their files until they are needed, so that no model is in memory as a whole."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax.errors import UserError
from fyp_jax.models.unet_config import UNet3DConfig


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """Shape and dtype of an array, and a function that reads it; each call reads it again."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def transpose(self, axes: Sequence[int] | np.ndarray) -> "LazyArray":
        """The array with its axes in another order, as `numpy.transpose`."""
        shape = tuple(self.shape[axis] for axis in axes)
        return LazyArray(shape, self.dtype, lambda: self.read().transpose(axes))

    def astype(self, dtype: DTypeLike, name: str) -> "LazyArray":
        """The array in another dtype if it holds floats; integers keep their dtype.

        Reading raises UserError, with `name`, where a finite number becomes infinite.
        """
        dtype = jnp.dtype(dtype)
        if dtype == self.dtype or not jnp.issubdtype(self.dtype, jnp.floating):
            return self

        def read() -> np.ndarray:
            array = self.read()
            with np.errstate(over="ignore"):
                cast = array.astype(dtype)
            if not np.all(np.isfinite(cast) | ~np.isfinite(array)):
                raise UserError(f"{name}: holds numbers that are too large for {dtype.name}")
            return cast

        return LazyArray(self.shape, dtype, read)


class Weights(NamedTuple):
    """The weights that sampling needs, not read yet."""

    config: UNet3DConfig
    models: dict[str, Any]
    """Nested LazyArrays of "unet" and "pose_encoder", and of "vae" and "text_encoder" if a stage trained
    them."""
    provenance: dict[str, Any]
    """Where the weights are from; `step` is the checkpoint's step."""


def to_lazy(array: Any) -> LazyArray:
    """An array of numpy or JAX as a LazyArray."""
    return LazyArray(tuple(array.shape), np.dtype(array.dtype), lambda: np.asarray(array))


def to_lazy_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested arrays as nested LazyArrays."""
    return unflatten_dict(
        {path: to_lazy(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}, sep="/"
    )


def read_tree(tree: Mapping[str, Any], dtype: DTypeLike | None = None) -> dict[str, Any]:
    """Read nested LazyArrays into memory; floats become `dtype`, if one is given."""
    flat: dict[str, Any] = flatten_dict(tree, sep="/")
    cast = flat if dtype is None else {path: leaf.astype(dtype, path) for path, leaf in flat.items()}
    return unflatten_dict({path: leaf.read() for path, leaf in cast.items()}, sep="/")


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order. They are copied only where the array has another order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def stream(arrays: Sequence[tuple[str, LazyArray]], use: Callable[[str, memoryview], Any]) -> None:
    """Call `use` with the name and the bytes (C order) of each array, one after the other.

    Meanwhile the next array is read. At most two arrays are in memory: this one and the next. The bytes that
    `use` gets are overwritten after it returns.
    """
    # All arrays use one buffer: to allocate memory for each takes as long as the copy itself.
    buffer = np.empty(max((array.nbytes for _, array in arrays), default=0), np.uint8)
    reads = [array.read for _, array in arrays]
    with ThreadPoolExecutor(1) as reader:
        pending = [reader.submit(read) for read in reads[:1]]
        for i, (name, _) in enumerate(arrays):
            array = pending.pop().result()
            part = buffer[: array.nbytes]
            np.copyto(part.view(array.dtype).reshape(array.shape), array)
            del array  # before the next array is in memory
            pending += [reader.submit(read) for read in reads[i + 1 : i + 2]]
            use(name, part.data)
