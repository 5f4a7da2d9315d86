"""Writes folders of weights array by array and in shards; a folder appears only when it is complete."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from jax.typing import DTypeLike

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import MANIFEST, WeightsError, write_safetensors
from fyp_jax.convert.torch_pickle import write_torch
from fyp_jax.errors import UserError, reason
from fyp_jax.trees import list_names

log = logging.getLogger(__name__)

PYTORCH = MappingProxyType({"format": "pt"})
"""Metadata that transformers requires in safetensors."""


class StateDictFile(NamedTuple):
    """The arrays of one model, and the file that they go to."""

    file: str
    """Path in the exported folder, `vae/diffusion_pytorch_model.bin`; shards and index are named after it."""
    arrays: Mapping[str, LazyArray]
    metadata: Mapping[str, str] = PYTORCH
    """Metadata of a safetensors file; other formats have none."""


class ExportPlan(NamedTuple):
    """The contents of a folder that is to be written."""

    weights: list[StateDictFile]
    text_files: Mapping[str, str] = MappingProxyType({})
    """Contents of text files, by their path in the exported folder."""
    copied_folders: Mapping[str, Path] = MappingProxyType({})
    """Folders to copy, by the path of the copy in the exported folder."""

    def in_subfolder(self, folder: str) -> "ExportPlan":
        """The plan with everything in a subfolder of this name."""
        return ExportPlan(
            [model._replace(file=f"{folder}/{model.file}") for model in self.weights],
            {f"{folder}/{name}": text for name, text in self.text_files.items()},
            {f"{folder}/{name}": path for name, path in self.copied_folders.items()},
        )


class WrittenFile(NamedTuple):
    """A weight file that was written."""

    name: str
    """Path in the exported folder."""
    parameters: int
    """Number of parameters."""
    bytes: int
    """Size of the file."""
    arrays: dict[str, dict[str, Any]]
    """For each array its dtype, its shape, and the CRC-32 of its bytes."""


@dataclasses.dataclass(frozen=True)
class WeightWriter:
    """Writes export plans."""

    dtype: DTypeLike | None = None
    """Dtype of floats in the files; None keeps the dtype that each array has."""
    max_shard_size: int = 10 * 10**9
    """Largest number of array bytes in one file. A larger array gets a file of its own."""
    on_bytes: Callable[[int], Any] = lambda _: None
    """Called with the number of bytes of each array after it is written."""

    def write_folder(
        self, plan: ExportPlan, folder: Path, manifest: Mapping[str, Any], overwrite: bool = False
    ) -> list[WrittenFile]:
        """Write a folder with the contents of `plan`, and a `conversion.json` of `manifest` and checksums.

        The folder gets its name when it is complete. Raises UserError where there is such a folder already,
        unless `overwrite` is given and the folder was exported, and where it cannot be written. Files that no
        export wrote stay; a warning names them.
        """
        check_writable(folder, overwrite)
        try:
            with _replacing(folder) as partial:
                for name, source in plan.copied_folders.items():
                    shutil.copytree(source, partial / name)
                for name, text in plan.text_files.items():
                    _write_text(partial / name, text)
                written: list[WrittenFile] = []
                for model in plan.weights:
                    written += self._write(model, partial)
                files = {file.name: file.arrays for file in written}
                others = sorted(_files(partial) - files.keys())
                text = json.dumps({**manifest, "files": files, "other_files": others}, indent=1)
                _write_text(partial / MANIFEST, text)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror or reason(error)})") from error
        return written

    def total_bytes(self, plan: ExportPlan) -> int:
        """Number of bytes of all arrays in the dtype that they will be written in."""
        return sum(x.nbytes for model in plan.weights for x in self._cast(model).values())

    def _cast(self, model: StateDictFile) -> Mapping[str, LazyArray]:
        if self.dtype is None:
            return model.arrays
        return {name: array.astype(self.dtype, name) for name, array in model.arrays.items()}

    def _write(self, model: StateDictFile, folder: Path) -> Iterator[WrittenFile]:
        arrays = self._cast(model)
        shards = _shard(arrays, self.max_shard_size)
        names = [model.file]
        if len(shards) > 1:
            stem, suffix = os.path.splitext(model.file)
            names = [f"{stem}-{i + 1:05}-of-{len(shards):05}{suffix}" for i in range(len(shards))]
            named_shards = zip(names, shards, strict=True)
            weight_map = {x: Path(name).name for name, shard in named_shards for x in shard}
            total = {"total_size": sum(array.nbytes for array in arrays.values())}
            index = json.dumps({"metadata": total, "weight_map": weight_map}, indent=1)
            _write_text(folder / index_name(model.file), index)
        for name, shard in zip(names, shards, strict=True):
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            on_array = lambda _, count: self.on_bytes(count)  # noqa: E731
            if file.suffix == ".safetensors":
                checksums = write_safetensors(file, shard, model.metadata, on_array)
            else:
                checksums = write_torch(file, shard, on_array)
            entries = {
                x: {"dtype": array.dtype.name, "shape": list(array.shape), "crc32": checksums[x]}
                for x, array in shard.items()
            }
            yield WrittenFile(name, sum(x.size for x in shard.values()), file.stat().st_size, entries)


def index_name(file: str) -> str:
    """The name of the index of shards of a weight file."""
    return f"{file}.index.json"


def shard_files(index: Path) -> list[Path]:
    """The shards that an index names, sorted. Raises WeightsError where the file is not an index."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        if elsewhere := [name for name in names if Path(name).name != name]:
            raise ValueError(f"it names {elsewhere[0]}, which is no file beside it")
        return sorted(index.parent / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not an index of shards ({error!r})") from error


def parse_size(text: str) -> int:
    """The number of bytes of a size as Hugging Face writes it: 300MB, 1.5GB, 5GiB. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"{text!r} is not a size; write it like 300MB, 5GB or 5GiB")
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))


def check_writable(folder: Path, overwrite: bool) -> None:
    """Raise UserError where a folder exists already, unless `overwrite` is given and it was exported."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{folder}: exists already (--overwrite replaces it)")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: has no {MANIFEST}, so it was not exported and is not overwritten")


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise UserError where the disk of a new folder has less than `needed` bytes free."""
    existing = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{folder}: needs {needed / 1e6:.1f} MB, but the disk has {free / 1e6:.1f} MB free")


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which replaces it at the end, or is removed after an error."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.parent / f".{folder.name}.{os.getpid()}.{end}" for end in ("partial", "old"))
    try:
        partial.mkdir()
        yield partial
        exported = _exported_files(folder) | _files(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        _move_other_files(old, folder, exported)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)


def _files(folder: Path) -> set[str]:
    """The paths of all files in a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not _is_folder(path)}


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _exported_files(folder: Path) -> set[str]:
    """The files of a folder that an export wrote, as its `conversion.json` says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return {MANIFEST, *manifest["files"], *manifest.get("other_files", ())}
    except (OSError, ValueError, KeyError, TypeError):
        return {MANIFEST}


def _move_other_files(old: Path, new: Path, exported: set[str]) -> None:
    """Move what no export wrote from a folder into the one that replaces it."""
    others = sorted(_files(old) - exported) if old.exists() else []
    for name in others:
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(new / name)
    if others:
        log.warning("%s: these files stay, since no export wrote them: %s", new, list_names(others))


def _write_text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


def _shard(arrays: Mapping[str, LazyArray], max_bytes: int) -> list[dict[str, LazyArray]]:
    """The arrays in order, in shards of at most `max_bytes` each, or of one larger array."""
    shards: list[dict[str, LazyArray]] = [{}]
    left = max_bytes
    for name, array in arrays.items():
        if shards[-1] and array.nbytes > left:
            shards.append({})
            left = max_bytes
        shards[-1][name] = array
        left -= array.nbytes
    return shards
