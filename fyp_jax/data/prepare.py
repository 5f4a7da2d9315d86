"""A source -> a TFDS dataset: items checked in parallel, written in their order, gone on with after a kill.

Shards are written one after the other, and a line of a log tells of each that is complete. So a run that
is killed leaves complete shards and the number of items that are in them, and the next run goes on there:
what comes out depends on the source alone, not on workers and kills. When all is written, the folder gets
its final name.
"""

import csv
import fcntl
import hashlib
import inspect
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tqdm import tqdm

from fyp_jax.data.datasets import BUILDERS, FILE_FORMAT, SPLIT, SUMMARY
from fyp_jax.data.decoding import decode_image
from fyp_jax.data.sources import Blob, Item, find_items
from fyp_jax.data.workers import exit_with_parent
from fyp_jax.errors import UserError, reason, wrap_write_errors
from fyp_jax.media.reading import inspect_video
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

MAX_BYTES = 2**31 - 2**20
"""Of a file: a record, which is a protocol buffer, holds less than 2 GiB."""
IMAGE_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}  # MPO is a JPEG with more behind it, as phones write it
AHEAD = 4  # items that are checked or wait, for each worker
REFUSED = "refused.csv"

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # TFDS's for shards whose number is not yet known
_UNFINISHED = "unfinished"


class Rejected(NamedTuple):
    """An item that is not in the records."""

    name: str
    reason: str


class Report(NamedTuple):
    """What a run has made, or has found made."""

    folder: Path
    records: int
    shards: int
    bytes: int
    """Of the files."""
    rejected: list[Rejected]
    new: bool
    """Whether this run has made it."""

    def by_reason(self) -> list[tuple[str, list[str]]]:
        """Reasons, the most frequent first, each with the names; those that differ by numbers are one."""
        names: dict[str, list[str]] = {}
        says: dict[str, str] = {}
        for rejected in self.rejected:
            kind = re.sub(r"\d+(\.\d+)?", "N", rejected.reason)
            names.setdefault(kind, []).append(rejected.name)
            says.setdefault(kind, rejected.reason)
        return sorted(((says[kind], names[kind]) for kind in names), key=lambda pair: -len(pair[1]))


class Outcome(NamedTuple):
    """Of the check of an item: a record, serialised, or why there is none."""

    record: bytes
    rejected: Rejected | None = None


class _Shard(NamedTuple):
    """A line of the log. A last shard may have no records, and then no file."""

    items: int
    records: int
    record_bytes: int
    file_bytes: int
    digest: str
    rejected: list[list[str]]


def prepare(
    kind: str,
    source: Path,
    out: Path,
    *,
    captions: Path | None = None,
    workers: int = 1,
    shard_bytes: int = 256 * 2**20,
    overwrite: bool = False,
) -> Report:
    """Make `out/KIND/VERSION` of a source (`sources.py`), go on with it, or find it made already.

    `refused.csv` in it lists what was refused and why. A shard is full once its records have `shard_bytes`.
    Raises UserError: a source that is not understood, or of which nothing can be taken; a dataset of other
    content at that place, finished or begun, unless `overwrite`; another run that is at it; a full disk.
    """
    if workers < 1 or shard_bytes < 1:
        raise UserError(f"workers ({workers}) and the size of a shard ({shard_bytes}) must be above 0")
    total, plan = _survey(kind, source, captions, shard_bytes)
    target = out / kind / str(BUILDERS[kind].VERSION)
    if target.exists() and not overwrite:
        if _summary(target).get("source") != plan:
            raise UserError(
                f"{target}: is there, of other data or another size of shards; --overwrite replaces it"
            )
        _log_of(target).unlink(missing_ok=True)
        return _report(target, new=False)
    with wrap_write_errors(target), _locked(target) as log:
        work = target.with_name(f"{target.name}.incomplete")
        shards = _begun(log, kind, work, plan, overwrite)
        done = sum(shard.items for shard in shards)
        items = itertools.islice(find_items(kind, source, captions), done, None)
        with (
            _checking(kind, workers) as checked,
            tqdm(total=total, initial=done, unit=" items", dynamic_ncols=True) as bar,
        ):
            outcomes = checked(items)
            while done < total:
                shards.append(_write_shard(work / _shard_name(kind, len(shards)), outcomes, shard_bytes, bar))
                done += shards[-1].items
                if shards[-1].items == 0:
                    raise UserError(f"{source}: has changed meanwhile: {done} items are left of {total}")
                log.write(_line(shards[-1]._asdict()))
                _to_disk(log)
        rejected = [Rejected(*pair) for shard in shards for pair in shard.rejected]
        full = [shard for shard in shards if shard.records]
        if full:
            _write_metadata(kind, work, full, rejected, plan)
            _replace(target, work)
        else:
            _write_refused(target.with_name(REFUSED), rejected)
            shutil.rmtree(work)
        _log_of(target).unlink()
    if not full:
        name, why = rejected[0]
        raise UserError(
            f"{source}: none of {total} items could be taken, {target.with_name(REFUSED)} says why; "
            f"first {name}: {why}"
        )
    return _report(target, new=True)


