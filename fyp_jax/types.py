"""Shapes that several packages share. Clips are channels-last everywhere: b f h w c.

Axes: b clips, f frames, h w rows and columns (of latents; H W of pixels), c channels,
n m tokens of a query and of what it attends to, l text tokens, d text width.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

Params = Mapping[str, Any]
"""Nested parameters of one Linen model, by diffusers' names."""

Latents = Float[Array, "b f h w c"]
"""VAE latents times the VAE's scaling factor, so that they have about unit variance."""

FeatureMaps = Float[Array, "b f _ _ _"]
"""Feature maps of a clip at some level of a network: height, width and channels are the level's."""

TextEmbeddings = Float[Array, "b l d"]
"""Last hidden states of the text encoder."""

DenoiseFn = Callable[[Latents, Int[Array, ""]], Latents]
"""(noisy latents, one timestep for all clips) -> what the model predicts, epsilon or v."""


class Batch(NamedTuple):
    """Input of a training step, from any dataset; an image is a clip of one frame."""

    video: Float[Array | np.ndarray, "b f H W 3"]
    """RGB in [-1, 1]."""
    input_ids: Int[Array | np.ndarray, "b l"]
    """Token ids of each clip's caption."""
    pose_images: Float[Array | np.ndarray, "b f H W 3"] | None = None
    """RGB in [0, 1] on black, or None for data without poses."""

    @property
    def num_frames(self) -> int:
        return self.video.shape[1]

    def latent_size(self, downscale: int) -> tuple[int, int]:
        """Height and width of the latents, for so many pixels per latent."""
        height, width = (side // downscale for side in self.video.shape[2:4])
        return height, width


class LatentBatch(NamedTuple):
    """Input of a training step on cached latents: what the frozen encoders made of a `Batch`."""

    mean: Float[Array | np.ndarray, "b f h w c"]
    """Mean of the VAE's posterior, not multiplied by the scaling factor."""
    std: Float[Array | np.ndarray, "b f h w c"]
    """Standard deviation of the posterior."""
    text: Float[Array | np.ndarray, "b l d"]
    """Text embeddings of each clip's caption."""
    pose_images: Float[Array | np.ndarray, "b f H W 3"] | None = None
    """RGB in [0, 1] on black, or None for data without poses."""

    @property
    def num_frames(self) -> int:
        return self.mean.shape[1]

    def latent_size(self, downscale: int) -> tuple[int, int]:
        """Height and width of the latents, whatever the number of pixels per latent."""
        height, width = self.mean.shape[2:4]
        return height, width
