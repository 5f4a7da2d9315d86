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
