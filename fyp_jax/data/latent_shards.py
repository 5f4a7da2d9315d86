"""Writing of cached latents: a group of records becomes one shard of clips and one of frames, or nothing.

The functions that encode are arguments: this module knows no model and no device.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.data.config import DataConfig
from fyp_jax.data.example_source import RecordSource
from fyp_jax.data.latent_parts import ClipInfo, decode_parts
from fyp_jax.data.latents import (
    CLIPS,
    EMPTY_TEXT_FILE,
    FRAMES,
    VERSION,
    CacheSpec,
    clip_features,
    frame_features,
)
from fyp_jax.data.shard_files import serialize, shard_name, write_shard_file, write_tfds_metadata
from fyp_jax.media.images import Frames

FrameLatents = tuple[Float[np.ndarray, "h w c"], Float[np.ndarray, "h w c"]]
"""Mean and standard deviation of a frame."""
EncodeFrames = Callable[[Iterator[Frames]], Iterator[FrameLatents]]
"""Frames, in parts of any length -> latents of each frame, in order."""
EncodeTexts = Callable[[list[str]], Float[np.ndarray, "n l d"]]


class ShardFile(NamedTuple):
    """One complete shard of one of the two datasets."""

    records: int
    record_bytes: int
    file_bytes: int
    digest: str
    """SHA-256 over the records."""


class Group(NamedTuple):
    """One complete group, as its file in `done/` has it."""

    clips: ShardFile
    frames: ShardFile
    seconds: float
    """Duration of the videos of which the speed is known."""
    timed_frames: int
    """Frames of these videos."""
    problems: int
    """Records that cannot be decoded."""


def write_group(
    work: Path,
    index: int,
    spec: CacheSpec,
    records: RecordSource,
    config: DataConfig,
    encode_frames: EncodeFrames,
    encode_texts: EncodeTexts,
    on_clip: Callable[[], object],
) -> Group:
    """Write the shards of group `index` below the folder `work`, and then the file that says they are whole.

    Raises RecordsError for a record that cannot be read, UserError where a file cannot be written.
    """
    clips: list[ClipInfo] = []
    first_record = index * spec.records_per_shard
    rows = range(first_record, min(first_record + spec.records_per_shard, len(records)))

    def frames() -> Iterator[Frames]:
        total = 0
        for part in decode_parts((records[row] for row in rows), spec.kind, config):
            clip = part.clip
            if not clips or clip is not clips[-1]:
                clips.append(clip)
                clip.first = total
                on_clip()
            if part.frames is None:
                clip.problem = clip.problem or part.problem
                continue
            clip.frames, clip.pose = clip.frames + len(part.frames), part.pose
            total += len(part.frames)
            yield part.frames

    features = frame_features(spec)
    serialized = (serialize(features, {"mean": mean, "std": std}) for mean, std in encode_frames(frames()))
    frames_file = _write_shard(work / FRAMES / shard_name(FRAMES, index), serialized)
    serialized = _serialized_clips(clips, index, spec, encode_texts)
    clips_file = _write_shard(work / CLIPS / shard_name(CLIPS, index), serialized)
    timed = [clip for clip in clips if clip.fps > 0]
    group = Group(
        clips_file,
        frames_file,
        sum(clip.frames / clip.fps for clip in timed),
        sum(clip.frames for clip in timed),
        sum(bool(clip.problem) for clip in clips),
    )
    done = group_file(work, index)
    done.parent.mkdir(parents=True, exist_ok=True)
    unfinished = done.with_suffix(".unfinished")
    with open(unfinished, "w") as file:
        json.dump([list(group.clips), list(group.frames), *group[2:]], file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(done)
    return group


def group_file(work: Path, index: int) -> Path:
    """The file that says that a group is whole."""
    return work / "done" / f"{index:05d}.json"


def read_group(work: Path, index: int) -> Group | None:
    """A group that is whole; None for one that is not, or whose shards are not as they were written."""
    try:
        clips, frames, *rest = json.loads(group_file(work, index).read_text())
        group = Group(ShardFile(*clips), ShardFile(*frames), *rest)
        sizes = [(work / name / shard_name(name, index)).stat().st_size for name in (CLIPS, FRAMES)]
    except (OSError, ValueError, TypeError):
        return None
    return group if sizes == [group.clips.file_bytes, group.frames.file_bytes] else None


def finish(
    out: Path, work: Path, spec: CacheSpec, groups: list[Group], empty_text: Float[np.ndarray, "l d"]
) -> None:
    """Write the metadata of both datasets, and move them from `work` to their places below `out`."""
    frames: dict[str, Any] = {"digest": _digest(group.frames.digest for group in groups)}
    clips: dict[str, Any] = {
        "digest": _digest([frames["digest"], *(group.clips.digest for group in groups)]),
        "frames_digest": frames["digest"],
        "cache": spec._asdict(),
        "seconds": sum(group.seconds for group in groups),
        "timed_frames": sum(group.timed_frames for group in groups),
        "problems": sum(group.problems for group in groups),
    }
    np.save(work / CLIPS / EMPTY_TEXT_FILE, empty_text)
    for name, features, summary, files in (
        (FRAMES, frame_features(spec), frames, [group.frames for group in groups]),
        (CLIPS, clip_features(spec), clips, [group.clips for group in groups]),
    ):
        write_tfds_metadata(
            work / name,
            name,
            VERSION,
            features,
            "Latents and text embeddings that scripts/cache_latents.py made.",
            [file.records for file in files],
            sum(file.record_bytes for file in files),
            {**summary, "shard_bytes": [file.file_bytes for file in files]},
        )
    for name in (CLIPS, FRAMES):  # a cache without its clips is none, so they go first and come last
        shutil.rmtree(out / name, ignore_errors=True)
    _move(out, work)


def finish_moving(out: Path, work: Path) -> None:
    """Do what is left of a `finish` that was killed between its two moves."""
    moved = (out / FRAMES / VERSION).is_dir() and not (work / FRAMES).exists()
    if moved and (work / CLIPS / "dataset_info.json").is_file():
        _move(out, work)


def _move(out: Path, work: Path) -> None:
    for name in (FRAMES, CLIPS):
        if (work / name).exists():
            (out / name).mkdir(exist_ok=True)
            (work / name).rename(out / name / VERSION)
    shutil.rmtree(work)


def _serialized_clips(
    clips: list[ClipInfo], shard: int, spec: CacheSpec, encode_texts: EncodeTexts
) -> Iterator[bytes]:
    features = clip_features(spec)
    unique = {text: 0 for clip in clips for text in clip.captions}
    unique = {text: number for number, text in enumerate(unique)}
    embeddings = encode_texts(list(unique))
    for clip in clips:
        example = {
            "name": clip.name,
            "problem": clip.problem,
            "shard": shard,
            "first": clip.first,
            "frames": 0 if clip.problem else clip.frames,
            "fps": clip.fps,
            "pose": clip.pose,
            "caption_frames": np.asarray(clip.caption_frames, np.int64),
            "text": embeddings[[unique[text] for text in clip.captions]],
        }
        yield serialize(features, example)


def _write_shard(path: Path, examples: Iterator[bytes]) -> ShardFile:
    records = record_bytes = 0
    digest = hashlib.sha256()

    def counted() -> Iterator[bytes]:
        nonlocal records, record_bytes
        for example in examples:
            records += 1
            record_bytes += len(example)
            digest.update(hashlib.sha256(example).digest())
            yield example

    path.parent.mkdir(parents=True, exist_ok=True)
    file_bytes = write_shard_file(path, counted())
    return ShardFile(records, record_bytes, file_bytes, digest.hexdigest())


def _digest(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()
