"""What people have -> a list of items, in order, each with where its bytes lie. Nothing is decoded here.

Three forms, told apart by what is there:

1. a folder of files with `metadata.csv` or `metadata.jsonl` in it (or elsewhere, by `captions`), one row a
   file: `file_name` below the folder, and `text` (or `caption`). Images also have `skeleton`, a file, or
   `keypoints`, JSON or a `.json` file. A video may have several captions: rows that follow each other
   with the same file_name and a `start_frame` (or `frame`), or, in JSON lines, a list as `text`:
   [{"frame": 0, "text": "..."}, ...].
2. tars in the manner of WebDataset, a folder of them or one: the members KEY.* that follow each other are
   one sample. Videos: KEY.mp4 (.webm, ...) and KEY.txt or KEY.json. Images: KEY.jpg (.png, .webp),
   KEY.skeleton.png or KEY.keypoints.json, and KEY.txt or KEY.json. A KEY.json has a row's fields.
3. the published HDVILA captions: a CSV with part_id, clip_id, frame_id, caption, a clip's rows together.
   The clip is PART/CLIP, part_PART/CLIP, part_PART/video_clips/CLIP (as published) or CLIP below the
   folder, with .mp4 added where it is not there without. frame_id is the frame from which a caption
   holds; where a clip's ids are just 0, 1, 2, ..., they count captions, one every 64 frames.
"""

import csv
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.errors import UserError, reason

