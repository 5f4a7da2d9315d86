"""Checksums of a step, which are written with it: bytes that changed later are noticed when it is read.

The item `checksums` holds a CRC-32 of each piece of each array, as its shards were when it was saved, a
CRC-32 of the items in JSON, and the loss. It has a CRC-32 of its own.
"""

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from isal import isal_zlib  # the numbers of zlib, ten times as fast
from jax.experimental import multihost_utils

from fyp_jax.checkpoints.manager import CheckpointError, Damaged
from fyp_jax.convert.lazy import LazyArray, as_bytes
from fyp_jax.trees import list_names

ITEM = "checksums"
CHANGED, NOT_FINITE = 1, 2
PROBLEMS = {CHANGED: "is not what was saved", NOT_FINITE: "holds a number that is not finite"}
"""What may be wrong with an array."""

Bounds = tuple[tuple[int, int], ...]
"""First index and the one after the last, of each axis."""


class ArrayChecksum(NamedTuple):
    """What was saved of an array."""

    shape: tuple[int, ...]
    dtype: str
    pieces: dict[Bounds, int]
    """The CRC-32 of the bytes (C order) of each piece; the pieces make up the array."""


class Checksums(NamedTuple):
    """What was saved of a step."""

    arrays: dict[str, ArrayChecksum]
    """By path: `train/trainable/...`, `inference/unet/...`."""
    items: dict[str, int]
    """The CRC-32 of each item in JSON."""
    loss: float | None

    def to_json(self) -> dict[str, Any]:
        """The content of the item `checksums`."""
        arrays = {
            path: [x.shape, x.dtype, [[bounds, crc] for bounds, crc in x.pieces.items()]]
            for path, x in self.arrays.items()
        }
        body = {"arrays": arrays, "items": self.items, "loss": self.loss}
        return {**body, "crc32": json_crc32(body)}

    def of_item(self, item: str) -> dict[str, ArrayChecksum]:
        """The checksums of the arrays of an item, by their paths in it."""
        start = f"{item}/"
        return {path.removeprefix(start): x for path, x in self.arrays.items() if path.startswith(start)}

    def check_item(self, name: str, value: Any) -> None:
        """Raise Damaged where an item in JSON is not what was saved."""
        if self.items.get(name) != json_crc32(value):
            raise Damaged(f"{name} is not what was saved")


def read_checksums(step_folder: epath.Path) -> Checksums | None:
    """The checksums of a step; None for a step that was saved without. Raises Damaged."""
    folder = step_folder / ITEM
    if not folder.is_dir():
        return None
    try:
        body: dict[str, Any] = json.loads((folder / "metadata").read_text())
        if body.pop("crc32") != json_crc32(body):
            raise ValueError("its own checksum differs")
        arrays = {
            path: ArrayChecksum(
                tuple(shape),
                dtype,
                {tuple((start, stop) for start, stop in bounds): crc for bounds, crc in pieces},
            )
            for path, (shape, dtype, pieces) in body["arrays"].items()
        }
        return Checksums(arrays, body["items"], body["loss"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"its checksums cannot be read ({error})") from error


def array_checksums(arrays: Mapping[str, Any]) -> dict[str, ArrayChecksum]:
    """Checksums of arrays by path. Each process computes those of its own shards, and all get all of them.

    Raises Damaged, in all processes, where an array holds a number that is not finite.
    """
    pieces = [(path, *piece) for path, x in sorted(arrays.items()) for piece in _pieces(x)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_measure, [data for _, _, data in pieces]))
    rows = np.array(found, np.uint32).reshape(-1, 2)
    if jax.process_count() > 1:  # the rows of other processes' pieces are 0
        rows = np.asarray(multihost_utils.process_allgather(rows)).sum(axis=0, dtype=np.uint32)
    bad = {path for (path, _, _), (_, not_finite) in zip(pieces, rows.tolist(), strict=True) if not_finite}
    _raise_problems({path: NOT_FINITE for path in sorted(bad)})
    checksums = {path: ArrayChecksum(tuple(x.shape), str(x.dtype), {}) for path, x in arrays.items()}
    for (path, bounds, _), (crc, _) in zip(pieces, rows.tolist(), strict=True):
        checksums[path].pieces[bounds] = crc
    return checksums


