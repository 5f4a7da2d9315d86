"""Poses in .npz files whose arrays hold pickled objects, read without running what a pickle holds.

A pickle can name any function, and `pickle.load` calls it. Here names stand for themselves: four of NumPy's
(two of them under their old and new module) build stand-ins of our own, and any other name is refused. No
function of NumPy or of another module is called before the values are known to be plain.
"""

import io
import json
import math
import pickle
import zipfile
from typing import Any, NamedTuple

import numpy as np

from fyp_jax.data.ingest.items import ItemError
from fyp_jax.errors import reason

MAX_BYTES = 2**26
"""Largest array of a pose file, unpacked: a person takes less than 2 kB."""
_ARRAY = "arr_0"  # the name that np.savez gives to an array without one
_NUMBERS = frozenset(f"{kind}{size}" for kind in "fiu" for size in (2, 4, 8)) | {"i1", "u1", "b1"}


class _Name(NamedTuple):
    """A name in a pickle. A tuple has no attributes to set, so a pickle cannot change it."""

    name: str

    def __call__(self, *args: Any) -> "_Array | _Type | float":
        if self.name == "dtype" and isinstance(args[0], str):
            return _Type(args[0])
        if self.name == "_reconstruct":
            return _Array()
        if self.name == "scalar" and isinstance(args[0], _Type) and isinstance(args[1], bytes):
            return float(_numbers(args[0], args[1], ()))
        raise pickle.UnpicklingError(f"calls {self.name} in a way that NumPy does not")


class _Type:
    """Stand-in for a dtype: its code, such as f4, and its byte order."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "|", "=": "<"}[state[1]]


class _Array:
    """Stand-in for an array: shape, type and content, as the pickle sets them."""

    shape: tuple[int, ...] = ()
    content: Any = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, self.fortran, self.content = state


_NAMES = {
    **{
        (f"numpy.{core}.multiarray", name): name
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
}


class _Unpickler(pickle._Unpickler):  # the one in Python: that in C reserves memory as the pickle says
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which is not run")
        return _Name(_NAMES[module, name])

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"holds the extension {code}, which is not run")


def is_npz(data: bytes) -> bool:
    """Whether the content of a file is that of a .npz file, which is a zip."""
    return data.startswith(b"PK\x03\x04")


def npz_keypoints(data: bytes) -> str:
    """Return the people of a .npz file as JSON, (people, 17, 3) numbers: x and y in pixels, confidence.

    The array is one of numbers, or one of dictionaries with `keypoints`, as mmpose gives them. Raises
    ItemError for other content, and for a pickle that holds anything but arrays and plain values.
    """
    try:
        people = _read_people(data)
        return json.dumps(np.asarray(people, np.float32).tolist())
    except ItemError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ItemError(f"its pose file is not an .npz of keypoints ({reason(error)})") from error


def _read_people(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        name = names[0] if len(names) == 1 else f"{_ARRAY}.npy"
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise ItemError(f"its pose file has more than {MAX_BYTES} bytes")
        with archive.open(name) as member:
            file = io.BytesIO(member.read(MAX_BYTES))
    version = np.lib.format.read_magic(file)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    shape, _, dtype = read_header(file)
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize > MAX_BYTES:
            raise ItemError(f"its pose file says that it holds an array of {shape}")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    array = _Unpickler(file).load()
    people = array.content if isinstance(array, _Array) else None
    if not isinstance(people, list) or len(people) != math.prod(shape):
        raise ItemError("its pose file holds something else than people")
    return [_person(person) for person in people]


def _person(person: Any) -> np.ndarray:
    keypoints = person.get("keypoints") if isinstance(person, dict) else None
    if not isinstance(keypoints, _Array) or tuple(keypoints.shape) != (17, 3):
        raise ItemError("its pose file has a person without 17x3 keypoints")
    return _numbers(keypoints.type, keypoints.content, (17, 3), "F" if keypoints.fortran else "C")


def _numbers(kind: Any, content: Any, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    if not isinstance(kind, _Type) or kind.code not in _NUMBERS or not isinstance(content, bytes):
        raise ItemError(f"its pose file has keypoints of the type {getattr(kind, 'code', kind)}, not numbers")
    return np.frombuffer(content, np.dtype(kind.order + kind.code)).reshape(shape, order=order)