METADATA = ("metadata.csv", "metadata.jsonl")
HDVILA = ("part_id", "clip_id", "frame_id", "caption")
HDVILA_STEP = 64  # frames
VIDEO_SUFFIXES = {
    ".mp4",
    ".m4v",
    ".mov",
    ".webm",
    ".mkv",
    ".avi",
    ".gif",
    ".mpg",
    ".mpeg",
    ".ts",
    ".wmv",
    ".flv",
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

csv.field_size_limit(2**30)  # keypoints of a crowd are long


class Blob(NamedTuple):
    """Bytes that are a file, or a part of one."""

    file: str
    start: int
    size: int
    modified: int
    """Of the file, nanoseconds."""

    def read(self) -> bytes:
        """All of them. OSError where the file cannot be read, UserError where it has changed."""
        with open(self.file, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise UserError(f"is cut off: {len(data)} of {self.size} bytes are there")
        return data


class Caption(NamedTuple):
    """From which frame on it holds."""

    frame: int
    text: str


class Item(NamedTuple):
    """One video or image with what belongs to it, or the reason why it is refused unseen."""

    name: str
    """The path below the source; for a tar's, the tar and the member."""
    media: Blob | None = None
    captions: tuple[Caption, ...] = ()
    skeleton: Blob | None = None
    keypoints: Blob | str | None = None
    """JSON, or where it lies."""
    problem: str = ""

    def size(self) -> int:
        """Bytes of its files."""
        return sum(blob.size for blob in self if isinstance(blob, Blob))


class _Rejected(Exception):  # noqa: N818  (of one item, never of the run)
    """Why an item is refused; its name is known where this is caught."""


def find_items(kind: str, source: Path, captions: Path | None = None) -> Iterator[Item]:
    """The items of a source in its order; `kind` is "pose_images" or "captioned_videos".

    Raises UserError where the source or its metadata as a whole is not understood: the row, the column
    that is missing and those that are there.
    """
    seen: set[str] = set()
    for item in _find(kind, source, captions):
        if item.name in seen:
            yield Item(item.name, problem="the same name again, further down")
        else:
            seen.add(item.name)
            yield item


def _find(kind: str, source: Path, captions: Path | None) -> Iterator[Item]:
    if not source.exists():
        raise UserError(f"{source}: no such folder")
    if source.is_file():
        if source.suffix != ".tar" or captions is not None:
            raise UserError(f"{source}: is a file; a source is a folder, or one .tar without --captions")
        return _tar_items(kind, source, source.parent)
    if captions is not None and not captions.is_file():
        raise UserError(f"{captions}: no such file")
    files = [captions] if captions else [source / name for name in METADATA if (source / name).is_file()]
    if len(files) > 1:
        raise UserError(f"{source}: has both {' and '.join(METADATA)}; choose one by --captions")
    if files:
        return _listed_items(kind, source, files[0])
    tars = sorted(path for path in source.iterdir() if path.suffix == ".tar")
    if not tars:
        there = sorted(path.name for path in source.iterdir())
        some = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        raise UserError(
            f"{source}: needs {' or '.join(METADATA)}, or .tar files, or --captions; "
            f"{len(there)} entries are there{': ' + some if some else ''}"
        )
    return itertools.chain.from_iterable(_tar_items(kind, tar, source) for tar in tars)


# --- rows -------------------------------------------------------------------------------------------------


Row = Mapping[str, Any]


def _rows(file: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a CSV or JSON-lines file, each with the line in which it ends."""
    line = 0
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            if file.suffix.lower() == ".csv":
                reader = csv.reader(text, strict=True)
                columns = [column.strip() for column in next(reader, [])]
                for fields in filter(None, reader):
                    line = reader.line_num
                    if len(fields) != len(columns):
                        raise UserError(
                            f"{file}: line {line} has {len(fields)} fields for {len(columns)} columns, "
                            f"{', '.join(columns)}; a text with a comma needs quotes"
                        )
                    yield line, dict(zip(columns, fields, strict=True))
            else:
                for line, words in enumerate(text, 1):
                    row = json.loads(words) if words.strip() else None
                    if row is not None and not isinstance(row, dict):
                        raise UserError(f'{file}: line {line} is not an object like {{"file_name": "a.mp4"}}')
                    if row is not None:
                        yield line, row
    except (csv.Error, OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        form = "CSV" if file.suffix.lower() == ".csv" else "JSON lines"
        raise UserError(f"{file}: not readable as {form} from line {line} on ({reason(error)})") from error


def _listed_items(kind: str, folder: Path, file: Path) -> Iterator[Item]:
    rows = _rows(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file}: has no rows")
    rows, columns = itertools.chain([first], rows), set(first[1])
    videos = kind == "captioned_videos"
    if columns >= set(HDVILA):
        if not videos:
            raise UserError(f"{file}: has the columns of HDVILA, which are captions of videos, not of images")
        grouped = itertools.groupby(_with(HDVILA, rows, file), lambda row: (row["part_id"], row["clip_id"]))
        return (_hdvila_item(folder, *key, list(group)) for key, group in grouped)
    poses = {"skeleton", "keypoints"}
    for wanted in ({"file_name"}, {"text", "caption"}, *([] if videos else [poses])):
        if not columns & wanted:
            raise UserError(
                f"{file}: line {first[0]} has no column {' or '.join(sorted(wanted, reverse=True))}; "
                f"its columns: {', '.join(first[1])}"
            )
    listed = _with(("file_name",), rows, file)
    if videos and columns & {"start_frame", "frame"}:
        return (_row_item(kind, folder, list(group)) for _, group in itertools.groupby(listed, _file_name))
    return (_row_item(kind, folder, [row]) for row in listed)


def _with(columns: Sequence[str], rows: Iterator[tuple[int, Row]], file: Path) -> Iterator[Row]:
    for line, row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(
                f"{file}: line {line} has no column {', '.join(missing)}; its columns: {', '.join(row)}"
            )
        yield row


def _file_name(row: Row) -> str:
    return str(row["file_name"])


def _row_item(kind: str, folder: Path, rows: list[Row]) -> Item:
    name = os.path.normpath(_file_name(rows[0]))
    try:
        media = _below(folder, _file_name(rows[0]))
        if kind == "captioned_videos":
            return Item(name, media, _captions(rows))
        return _image_item(name, media, rows[0], *_pose(rows[0], folder))
    except _Rejected as rejected:
        return Item(name, problem=str(rejected))


def _hdvila_item(folder: Path, part: str, clip: str, rows: list[Row]) -> Item:
    number = part.lstrip("0") or "0"
    bases = dict.fromkeys((part, number, f"part_{part}", f"part_{number}", f"part_{number}/video_clips", "."))
    name = os.path.normpath(f"{part}/{clip}")
    try:
        if not clip.strip():
            raise _Rejected("has no clip_id")
        frames = [_frame(row["frame_id"]) for row in rows]
        step = HDVILA_STEP if len(frames) > 1 and frames == list(range(len(frames))) else 1
        rows = [
            {"frame": step * frame, "text": row["caption"]} for frame, row in zip(frames, rows, strict=True)
        ]
        for base, suffix in itertools.product(bases, ("", ".mp4")):
            path = os.path.normpath(f"{base}/{clip}{suffix}")
            if _leaves(path) or (folder / path).is_file():
                return Item(path, _below(folder, path), _captions(rows))
        raise _Rejected(f"no such file, nor in {', '.join(list(bases)[1:])}, nor with .mp4")
    except _Rejected as rejected:
        return Item(name, problem=str(rejected))


# --- tars -------------------------------------------------------------------------------------------------


def _tar_items(kind: str, tar: Path, source: Path) -> Iterator[Item]:
    below = tar.relative_to(source)
    modified = tar.stat().st_mtime_ns
    try:
        with tarfile.open(
            tar, "r:", errors="replace"
        ) as members:  # not compressed: members are read at their place
            files = ((*_key(member.name), member) for member in members if member.isfile())
            for key, group in itertools.groupby(files, lambda file: file[0]):
                parts = {
                    suffix: Blob(str(tar), member.offset_data, member.size, modified)
                    for _, suffix, member in group
                }
                yield _sample_item(kind, f"{below}/{key}", parts)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Item(str(below), problem=f"is not a tar (or a compressed one), or is cut off ({reason(error)})")


def _key(member: str) -> tuple[str, str]:
    """WebDataset's: a name is cut at the first dot after the last slash."""
    folder, slash, name = member.rpartition("/")
    key, dot, suffix = name.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _sample_item(kind: str, key: str, parts: dict[str, Blob]) -> Item:
    kinds = VIDEO_SUFFIXES if kind == "captioned_videos" else IMAGE_SUFFIXES
    media = [suffix for suffix in parts if suffix in kinds]
    name = key + media[0] if media else key
    try:
        if len(media) != 1:
            what = "video" if kind == "captioned_videos" else "image"
            raise _Rejected(f"has {len(media)} {what}s among its members ({', '.join(sorted(parts))})")
        row = _json(parts[".json"].read(), "its .json") if ".json" in parts else {}
        if not isinstance(row, dict):
            raise _Rejected("its .json is not an object")
        if ".txt" in parts:
            row = {**row, "text": parts[".txt"].read().decode(errors="strict")}
        if kind == "captioned_videos":
            return Item(name, parts[media[0]], _captions([row]))
        skeletons = [parts[suffix] for suffix in parts if suffix.startswith(".skeleton.")]
        keypoints = parts.get(".keypoints.json", _keypoints(row.get("keypoints")))
        return _image_item(name, parts[media[0]], row, skeletons[0] if skeletons else None, keypoints)
    except (_Rejected, UserError, UnicodeDecodeError) as error:
        return Item(name, problem=reason(error))


# --- fields -----------------------------------------------------------------------------------------------


def _captions(rows: Sequence[Row]) -> tuple[Caption, ...]:
    """Captions of a video's rows by start, at least one; each row has one, or a list of them."""
    if len(rows) == 1 and isinstance(listed := _text(rows[0]), list):
        if not all(isinstance(caption, dict) for caption in listed):
            raise _Rejected('a list of captions needs frames: [{"frame": 0, "text": "..."}]')
        rows = listed
    if not rows:
        raise _Rejected("has no caption")
    captions = []
    for row in rows:
        text = _text(row)
        if text is None or (isinstance(text, str) and not text.strip()):
            raise _Rejected("has no caption" if len(rows) == 1 else "one of its captions is empty")
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise _Rejected("its caption is not text") from error
        captions.append(Caption(_frame(row.get("start_frame", row.get("frame", 0))), text.strip()))
    captions.sort()
    for before, after in itertools.pairwise(captions):
        if before.frame == after.frame:
            raise _Rejected(f"two captions begin at frame {after.frame}")
    return tuple(captions)


def _text(row: Row) -> Any:
    return row.get("caption") if row.get("text") is None else row["text"]


def _frame(value: Any) -> int:
    try:
        frame = float(value or 0)
    except (TypeError, ValueError) as error:
        raise _Rejected(f"the frame {value!r} of a caption is not a number") from error
    if not (frame.is_integer() and 0 <= frame < 2**53):
        raise _Rejected(f"the frame {value!r} of a caption is not a whole number from 0")
    return int(frame)


def _image_item(
    name: str, media: Blob, row: Row, skeleton: Blob | None, keypoints: Blob | str | None
) -> Item:
    captions = _captions([row])
    if len(captions) > 1:
        raise _Rejected(f"has {len(captions)} captions, an image has one")
    if not skeleton and not keypoints:
        raise _Rejected("has no skeleton and no keypoints")
    return Item(name, media, captions, skeleton, None if skeleton else keypoints)


def _pose(row: Row, folder: Path) -> tuple[Blob | None, Blob | str | None]:
    if row.get("skeleton"):
        return _below(folder, str(row["skeleton"]), "skeleton"), None
    keypoints = row.get("keypoints")
    if isinstance(keypoints, str) and keypoints.strip() and keypoints.strip()[0] not in "[{":
        return None, _below(folder, keypoints, "keypoint file")
    return None, _keypoints(keypoints)


def _keypoints(value: Any) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Rejected(f"{what} is not JSON ({reason(error)})") from error


def _leaves(path: str) -> bool:
    return os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir


def _below(folder: Path, name: str, what: str = "file") -> Blob:
    """A file of the folder (or of where a link in it leads)."""
    if not name.strip():
        raise _Rejected(f"has no {what} name")
    if _leaves(name):
        raise _Rejected(f"its {what} is outside of the folder")
    path = os.path.normpath(folder / name)
    try:
        stat = os.stat(path)
        name.encode()  # it goes into the record
    except (OSError, ValueError) as error:
        raise _Rejected(
            f"no such {what}" + ("" if isinstance(error, FileNotFoundError) else f" ({reason(error)})")
        ) from error
    if os.path.isdir(path):
        raise _Rejected(f"its {what} is a folder")
    return Blob(path, 0, stat.st_size, stat.st_mtime_ns)
