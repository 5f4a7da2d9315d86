"""Cached latents as a source of examples: what the frozen encoders made of frames and captions.

A cache is a folder with two TFDS datasets. `latent_clips` has one record for each record of the dataset that
was encoded, in its order; `latent_frames` has one for each frame, so that a window reads no more than its
frames. `training.latent_cache` writes them.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from fyp_jax.data.config import NO_RANDOM_CROP, DataConfig
from fyp_jax.data.datasets import RecordsError, open_dataset, read_record
from fyp_jax.data.decoding import (
    CorruptRecordError,
    LatentSample,
    Record,
    decode_picture,
    nearest_caption,
    sample_window,
)
from fyp_jax.errors import UserError, reason

CLIPS, FRAMES = "latent_clips", "latent_frames"
"""Names of the two datasets."""
VERSION = "1.0.0"
EMPTY_TEXT_FILE = "empty_text.npy"
"""File in the folder of `latent_clips`: text embeddings of the empty text, [l d]."""
_BYTES = tfds.features.Encoding.BYTES


class CacheSpec(NamedTuple):
    """What a cache was made of and for, as its metadata have it."""

    kind: str
    """Kind of the records that were encoded: "captioned_videos" or "pose_images"."""
    records: str
    """Fingerprint of these records."""
    height: int
    """Pixels of the frames that were encoded: scaled to cover height x width, then center-cropped."""
    width: int
    encoders: dict[str, str]
    """Checksums of all that latents and text embeddings depend on (`training.encoder_checksums`)."""
    computed_in: str
    """Dtypes of activations and of weights."""
    stored_in: str
    """Dtype of the stored arrays."""
    latent: list[int]
    """Shape of a frame's mean: height, width, channels."""
    text: list[int]
    """Shape of a caption's text embeddings: tokens, channels."""
    records_per_shard: int


def clip_features(spec: CacheSpec) -> tfds.features.FeaturesDict:
    """Features of `latent_clips`.

    A clip has `frames` frames, from record `first` of shard `shard` of `latent_frames` on. `problem` is
    empty, or the reason why the clip cannot be decoded. `pose` is a PNG of the skeleton, for images. `text`
    has the text embeddings of each caption.
    """
    return tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "problem": tfds.features.Text(),
            "shard": tfds.features.Scalar(np.int64),
            "first": tfds.features.Scalar(np.int64),
            "frames": tfds.features.Scalar(np.int64),
            "fps": tfds.features.Scalar(np.float32),
            "pose": tfds.features.Scalar(np.object_),
            "caption_frames": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "text": tfds.features.Tensor(
                shape=(None, *spec.text), dtype=np.dtype(spec.stored_in), encoding=_BYTES
            ),
        }
    )


def frame_features(spec: CacheSpec) -> tfds.features.FeaturesDict:
    """Features of `latent_frames`: mean and standard deviation of the VAE's posterior, unscaled."""
    tensor = tfds.features.Tensor(shape=tuple(spec.latent), dtype=np.dtype(spec.stored_in), encoding=_BYTES)
    return tfds.features.FeaturesDict({"mean": tensor, "std": tensor})


class DiskSize(NamedTuple):
    """What a cache takes on disk."""

    total: int
    """Bytes of all shards."""
    frames: int
    fps: float
    """Frames per second, on average over the videos that say theirs; 0 where none does."""
    problems: int
    """Records that cannot be decoded."""


