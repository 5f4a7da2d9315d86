"""Writes PyTorch's `.bin` and `.pth` files one array at a time and without torch.

The file format is that of `torch.save` since PyTorch 1.6: an uncompressed zip archive with one record for a
pickled dictionary of tensors, and one record for the bytes of each tensor. `torch.save` itself needs all
tensors in memory.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from fyp_jax.convert.lazy import LazyArray, stream

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
ALIGNMENT = 64
"""Records of tensor bytes start at multiples of this many bytes, as with `torch.save`, so that files can be
memory-mapped."""
PADDING_ID = b"FB"
LOCAL_HEADER = 30
EXTRA_HEADER = 4


def write_torch(
    file: Path, arrays: Mapping[str, LazyArray], on_array: Callable[[str, int], Any] | None = None
) -> dict[str, int]:
    """Write a state dict for `torch.load(weights_only=True)`, and return the CRC-32 of each array by name.

    `on_array` is called with the name and the number of bytes of each array after it is written. Raises
    OSError.
    """
    checksums: dict[str, int] = {}
    with file.open("wb") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:

        def record(name: str, data: bytes | memoryview) -> int:
            info = _aligned(out, f"archive/{name}")
            with archive.open(info, "w") as entry:
                entry.write(data)
            return info.CRC

        record("data.pkl", _pickled(arrays))
        record("byteorder", b"little")

        def write(name: str, data: memoryview) -> None:
            checksums[name] = record(f"data/{len(checksums)}", data)
            if on_array is not None:
                on_array(name, len(data))

        stream(list(arrays.items()), write)
        record("version", b"3\n")
    return checksums


def _aligned(out: BinaryIO, name: str) -> zipfile.ZipInfo:
    """Metadata of a new record at the end of the file; a fixed date makes equal arrays give equal files."""
    entry = zipfile.ZipInfo(name)
    start = out.tell() + LOCAL_HEADER + len(name) + EXTRA_HEADER
    padding = -start % ALIGNMENT
    entry.extra = PADDING_ID + padding.to_bytes(2, "little") + bytes(padding)
    return entry


def _pickled(arrays: Mapping[str, LazyArray]) -> bytes:
    """Pickle of {name: tensor}. Each tensor is a call of `_rebuild_tensor_v2` with the key of its storage."""
    items = b"".join(
        _text(name) + _tensor(number, array) for number, (name, array) in enumerate(arrays.items())
    )
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def _tensor(number: int, array: LazyArray) -> bytes:
    storage = _tuple(
        _text("storage"),
        _global("torch", STORAGES[array.dtype]),
        _text(str(number)),
        _text("cpu"),
        _number(array.size),
    )
    strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(len(array.shape))]
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = _tuple(
        storage + pickle.BINPERSID,
        _number(0),  # offset of the tensor in its storage
        _tuple(*map(_number, array.shape)),
        _tuple(*map(_number, strides)),
        pickle.NEWFALSE,  # requires_grad
        hooks,
    )
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + len(data).to_bytes(4, "little") + data


def _number(number: int) -> bytes:
    data = pickle.encode_long(number)
    return pickle.LONG1 + len(data).to_bytes(1, "little") + data
