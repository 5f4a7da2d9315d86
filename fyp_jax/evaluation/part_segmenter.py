"""A small network that says which part of a figure each pixel of a frame shows.

It is trained on drawings of the synthetic world with their label maps (`scripts/train_part_segmenter.py`), so
it knows open characters, whose clothes no rendering can be compared with. Its weights are bundled.
"""

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Float, UInt8
from safetensors.flax import load_file

from fyp_jax.media.images import Frames
from fyp_jax.synthetic.parts import PARTS
from fyp_jax.synthetic.scenes import FIRST_MOVER_LABEL, PERSON_LABELS

WEIGHTS = Path(__file__).parents[1] / "assets" / "part_segmenter.safetensors"
CLASSES = len(PARTS) + 1
"""The place, with all that moves there, and then the parts in the order of PARTS."""
WIDTHS = (16, 32, 48, 64)
BATCH = 16
"""Frames that are segmented at a time."""


class PartSegmenter(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with four levels: [n h w 3] in [-1, 1] -> logits [n h w classes]."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n h w c"]:
        skips = []
        for level, width in enumerate(WIDTHS):
            x = self._convolve(x, width, 2 if level else 1)
            x = self._convolve(x, width, 1)
            skips.append(x)
        for width, skip in zip(WIDTHS[-2::-1], skips[-2::-1], strict=True):
            x = jnp.concatenate([x.repeat(2, axis=1).repeat(2, axis=2), skip], axis=-1)
            x = self._convolve(x, width, 1)
        return nn.Dense(CLASSES)(x)

    def _convolve(self, x: Array, width: int, stride: int) -> Array:
        x = nn.Conv(width, (3, 3), strides=stride, use_bias=False)(x)
        return nn.relu(nn.GroupNorm(num_groups=8)(x))


def part_classes(labels: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Classes of label maps: the parts of all people alike, and 0 for the place and what moves there."""
    return np.where(labels >= FIRST_MOVER_LABEL, 0, labels % PERSON_LABELS).astype(np.uint8)


def segment_parts(video: Frames) -> UInt8[np.ndarray, "f h w"]:
    """The most likely class of each pixel, by the bundled weights. Height and width are multiples of 8."""
    program, params = _program(), _bundled_weights()
    padded = np.concatenate([video, np.repeat(video[-1:], -len(video) % BATCH, axis=0)])
    batches = [np.asarray(program(params, padded[i : i + BATCH])) for i in range(0, len(padded), BATCH)]
    return np.concatenate(batches)[: len(video)]


@functools.cache
def _program() -> Any:
    model = PartSegmenter()

    def classes(params: Any, frames: Array) -> Array:
        logits = model.apply({"params": params}, frames.astype(jnp.float32) / 127.5 - 1)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)  # pyright: ignore[reportArgumentType]

    return jax.jit(classes)


@functools.cache
def _bundled_weights() -> Any:
    flat = {name: jnp.asarray(x, jnp.float32) for name, x in load_file(WEIGHTS).items()}
    return unflatten_dict(flat, sep="/")