def check_arrays(arrays: Mapping[str, Any], checksums: Mapping[str, ArrayChecksum] | None) -> None:
    """Raise Damaged where an array is not what was saved, or holds a number that is not finite.

    The arrays are whole: LazyArrays, or arrays of this process alone. Each process checks a part of them, and
    all raise the same error. Without checksums, arrays are only checked to be finite.
    """
    paths, count = list(arrays), jax.process_count()
    ours = paths[jax.process_index() :: count]
    codes = np.zeros(len(paths), np.uint32)
    error: Exception | None = None
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            saved = [None if checksums is None else checksums.get(path) for path in ours]
            found = pool.map(check_array, [arrays[path] for path in ours], saved)
            codes[jax.process_index() :: count] = list(found)
    except Damaged as unreadable:
        error = unreadable
    if count > 1:
        codes = np.asarray(multihost_utils.process_allgather(codes)).max(axis=0)
        if any_process(error is not None) and error is None:
            error = Damaged("another process cannot read it")
    if error is not None:
        raise error
    _raise_problems(dict(zip(paths, codes.tolist(), strict=True)))


def check_array(array: Any, saved: ArrayChecksum | None) -> int:
    """0 for a whole array that is what was saved, or else CHANGED or NOT_FINITE."""
    data = np.asarray(array.read() if isinstance(array, LazyArray) else array)
    if saved is not None:
        if (data.shape, data.dtype) != (saved.shape, jnp.dtype(saved.dtype)):
            return CHANGED
        for bounds, crc in saved.pieces.items():
            if isal_zlib.crc32(as_bytes(np.asarray(data[tuple(slice(*x) for x in bounds)]))) != crc:
                return CHANGED
    return 0 if is_finite(data) else NOT_FINITE


def checked(array: LazyArray, saved: ArrayChecksum | None, path: str) -> LazyArray:
    """The same array; reading it raises Damaged where it is not what was saved, or not finite."""

    def read() -> np.ndarray:
        data = array.read()
        _raise_problems({path: check_array(data, saved)})
        return data

    return LazyArray(array.shape, array.dtype, read)


def is_finite(data: np.ndarray) -> bool:
    """Whether all numbers of an array are finite."""
    if not jnp.issubdtype(data.dtype, jnp.floating):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum is not finite if one of its terms is not, and takes a third of the time of `isfinite`.
        return bool(np.isfinite(data.sum(dtype=np.float32)) or np.isfinite(data).all())


def check_finite(arrays: Mapping[str, Any], what: str) -> None:
    """Raise CheckpointError, which opens with `what`, where an array holds a number that is not finite."""
    try:
        _raise_problems({path: 0 if is_finite(np.asarray(x)) else NOT_FINITE for path, x in arrays.items()})
    except Damaged as error:
        raise CheckpointError(f"{what}: {error}") from error


def any_process(fact: bool) -> bool:
    """Whether a fact holds in one of the processes; all of them call it."""
    if jax.process_count() == 1:
        return fact
    return bool(np.asarray(multihost_utils.process_allgather(np.array(fact))).any())


def json_crc32(value: Any) -> int:
    """CRC-32 of a value in JSON, however it is formatted."""
    return isal_zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _raise_problems(codes: Mapping[str, int]) -> None:
    for code, text in PROBLEMS.items():
        if paths := [path for path, found in codes.items() if found == code]:
            raise Damaged(f"{list_names(paths)} {text}")


def _measure(data: Any | None) -> tuple[int, int]:
    """CRC-32 of a piece, and 1 where it is not finite; zeros for a piece of another process."""
    if data is None:
        return 0, 0
    array = np.asarray(data)
    return isal_zlib.crc32(as_bytes(array)), int(not is_finite(array))


def _pieces(array: Any) -> Iterator[tuple[Bounds, Any | None]]:
    """The different shards of an array: where each is, and its data where this process is to measure it.

    All processes get the same pieces in the same order; one process has the data of each.
    """
    if not isinstance(array, jax.Array):
        yield tuple((0, size) for size in np.shape(array)), array if jax.process_index() == 0 else None
        return
    owners: dict[Bounds, Any] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        bounds = tuple(x.indices(size)[:2] for x, size in zip(index, array.shape, strict=True))
        owners[bounds] = min(owners.get(bounds, device), device, key=lambda x: x.id)
    local = {shard.device: shard.data for shard in array.addressable_shards}
    for bounds, device in sorted(owners.items(), key=lambda item: item[0]):
        yield bounds, local.get(device)
