"""Options of the training data."""

from dataclasses import dataclass

from fyp_jax.config import config_field
from fyp_jax.errors import UserError

ONE_CLIP = "one_clip"
"""Kind of a source that is a single clip, `video`, and no folder of records."""
SYNTHETIC = "synthetic://"
"""Paths that start with it are rendered (`data.synthetic_source`)."""
RECORDS = "records"
"""Folder of the records where `path` is null."""
NO_RANDOM_CROP = (
    "a random crop is another part of a frame at each step, so there is nothing to cache; set "
    "data.random_crop=null"
)


@dataclass
class DataConfig:
    """Which records a run trains on, which clips it takes from them, and how it loads them."""

    path: str | None = config_field(
        None,
        "folder of records, as scripts/prepare_data.py writes it; synthetic://pose_images and "
        f"synthetic://captioned_videos render the synthetic world instead; null: {RECORDS}",
    )
    cached_latents: bool = config_field(
        False, "`path` is a cache of latents that scripts/cache_latents.py wrote: no step runs the encoders"
    )
    video: str | None = config_field(None, "stage one_shot: the clip to train on, in place of records")
    caption: str | None = config_field(None, "stage one_shot: what that clip shows")
    start: int = config_field(0, "stage one_shot: first frame of that clip to take, counted from 0")
    num_frames: int = config_field(8, "frames per clip; 1 for images")
    stride: int = config_field(
        5,
        "take every n-th frame; of records, a video too short for that uses the largest stride that fits",
    )
    height: int = config_field(512, "pixels; frames are scaled to cover height x width, then center-cropped")
    width: int = config_field(512, "pixels")
    random_crop: int | None = config_field(
        None, "train on a random square of so many pixels of each clip; null: on whole frames"
    )
    batch_size: int = config_field(8, "clips per batch, over all processes")
    pool_size: int | None = config_field(
        None,
        "synthetic://...: render so many clips once, keep them in memory, and train on them again in a new "
        "order, as GPUs and TPUs train faster than workers render; null: render a new one each time",
    )
    workers: int = config_field(2, "decoding processes per host; 0 decodes in the training process")
    max_corrupt_fraction: float = config_field(
        0.01, "fraction of the records that may be corrupt before the run stops"
    )
    caption_dropout: float = config_field(
        0.0, "fraction of captions replaced by the empty text; 0.1 is usual for classifier-free guidance"
    )

    @property
    def clip_size(self) -> tuple[int, int]:
        """(height, width) of the clips of a batch, in pixels."""
        return (self.random_crop, self.random_crop) if self.random_crop else (self.height, self.width)

    @property
    def source(self) -> str:
        """The clip or the folder of records that the data come from."""
        return self.video or self.path or RECORDS

    def check_source(self, kind: str) -> None:
        """Raise UserError unless the fields name a source of this kind: ONE_CLIP, or else a kind of
        records."""
        if self.path is not None and self.video is not None:
            raise UserError(
                f"data.path={self.path} and data.video={self.video} exclude each other: leave one out"
            )
        if kind == ONE_CLIP:
            if self.video is None:
                raise UserError("this stage trains on one clip: give data.video=FILE and data.caption=TEXT")
            if not (self.caption or "").strip():
                raise UserError(f"{self.video}: has no caption; say what it shows with data.caption=TEXT")
            return
        for name in ("video", "caption", "start"):
            if getattr(self, name):
                raise UserError(
                    f"data.{name}={getattr(self, name)}: this stage trains on records, data.path=FOLDER; "
                    "stage=one_shot trains on one clip"
                )

    def check(self) -> None:
        """Raise UserError for values that have the right type and are out of range."""
        for name, minimum in (
            ("num_frames", 1),
            ("stride", 1),
            ("start", 0),
            ("height", 1),
            ("width", 1),
            ("batch_size", 1),
            ("workers", 0),
        ):
            if getattr(self, name) < minimum:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {minimum}")
        if self.pool_size is not None:
            if self.pool_size < 1:
                raise UserError(f"data.pool_size={self.pool_size} must be at least 1, or null")
            if not self.source.startswith(SYNTHETIC):
                raise UserError(
                    f"data.pool_size={self.pool_size}: {self.source} is not {SYNTHETIC}...; leave it out"
                )
        if self.random_crop is not None and not 1 <= self.random_crop <= min(self.height, self.width):
            raise UserError(
                f"data.random_crop={self.random_crop} is not between 1 and {min(self.height, self.width)}, "
                f"the smaller of data.height and data.width"
            )
        for name in ("max_corrupt_fraction", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name}={getattr(self, name)} is not between 0 and 1")
