"""From the samples of some clips to one batch of floats."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float32, Int32

from fyp_jax.data.decoding import LatentSample, Sample
from fyp_jax.media.images import Frames
from fyp_jax.types import Batch, LatentBatch

Tokenize = Callable[[str], Int32[np.ndarray, " l"]]
"""A caption -> its token ids."""


def collate_clips(samples: Sequence[Sample], tokenize: Tokenize) -> Batch:
    """The batch of decoded clips; `tokenize` gives the token ids of a caption."""
    video = to_float([sample.video for sample in samples])
    return Batch(video, np.stack([tokenize(sample.caption) for sample in samples]), _pose_images(samples))


def collate_latents(samples: Sequence[LatentSample], empty_text: Float[np.ndarray, "l d"]) -> LatentBatch:
    """The float32 batch of cached latents; `empty_text` are the text embeddings of a dropped caption."""
    mean, std = (
        np.stack([getattr(sample, name) for sample in samples], dtype=np.float32, casting="unsafe")
        for name in ("mean", "std")
    )
    texts = [empty_text if sample.text is None else sample.text for sample in samples]
    text = np.stack(texts, dtype=np.float32, casting="unsafe")
    return LatentBatch(mean, std, text, _pose_images(samples))


def to_float(videos: Sequence[Frames]) -> Float32[np.ndarray, "b f H W 3"]:
    """RGB in 0..255 -> RGB in [-1, 1], as the VAE takes it."""
    video = np.stack(videos, dtype=np.float32, casting="unsafe")
    video /= 127.5
    video -= 1
    return video


def _pose_images(
    samples: Sequence[Sample] | Sequence[LatentSample],
) -> Float32[np.ndarray, "b f H W 3"] | None:
    poses = [sample.pose_images for sample in samples if sample.pose_images is not None]
    return np.stack(poses, dtype=np.float32, casting="unsafe") / 255 if poses else None