# --- checks, in worker processes -------------------------------------------------------------------------


def check(kind: str, item: Item) -> Outcome:
    """Read an item's files, decode them from end to end, and serialise its record."""
    try:
        if item.problem:
            raise UserError(item.problem)
        element = _video(item) if kind == "captioned_videos" else _image(item)
    except UserError as error:
        words = str(error).removeprefix(f"{item.name}: ")
        return Outcome(b"", Rejected(item.name, " ".join(words.split())))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # of FFmpeg or Pillow, on odd files
        words = getattr(error, "strerror", None) or reason(error)
        return Outcome(b"", Rejected(item.name, f"cannot be read ({words})"))
    return Outcome(serialise(kind, element))


def serialise(kind: str, element: dict[str, Any]) -> bytes:
    """The bytes of a record, which are the same in every process; those of TFDS's own function are not."""
    features = BUILDERS[kind].FEATURES
    serializer = ExampleSerializer(features.get_serialized_info())  # pyright: ignore[reportArgumentType]
    return serializer.get_tf_example(features.encode_example(element)).SerializeToString(deterministic=True)


def _video(item: Item) -> dict[str, Any]:
    data = _read(item.media, "video")
    frames, fps = inspect_video(data, item.name)
    starts = [caption.frame for caption in item.captions]
    if starts[0] >= frames:
        raise UserError(f"its first caption begins at frame {starts[0]}, but it has {frames} frames")
    captions = {"frame": starts, "text": [caption.text for caption in item.captions]}
    return {"name": item.name, "video": data, "frames": frames, "fps": fps, "captions": captions}


def _image(item: Item) -> dict[str, Any]:
    image = _read(item.media, "image")
    height, width = _require_image(image, "image")
    skeleton, people = b"", np.zeros((0, 17, 3), np.float32)
    if item.skeleton:
        skeleton = _read(item.skeleton, "skeleton")
        _require_image(skeleton, "skeleton")
    else:
        given = item.keypoints
        text = _read(given, "keypoint file") if isinstance(given, Blob) else given
        people = _people(text or "", height, width)
    record = {
        "name": item.name,
        "image": image,
        "skeleton": skeleton,
        "keypoints": people,
        "caption": item.captions[0].text,
    }
    decode_image(record, height=64, width=64)  # so training can do it, too
    return record


def _read(blob: Blob | None, what: str) -> bytes:
    assert blob is not None
    if blob.size == 0:
        raise UserError(("" if what in ("video", "image") else f"its {what} ") + "is empty (0 bytes)")
    if blob.size > MAX_BYTES:
        raise UserError(f"its {what} has {blob.size} bytes, a record holds {MAX_BYTES}: cut it")
    return blob.read()


