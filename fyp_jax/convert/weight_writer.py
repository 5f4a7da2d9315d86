"""Folders of weights, written array by array, in shards, and whole or not at all."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.typing import DTypeLike

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import WeightsError, write_safetensors
from fyp_jax.convert.torch_pickle import write_torch
from fyp_jax.errors import UserError, reason

MANIFEST = "conversion.json"
"""Stands in every folder that is written here, and nowhere else."""

PYTORCH = MappingProxyType({"format": "pt"})
"""What transformers asks for in the metadata of its safetensors."""


class StateDictFile(NamedTuple):
    """The arrays of one model."""

    file: str
    """Below the folder, `vae/diffusion_pytorch_model.bin`; shards and their index are named after it."""
    arrays: Mapping[str, LazyArray]
    metadata: Mapping[str, str] = PYTORCH
    """Of safetensors."""


class ExportPlan(NamedTuple):
    """What a folder shall hold, before anything is written."""

    weights: list[StateDictFile]
    texts: Mapping[str, str]
    """Small files by their name below the folder."""
    copies: Mapping[str, Path]
    """Folders to copy, by the same."""

    def below(self, folder: str) -> "ExportPlan":
        """The same in a folder of this name."""
        return ExportPlan(
            [model._replace(file=f"{folder}/{model.file}") for model in self.weights],
            {f"{folder}/{name}": text for name, text in self.texts.items()},
            {f"{folder}/{name}": path for name, path in self.copies.items()},
        )


class WrittenFile(NamedTuple):
    name: str
    parameters: int
    bytes: int
    arrays: dict[str, dict[str, Any]]
    """Of each array its dtype, its shape, and a CRC-32 of its bytes."""


@dataclasses.dataclass(frozen=True)
class WeightWriter:
    """How weights are written."""

    dtype: DTypeLike | None = None
    """Of floats; None keeps what they have."""
    max_shard_size: int = 10 * 10**9
    """Bytes of arrays in one file; an array that is larger has a file to itself."""
    on_bytes: Callable[[int], Any] = lambda _: None
    """Told of the bytes of each array that is written."""

    def write_folder(
        self, contents: ExportPlan, folder: Path, manifest: Mapping[str, Any], overwrite: bool = False
    ) -> list[WrittenFile]:
        """A new folder with these contents, and with `conversion.json`: `manifest` and each array's checksum.

        It appears under its name when it is whole. Raises UserError where there is such a folder already and
        `overwrite` is not given, or it is none that was written here; or where the disk says no.
        """
        check_writable(folder, overwrite)
        try:
            with _replacing(folder) as place:
                for name, source in contents.copies.items():
                    shutil.copytree(source, place / name)
                for name, text in contents.texts.items():
                    _write_text(place / name, text)
                written: list[WrittenFile] = []
                for model in contents.weights:
                    written += self._write(model, place)
                files = {file.name: file.arrays for file in written}
                _write_text(place / MANIFEST, json.dumps({**manifest, "files": files}, indent=1))
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or reason(error)})") from error
        return written

    def total_bytes(self, contents: ExportPlan) -> int:
        """Bytes of all arrays, as they will be written."""
        return sum(x.nbytes for model in contents.weights for x in self._cast(model).values())

    def _cast(self, model: StateDictFile) -> Mapping[str, LazyArray]:
        if self.dtype is None:
            return model.arrays
        return {name: array.astype(self.dtype, name) for name, array in model.arrays.items()}

    def _write(self, model: StateDictFile, place: Path) -> Iterator[WrittenFile]:
        arrays = self._cast(model)
        shards = _split(arrays, self.max_shard_size)
        names = [model.file]
        if len(shards) > 1:
            stem, ending = os.path.splitext(model.file)
            names = [f"{stem}-{i + 1:05}-of-{len(shards):05}{ending}" for i in range(len(shards))]
            shards_names = zip(names, shards, strict=True)
            weight_map = {x: Path(name).name for name, shard in shards_names for x in shard}
            total = {"total_size": sum(array.nbytes for array in arrays.values())}
            index = json.dumps({"metadata": total, "weight_map": weight_map}, indent=1)
            _write_text(place / index_name(model.file), index)
        for name, shard in zip(names, shards, strict=True):
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            told = lambda _, count: self.on_bytes(count)  # noqa: E731
            if file.suffix == ".safetensors":
                sums = write_safetensors(file, shard, model.metadata, told)
            else:
                sums = write_torch(file, shard, told)
            about = {
                x: {"dtype": array.dtype.name, "shape": list(array.shape), "crc32": sums[x]}
                for x, array in shard.items()
            }
            yield WrittenFile(name, sum(x.size for x in shard.values()), file.stat().st_size, about)


def index_name(file: str) -> str:
    """What says which shard has which array."""
    return f"{file}.index.json"


def shard_files(index: Path) -> list[Path]:
    """The files that an index names, in order. Raises WeightsError where it is none."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error!r})") from error


def parse_size(text: str) -> int:
    """A number of bytes as Hugging Face writes them: 300MB, 1.5GB, 5GiB. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"{text!r} is no size: one is written like 300MB, 5GB or 5GiB")
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))


def check_writable(folder: Path, overwrite: bool) -> None:
    """Raise UserError where a folder is there already, unless it may be replaced and was written here."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{folder}: is there already (--overwrite replaces it)")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: has no {MANIFEST}, so it was not exported, and is not overwritten")


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise UserError where the disk of a folder that is to be made has not `needed` bytes."""
    place = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(f"{folder}: needs {needed / 1e6:.1f} MB, and the disk has {free / 1e6:.1f} MB left")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside it, which takes its name at the end, or is removed."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    place, old = (folder.parent / f".{folder.name}.{os.getpid()}.{end}" for end in ("partial", "old"))
    try:
        place.mkdir()
        yield place
        if folder.exists():
            folder.rename(old)
        place.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def _split(arrays: Mapping[str, LazyArray], limit: int) -> list[dict[str, LazyArray]]:
    """In order, each part of at most `limit` bytes, or of one array."""
    parts: list[dict[str, LazyArray]] = [{}]
    room = limit
    for name, array in arrays.items():
        if parts[-1] and array.nbytes > room:
            parts.append({})
            room = limit
        parts[-1][name] = array
        room -= array.nbytes
    return parts
