"""Reads and writes safetensors one array at a time. The library's own `save_file` needs a whole model in
memory.

The file format: 8 bytes with the length of the header, a header in JSON, and the bytes of the arrays.
"""

import functools
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from fyp_jax.convert.lazy import LazyArray, as_bytes, stream
from fyp_jax.errors import UserError, reason

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


MANIFEST = "conversion.json"
"""A file in every folder that was exported, with a CRC-32 of each array. A folder without it is never
overwritten."""
LEVELS_OF_A_FOLDER = 3
"""From a weight file, its folder's `conversion.json` is at most so many levels up."""


class WeightsError(UserError):
    """A weight file is missing, damaged or refused; the message starts with its path."""


def write_safetensors(
    file: Path,
    arrays: Mapping[str, LazyArray],
    metadata: Mapping[str, str],
    on_array: Callable[[str, int], Any] | None = None,
) -> dict[str, int]:
    """Write the arrays one after the other, and return the CRC-32 of each array's bytes by name.

    `on_array` is called with the name and the number of bytes of each array after it is written. Raises
    OSError.
    """
    # The widest dtype comes first, as in the library, so that every array starts at a multiple of its width.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    checksums: dict[str, int] = {}
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)

        def write(name: str, data: memoryview) -> None:
            checksums[name] = zlib.crc32(data)
            out.write(data)
            if on_array is not None:
                on_array(name, len(data))

        stream(ordered, write)
    return checksums


def open_safetensors(file: Path) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The arrays of a file, not read yet, and its metadata.

    Raises WeightsError where the file is missing, truncated or in another format. Reading an array raises it
    where the array is not what `conversion.json` says.
    """
    if not file.is_file():
        raise WeightsError(f"{file}: no such file")
    try:
        opened = safe_open(file, framework="np")
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        crcs = _manifest_crcs(file)
        arrays = {
            name: LazyArray(
                tuple(part.get_shape()),
                DTYPES[part.get_dtype()],
                functools.partial(_read, opened, name, file, crcs.get(name)),
            )
            for name, part in slices.items()
        }
        return arrays, dict(opened.metadata() or {})
    except KeyError as error:
        raise WeightsError(f"{file}: holds arrays of the dtype {error}, which is not read") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file}: not a complete safetensors file ({reason(error)})") from error


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: a length, and a header in JSON."""
    with file.open("rb") as opened:
        start = opened.read(9)
    return start[8:] == b"{" and 0 < int.from_bytes(start[:8], "little") <= file.stat().st_size


def _read(opened: Any, name: str, file: Path, crc: int | None) -> np.ndarray:
    array = opened.get_tensor(name)
    if crc is not None and zlib.crc32(as_bytes(array)) != crc:
        raise WeightsError(
            f"{file}: {name} is not what was written (its CRC-32 is another than in {MANIFEST}); copy or "
            f"export the folder again; without {MANIFEST} nothing is compared"
        )
    return array


def _manifest_crcs(file: Path) -> dict[str, int]:
    """The CRC-32 of each array of a file, where its folder was exported; else nothing."""
    for folder in list(file.absolute().parents)[:LEVELS_OF_A_FOLDER]:
        try:
            files = json.loads((folder / MANIFEST).read_text())["files"]
            arrays = files[file.absolute().relative_to(folder).as_posix()]
            return {name: int(entry["crc32"]) for name, entry in arrays.items()}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
    return {}
