"""Clips that are kept in a folder, each with a record: as files, or in tars.

A clip NAME is NAME.mp4, NAME.gif, NAME.png and, written last, the record NAME.json, which holds the CRC-32 of
the others. A clip whose record or files are missing or cut off is no clip, so that a run may end at any time.
"""

import fcntl
import json
import logging
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from fyp_jax.errors import UserError, reason, wrap_write_errors
from fyp_jax.pipeline.output import PipelineOutput

log = logging.getLogger(__name__)

SUFFIXES = (".mp4", ".gif", ".png")
CHECKSUMS = "crc32"
"""Field of a record: the CRC-32 of each file of the clip, by its suffix."""
_NAME, _MAGIC_AT, _MAGIC = 100, 257, b"ustar"
"""In the header of a tar's entry: bytes of its name, and where which letters stand (POSIX 1003.1)."""


class StoredClip(NamedTuple):
    """A clip in a folder or a tar."""

    name: str
    where: str
    """Its path, or TAR/NAME, for messages."""
    record: dict[str, Any]
    mp4: "FileRange"


class FileRange(NamedTuple):
    """Bytes of a file."""

    file: Path
    offset: int = 0
    size: int = -1
    """-1: to the end of the file."""

    def read(self) -> bytes:
        with self.file.open("rb") as opened:
            opened.seek(self.offset)
            return opened.read(self.size)


def save_files(stem: Path, output: PipelineOutput, fps: float, record: Mapping[str, Any]) -> dict[str, Path]:
    """Write STEM.mp4, .gif, .png (a grid: skeletons, if any, above frames) and, last, the record STEM.json.

    Gives the files by their suffix. Raises UserError where they cannot be written.
    """
    # The stem may hold a dot, so that a suffix is added and never replaced.
    files = {suffix: stem.with_name(stem.name + suffix) for suffix in (*SUFFIXES, ".json")}
    files[".json"].unlink(missing_ok=True)
    for suffix in SUFFIXES:
        output.save(files[suffix], fps)
    checksums = {suffix: zlib.crc32(files[suffix].read_bytes()) for suffix in SUFFIXES}
    content = json.dumps({**record, CHECKSUMS: checksums}, indent=2, ensure_ascii=False)
    with wrap_write_errors(files[".json"]) as file:
        file.write_text(content + "\n", encoding="utf-8")
    return files


def list_clips(path: Path) -> list[StoredClip]:
    """The clips of a folder, those of its tars among them, or of a tar, in the order of their names.

    A file that is no whole clip is left out, with a warning. Raises UserError where there is no such path.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder or tar of clips")
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    found = {clip.name: clip for tar in tars for clip in _scan_tar(tar)[0]}
    if path.is_dir():
        found |= {clip.name: clip for clip in _scan_folder(path, (".mp4",))}
        for file in sorted(path.glob("*.mp4")):
            if file.stem not in found:
                log.warning("%s: is missing its record (.json) or is damaged: it is left out", file)
    return [found[name] for name in sorted(found)]


class ClipFolder:
    """Clips as files in a folder."""

    def __init__(self, folder: Path):
        """Raises UserError where the folder cannot be made, and where clips are in it in tars."""
        _make_folder(folder, "*.tar", "holds clips in tars; give --format tar, or another --out")
        self.folder = folder

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the whole clips, by their names."""
        return {clip.name: clip.record for clip in _scan_folder(self.folder, SUFFIXES)}

    def add(self, name: str, output: PipelineOutput, fps: float, record: Mapping[str, Any]) -> Path:
        """Write a clip, in place of one of this name. Gives its mp4. Raises UserError."""
        return save_files(self.folder / name, output, fps, record)[".mp4"]

    def close(self) -> None:
        pass