class LatentSource:
    """The clips of a cache: random access to what `clip_features` lists, and `render`. It can be pickled."""

    def __init__(
        self,
        path: Path,
        spec: CacheSpec,
        clips: Any,
        frames: Any,
        shard_lengths: list[int],
        empty_text: Float[np.ndarray, "l d"],
        digest: str,
        disk_size: DiskSize,
    ):
        self.path, self.spec, self.kind, self.empty_text = path, spec, spec.kind, empty_text
        self.fingerprint = (
            f"latents of {spec.height}x{spec.width} in {spec.stored_in}, {digest[:16]}, of {spec.records}"
        )
        self._clips, self._frames = clips, frames
        self._starts = np.cumsum([0, *shard_lengths])
        self.disk_size = disk_size

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record of `latent_clips`. Raises RecordsError, and IndexError for an index out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = read_record(self.path / CLIPS, self._clips, index)
        return {**record, "name": record["name"].decode(), "problem": record["problem"].decode()}

    def check(self, config: DataConfig) -> None:
        """Raise UserError for frames of another size or crop than those that were encoded."""
        if config.random_crop is not None:
            raise UserError(f"data.random_crop={config.random_crop}: {NO_RANDOM_CROP}")
        for name in ("height", "width"):
            if (found := getattr(config, name)) != (made := getattr(self.spec, name)):
                raise UserError(
                    f"{self.path}: the latents are of frames of {self.spec.height}x{self.spec.width}, but "
                    f"data.{name}={found}; set data.{name}={made}, or cache latents of that size"
                )

    def check_encoders(self, checksums: dict[str, str]) -> None:
        """Raise UserError where the encoders of a run are not those that made the latents."""
        differing = [name for name, made in self.spec.encoders.items() if checksums.get(name) != made]
        if differing:
            names = " and ".join(name.replace("_", " ") for name in differing)
            raise UserError(
                f"{self.path}: the latents are of another pipeline: its {names} "
                f"{'differs' if len(differing) == 1 else 'differ'} from this run's; use the pretrained and "
                "init_checkpoint that they were cached with, or cache them again"
            )

    def render(
        self, record: Record, config: DataConfig, rng: np.random.Generator, with_pose: bool
    ) -> LatentSample:
        """The latents of the window that `decode_video` would choose, or of the image.

        Raises CorruptRecordError for a record that could not be decoded, and ClipTooShort.
        """
        name = record["name"]
        if record["problem"]:
            raise CorruptRecordError(name, record["problem"])
        text, pose_images = record["text"], None
        if self.kind == "pose_images":
            window, caption = range(1), 0
            if with_pose:
                pose_images = decode_picture(record["pose"], name, "skeleton", background="black")[None]
        else:
            if not len(text):
                raise CorruptRecordError(name, "has no caption")
            window = sample_window(
                rng,
                name,
                video_length=int(record["frames"]),
                num_frames=config.num_frames,
                stride=config.stride,
            )
            caption = nearest_caption(record["caption_frames"], window)
        first = int(self._starts[record["shard"]]) + int(record["first"])
        frames = [read_record(self.path / FRAMES, self._frames, first + index) for index in window]
        mean, std = (np.stack([frame[part] for frame in frames]) for part in ("mean", "std"))
        return LatentSample(mean, std, text[caption], pose_images)

    def blank(self, config: DataConfig, with_pose: bool) -> LatentSample:
        """Latents of 0, without a caption, and a black skeleton."""
        zeros = np.zeros((config.num_frames, *self.spec.latent), self.spec.stored_in)
        black = np.zeros((config.num_frames, config.height, config.width, 3), np.uint8)
        return LatentSample(zeros, zeros, None, black if with_pose else None)

    def __repr__(self) -> str:  # Grain compares it when it restores an iterator
        return f"LatentSource({self.fingerprint})"


def open_latents(path: str | os.PathLike[str]) -> LatentSource:
    """Open the cache of a folder that scripts/cache_latents.py wrote.

    Raises RecordsError where there is none, or where it is unfinished, damaged or incomplete.
    """
    folder = Path(path)
    clips_folder, frames_folder = folder / CLIPS / VERSION, folder / FRAMES / VERSION
    if "://" in os.fspath(path) or not (clips_folder / "dataset_info.json").is_file():
        unfinished = (folder / "latents.incomplete").is_dir()
        hint = "run the same command again" if unfinished else "make them with scripts/cache_latents.py"
        raise RecordsError(path, f"data.cached_latents=true, but it holds no cached latents; {hint}")
    clips = open_dataset(clips_folder)
    if not frames_folder.is_dir():
        raise RecordsError(folder, f"{FRAMES} is missing; cache the latents again")
    frames = open_dataset(frames_folder)
    try:
        spec = CacheSpec(**clips.summary["cache"])
        if frames.digest != clips.summary["frames_digest"]:
            raise ValueError(f"{CLIPS} and {FRAMES} are of two caches")
        empty_text = np.load(clips_folder / EMPTY_TEXT_FILE)
        if list(empty_text.shape) != spec.text:
            raise ValueError(f"{EMPTY_TEXT_FILE} has the shape {empty_text.shape}")
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise RecordsError(folder, f"its metadata cannot be read ({reason(error)})") from error
    for dataset, features in ((clips, clip_features(spec)), (frames, frame_features(spec))):
        if repr(dataset.builder.info.features) != repr(features):
            raise RecordsError(folder, "its features are not those of cached latents; cache them again")
    lengths, seconds = list(frames.split.shard_lengths), clips.summary["seconds"]
    size = DiskSize(
        sum(clips.summary["shard_bytes"]) + sum(frames.summary["shard_bytes"]),
        sum(lengths),
        clips.summary["timed_frames"] / seconds if seconds else 0.0,
        clips.summary["problems"],
    )
    return LatentSource(folder, spec, clips.source, frames.source, lengths, empty_text, clips.digest, size)
