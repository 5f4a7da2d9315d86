"""One clip with its caption as the data of a run: no records, and the same frames in each example.

Tune-A-Video (Wu et al. 2023) trains on such a clip. `data.video` and `data.caption` name it.
"""

from typing import Any

import numpy as np

from fyp_jax.data.config import ONE_CLIP, DataConfig
from fyp_jax.data.decoding import Record, Sample
from fyp_jax.media.clips import find_clip, read_clip
from fyp_jax.media.images import Frames, frames_crc32


class OneClipSource:
    """A source with a single record, which was decoded before. It can be pickled."""

    kind = ONE_CLIP

    def __init__(self, frames: Frames, caption: str):
        self.frames, self.caption = frames, caption
        self.fingerprint = f"one clip of {len(frames)} frames, {frames_crc32(frames):08x}, {caption!r}"

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The name of the record. Raises IndexError for an index out of range."""
        if index != 0:
            raise IndexError(f"record {index} of 1")
        return {"name": self.caption}

    def check(self, config: DataConfig) -> None:
        """Nothing to refuse: the clip was read for this config."""

    def render(self, record: Record, config: DataConfig, rng: np.random.Generator, with_pose: bool) -> Sample:
        """The clip, whatever the random numbers are."""
        return Sample(self.frames, None, self.caption)

    def __repr__(self) -> str:  # Grain compares it when it restores an iterator
        return f"OneClipSource({self.fingerprint})"


def open_one_clip(config: DataConfig) -> OneClipSource:
    """The clip of `data.video`: frames start, start + stride, ..., scaled to cover height x width and
    cropped to the centre.

    Raises UserError for a config without a clip or a caption, and as `read_frames`, e.g. ClipTooShort.
    """
    config.check_source(ONE_CLIP)
    assert config.video is not None
    assert config.caption is not None
    frames = read_clip(
        find_clip(config.video),
        num_frames=config.num_frames,
        stride=config.stride,
        start=config.start,
        height=config.height,
        width=config.width,
    )
    return OneClipSource(frames, config.caption)