class ClipTars:
    """Clips in tars, one for each process: clips-00000.tar and so on, as WebDataset reads them.

    A clip's files are neighbours in the tar. Of clips of one name, the last one counts.
    """

    def __init__(self, folder: Path, process: int, processes: int):
        """Raises UserError where the folder cannot be made, and where clips are in it as files."""
        _make_folder(folder, "*.mp4", "holds clips as files; give --format folder, or another --out")
        self.folder, self._file = folder, folder / f"clips-{process:05d}.tar"
        self._writer: tuple[IO[bytes], tarfile.TarFile] | None = None
        # What a killed run left at the end of a tar is cut off, by one process each.
        for tar in sorted(folder.glob("clips-*.tar")):
            number = tar.stem.removeprefix("clips-")
            if number.isdigit() and int(number) % processes == process:
                _cut_off(tar)

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of the whole clips, by their names."""
        tars = sorted(self.folder.glob("*.tar"))
        return {clip.name: clip.record for tar in tars for clip in _scan_tar(tar)[0]}

    def add(self, name: str, output: PipelineOutput, fps: float, record: Mapping[str, Any]) -> Path:
        """Append a clip. Gives the tar. Raises UserError."""
        with tempfile.TemporaryDirectory() as scratch, wrap_write_errors(self._file):
            files = save_files(Path(scratch) / name, output, fps, record)
            opened, tar = self._writer or self._open()
            try:
                for file in files.values():
                    entry = tarfile.TarInfo(file.name)
                    entry.size = file.stat().st_size
                    with file.open("rb") as content:
                        tar.addfile(entry, content)
                opened.flush()
            except BaseException:  # the next clip cuts off what is there of this one
                self._writer = None
                opened.close()
                raise
        return self._file

    def close(self) -> None:
        """Write the end of the tar."""
        if self._writer is not None:
            opened, tar = self._writer
            with wrap_write_errors(self._file), opened:
                tar.close()
            self._writer = None

    def _open(self) -> tuple[IO[bytes], tarfile.TarFile]:
        """The tar of this process, at the end of its last clip."""
        self._file.touch()
        opened = self._file.open("r+b")
        _lock(opened, self._file)
        opened.seek(_scan_tar(self._file)[1])
        opened.truncate()
        self._writer = opened, tarfile.open(fileobj=opened, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        return self._writer


def open_store(form: str, folder: Path, process: int, processes: int) -> ClipFolder | ClipTars:
    """Where a process keeps its clips. Raises UserError as the two do."""
    return ClipFolder(folder) if form == "folder" else ClipTars(folder, process, processes)


def _make_folder(folder: Path, other: str, problem: str) -> None:
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if next(folder.glob(other), None) is not None:
        raise UserError(f"{folder}: {problem}")


def _scan_folder(folder: Path, needed: tuple[str, ...]) -> Iterator[StoredClip]:
    for file in sorted(folder.glob("*.mp4")):
        beside = {suffix: file.with_suffix(suffix) for suffix in needed}
        checksums = {suffix: _crc32_of(path) for suffix, path in beside.items() if path.is_file()}
        record = _record(file.with_suffix(".json"), checksums) if len(checksums) == len(needed) else None
        if record is not None:
            yield StoredClip(file.stem, str(file), record, FileRange(file))


def _record(file: Path, checksums: Mapping[str, int]) -> dict[str, Any] | None:
    return _whole_record(file.read_bytes(), checksums) if file.is_file() else None


def _scan_tar(file: Path) -> tuple[list[StoredClip], int]:
    """The whole clips of a tar, and where the last of them ends, in bytes. Raises UserError for no tar, for
    one that cannot be read, and for one that is damaged before its last clip."""
    clips, parts = {}, {}
    end = scanned = size = 0  # bytes: to the end of the last whole clip, and of the last entry that is read
    try:
        size = file.stat().st_size
        with tarfile.open(file, "r:") as tar:
            while (entry := _next(tar)) is not None:
                if entry.offset_data + entry.size > size:
                    break
                name, suffix = os.path.splitext(entry.name)
                part = FileRange(file, entry.offset_data, entry.size)
                scanned = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if suffix != ".json":
                    parts.setdefault(name, {})[suffix] = part
                    continue
                found = parts.pop(name, {})
                record = _whole_record(part.read(), {x: zlib.crc32(one.read()) for x, one in found.items()})
                if record is None or not set(SUFFIXES) <= set(found):
                    log.warning("%s: %s is no whole clip", file, name)
                    continue
                clips.pop(name, None)
                clips[name] = StoredClip(name, f"{file}/{name}", record, found[".mp4"])
                end = scanned
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or reason(error)})") from error
    except tarfile.TarError as error:
        if end == 0 and not parts and size >= tarfile.BLOCKSIZE:
            raise UserError(f"{file}: is no tar that can be read ({reason(error)})") from error
    _check_unfinished(file, scanned)
    return list(clips.values()), end


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next entry; None at the end, and where the file is cut off."""
    try:
        return tar.next()
    except tarfile.TarError:
        return None


def _cut_off(file: Path) -> None:
    """Take an entry that was not written to its end off a tar."""
    with wrap_write_errors(file), file.open("r+b") as opened:
        _lock(opened, file)
        end = _scan_tar(file)[1]
        opened.seek(end)
        rest = opened.read()
        if rest and not any(rest) and (end + len(rest)) % tarfile.RECORDSIZE == 0:
            return  # it was closed
        opened.truncate(end)
        opened.seek(0, os.SEEK_END)
        with tarfile.open(fileobj=opened, mode="w"):
            pass  # closing it writes the end of a tar


def _check_unfinished(file: Path, end: int) -> None:
    """Raise UserError where several clips lie behind the last entry that can be read, which ends at `end`: a
    run that was killed leaves one unfinished at most, so a place in the tar is damaged."""
    records = 0
    with file.open("rb") as opened:
        opened.seek(end)
        while header := opened.read(tarfile.BLOCKSIZE):
            is_header = header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC
            records += is_header and header[:_NAME].rstrip(b"\0").endswith(b".json")
    if records > 1:
        raise UserError(
            f"{file}: is damaged at byte {end}, and {records} clips lie behind that; bring back a copy, or "
            "move the file away and those that it holds are made again"
        )


def _lock(opened: IO[bytes], file: Path) -> None:
    """Hold the lock of a file until it is closed. A file system without locks is taken as it is."""
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{file}: another process writes clips into it; end that first") from error
    except OSError as error:
        log.warning("%s: cannot be locked (%s); start no second run here", file, reason(error))


def _whole_record(text: bytes, checksums: Mapping[str, int]) -> dict[str, Any] | None:
    """The record of a clip, where it is one and its files have the checksums that it says, if it says any."""
    try:
        record = json.loads(text)
    except ValueError:
        return None
    said = record.get(CHECKSUMS, checksums) if isinstance(record, dict) else None
    if not isinstance(said, dict) or any(said.get(suffix) != x for suffix, x in checksums.items()):
        return None
    return record


def _crc32_of(path: Path) -> int:
    try:
        return zlib.crc32(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason(error)})") from error