def _require_image(data: bytes, what: str) -> tuple[int, int]:
    """Its height and width, upright as its EXIF tag says."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            found, (width, height) = image.format, image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except UnidentifiedImageError as error:  # whose own words have an address in memory
        raise UserError(f"its {what} is not an image, or is cut off") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"its {what} does not open ({reason(error)})") from error
    if found not in IMAGE_FORMATS:
        raise UserError(f"its {what} is {found}, not JPEG, PNG or WebP")
    return (width, height) if turned else (height, width)


def _people(text: str | bytes, height: int, width: int) -> Float32[np.ndarray, "p 17 3"]:
    """Persons in pixels of an image of height x width, from JSON: one of 17x3 or 51 numbers, or a list."""
    try:
        value = json.loads(text)
        value = value["keypoints"] if isinstance(value, dict) else value
        numbers = np.asarray(value, np.float32)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(f"its keypoints are not JSON of 17x3 numbers a person ({reason(error)})") from error
    if numbers.size == 0:
        raise UserError("has no person in its keypoints")
    if not (numbers.shape[-2:] == (17, 3) and numbers.ndim <= 3) and not (
        numbers.shape[-1:] == (51,) and numbers.ndim <= 2
    ):
        raise UserError(f"its keypoints have the shape {numbers.shape}, not (people, 17, 3)")
    people = numbers.reshape(-1, 17, 3)
    if not (np.abs(people) < 1e6).all():  # false for NaN too
        raise UserError("a number of its keypoints is not finite, or is beyond a million")
    sure = people[people[..., 2] >= MIN_CONFIDENCE]
    inside = (sure[:, :2] >= 0).all(1) & (sure[:, :2] < (width, height)).all(1)
    if not inside.any():
        raise UserError(
            f"no keypoint with a confidence of {MIN_CONFIDENCE} lies in the image of {width}x{height}"
        )
    if sure[:, :2].max() <= 1:
        raise UserError("its keypoints look like fractions of the image, they must be pixels")
    return people


Checked = Callable[[Iterable[Item]], Iterator[Outcome]]


@contextmanager
def _checking(kind: str, workers: int) -> Iterator[Checked]:
    """A map over items that keeps their order, on this many processes."""
    if workers == 1:
        yield partial(map, partial(check, kind))
        return
    # spawned: TFDS and FFmpeg have threads, which do not survive a fork
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_in_worker)
    try:
        yield partial(_in_order, pool, kind, AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, kind: str, ahead: int, items: Iterable[Item]) -> Iterator[Outcome]:
    waiting: deque[tuple[str, Future[Outcome]]] = deque()
    try:
        for item in itertools.chain(items, itertools.repeat(None)):
            if item is not None:
                waiting.append((item.name, pool.submit(check, kind, item)))
            elif not waiting:
                return
            if item is None or len(waiting) == ahead:
                outcome = waiting[0][1].result()
                waiting.popleft()
                yield outcome
    except BrokenProcessPool as error:
        where = f"{waiting[0][0]}: here, or up to {ahead} items on, " if waiting else ""
        raise UserError(
            f"{where}a checking process died, maybe for want of memory; start again to go on, "
            "fewer --workers need less"
        ) from error


def _in_worker() -> None:
    exit_with_parent(signal.SIGINT)  # the writing process ends us


# --- what is written -------------------------------------------------------------------------------------


def _survey(kind: str, source: Path, captions: Path | None, shard_bytes: int) -> tuple[int, str]:
    """How many items there are, and a digest of all that the outcome depends on."""
    digest = hashlib.sha256(json.dumps([kind, str(BUILDERS[kind].VERSION), shard_bytes]).encode())
    count = 0
    try:
        items = find_items(kind, source, captions)
        for item in tqdm(items, "listing", unit=" items", leave=False):
            count += 1
            fields = [
                (os.path.relpath(field.file, source), *field[1:]) if isinstance(field, Blob) else field
                for field in item
            ]
            digest.update(json.dumps(fields).encode())
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from error
    if count == 0:
        raise UserError(f"{source}: nothing is listed in it")
    return count, digest.hexdigest()


def _shard_name(kind: str, index: int) -> str:
    return f"{kind}-{SPLIT}.{FILE_FORMAT}-{index:05d}"


def _log_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.progress.jsonl")


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


@contextmanager
def _locked(target: Path) -> Iterator[IO[bytes]]:
    """The log of a run, for one process at a time; the lock ends with the process."""
    with open(_log_of(target), "a+b") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{target}: another run is making it") from error
        yield log


def _begun(log: IO[bytes], kind: str, work: Path, plan: str, overwrite: bool) -> list[_Shard]:
    """The shards that are complete, of a run of the same plan; nothing else is left in the log and folder."""
    log.seek(0)
    head, *lines = [line for line in log if line.endswith(b"\n")] or [b""]  # the last may be torn
    if head not in (b"", _line(plan)) and not overwrite:
        raise UserError(f"{work}: begun with other data or another size of shards; --overwrite begins anew")
    shards: list[_Shard] = []
    for line in lines if head == _line(plan) else []:
        shard, file = _Shard(**json.loads(line)), work / _shard_name(kind, len(shards))
        if shard.records and not (file.is_file() and file.stat().st_size == shard.file_bytes):
            break
        shards.append(shard)
    if head == _line(plan):
        log.truncate(len(head) + sum(map(len, lines[: len(shards)])))
    else:
        log.truncate(0)
        log.write(_line(plan))
    _to_disk(log)
    work.mkdir(exist_ok=True)
    names = {_shard_name(kind, index) for index, shard in enumerate(shards) if shard.records}
    for file in work.iterdir():
        if file.name not in names:
            file.unlink()
    return shards


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _write_shard(path: Path, outcomes: Iterator[Outcome], shard_bytes: int, bar: tqdm) -> _Shard:
    """One shard of what comes next; it has its name once it is complete."""
    items = records = record_bytes = 0
    rejected: list[list[str]] = []
    digest = hashlib.sha256()

    def take() -> Iterator[tuple[int, bytes]]:
        nonlocal items, records, record_bytes
        for outcome in outcomes:
            items += 1
            bar.update()
            if outcome.rejected:
                rejected.append(list(outcome.rejected))
                continue
            records += 1
            record_bytes += len(outcome.record)
            digest.update(hashlib.sha256(outcome.record).digest())
            yield records, outcome.record
            if record_bytes >= shard_bytes:
                return

    unfinished = path.with_name(_UNFINISHED)
    try:
        tfds.core.ExampleWriter(tfds.core.FileFormat(FILE_FORMAT)).write(unfinished, take())
    except RuntimeError as error:  # array_record's, for a full disk too
        raise UserError(f"{unfinished}: cannot be written ({reason(error)})") from error
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    file_bytes = unfinished.stat().st_size if records else 0
    if records:
        unfinished.rename(path)
    else:
        unfinished.unlink()
    return _Shard(items, records, record_bytes, file_bytes, digest.hexdigest(), rejected)


def _write_metadata(kind: str, work: Path, shards: list[_Shard], rejected: list[Rejected], plan: str) -> None:
    """What TFDS and `open_records` read, and the list of what was refused."""
    _write_refused(work / REFUSED, rejected)
    builder = BUILDERS[kind]
    template = tfds.core.ShardedFileTemplate(
        data_dir=work,  # pyright: ignore[reportArgumentType]
        template=_TEMPLATE,
        dataset_name=kind,
        split=SPLIT,
        filetype_suffix=FILE_FORMAT,
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard.records for shard in shards],
        num_bytes=sum(shard.record_bytes for shard in shards),
        filename_template=template,
    )
    summary = {
        "digest": hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest(),
        "shard_bytes": [shard.file_bytes for shard in shards],
        "source": plan,
    }
    tfds.folder_dataset.write_metadata(
        data_dir=work,
        features=builder.FEATURES,
        split_infos=[split],
        version=str(builder.VERSION),
        filename_template=template,
        check_data=False,  # it would take TensorFlow
        description=inspect.cleandoc(builder.__doc__ or ""),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(summary),
    )


def _replace(target: Path, work: Path) -> None:
    replaced = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    work.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_refused(file: Path, rejected: Iterable[Rejected]) -> None:
    with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([Rejected._fields, *rejected])


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / SUMMARY
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}


def _report(folder: Path, *, new: bool) -> Report:
    with open(folder / REFUSED, encoding="utf-8", newline="") as text:
        rejected = [Rejected(*row) for row in itertools.islice(csv.reader(text), 1, None)]
    split = tfds.builder_from_directory(folder).info.splits[SPLIT]
    size = sum(_summary(folder)["shard_bytes"])
    return Report(folder, split.num_examples, split.num_shards, size, rejected, new)
