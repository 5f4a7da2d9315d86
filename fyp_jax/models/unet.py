"""The denoising UNet for clips: Stable Diffusion's UNet, inflated in time (Follow Your Pose, section 3.2)."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fyp_jax.compilation_cache import cached
from fyp_jax.models.attention_edit import LevelEdits
from fyp_jax.models.blocks import DownBlock, MidBlock, UpBlock
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.resnet import conv3x3, video_group_norm
from fyp_jax.models.unet_config import DOWN_BLOCKS, UP_BLOCKS, UNet3DConfig
from fyp_jax.types import FeatureMaps, Latents, TextEmbeddings

__all__ = [
    "TEMPORAL",
    "TEMPORAL_CONV",
    "UNet3D",
    "UNet3DConfig",
    "init_temporal",
    "init_unet",
    "timestep_embedding",
    "unet_shapes",
]

TEMPORAL = re.compile(r"\b(attn_temp|norm_temp|conv_temporal)\b")
"""Is found in the path of each parameter of a temporal module, which an image model does not have."""
TEMPORAL_CONV = re.compile(r"\bconv_temporal\b")
"""Is found in the paths of those that Tune-A-Video does not have either."""


def timestep_embedding(t: Int[Array, "b"] | Float[Array, "b"], width: int) -> Float[Array, "b {width}"]:
    """Sinusoids of periods 2 pi to 20000 pi, cosines first (Ho et al. 2020, no frequency shift)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nn.Module):
    """Linear, SiLU, Linear."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b {self.width}"]:
        hidden = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(hidden)


class UNet3D(nn.Module):
    """Predicts the noise (or v) in a clip of latents, from a timestep, a text and, optionally, a pose."""

    config: UNet3DConfig
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        config, widths, heads = self.config, self.config.block_out_channels, self.config.heads
        last = len(widths) - 1
        self.conv_in = conv3x3(widths[0], self.execution)
        self.time_embedding = TimestepMLP(config.time_width, self.execution.dtype)
        self.down_blocks = [
            DownBlock(config, width, head if DOWN_BLOCKS[kind] else None, i == last, self.execution)
            for i, (width, head, kind) in enumerate(zip(widths, heads, config.down_block_types, strict=True))
        ]
        self.mid_block = MidBlock(config, widths[-1], heads[-1], self.execution)
        self.up_blocks = [
            UpBlock(config, width, head if UP_BLOCKS[kind] else None, i == last, self.execution)
            for i, (width, head, kind) in enumerate(
                zip(widths[::-1], heads[::-1], config.up_block_types, strict=True)
            )
        ]
        self.conv_norm_out = video_group_norm(config, self.execution)
        self.conv_out = conv3x3(config.out_channels, self.execution)

    def __call__(
        self,
        latents: Latents,
        t: Int[Array, "b"],
        text: TextEmbeddings,
        pose_features: Sequence[FeatureMaps] | None = None,
        edit: LevelEdits | None = None,
    ) -> Latents:
        """The noise (or v) in `latents` at training timesteps `t` (0 to 999), in `execution.dtype`.

        `pose_features` are the feature maps of `PoseEncoder`, one for each level; None means a clip from text
        alone. Raises ValueError where their number is not the number of levels. `edit` edits attention at one
        step (`AttentionEdit`); None traces to the program without it.
        """
        levels = len(self.config.block_out_channels)
        edits = [(edit or {}).get(level) for level in range(levels)]
        poses = [None] * levels if pose_features is None else list(pose_features)
        if len(poses) != levels:
            raise ValueError(f"{len(poses)} pose features for {levels} levels")

        time = self.time_embedding(timestep_embedding(t, self.config.block_out_channels[0]))
        x = self.conv_in(latents)
        skips = [x]
        for block, pose, level_edit in zip(self.down_blocks, poses, edits, strict=True):
            x, new_skips = block(x, time, text, pose, level_edit)
            skips += new_skips
        x = self.mid_block(x, time, text, edits[-1])
        for block, level_edit in zip(self.up_blocks, edits[::-1], strict=True):
            x = block(x, skips, time, text, level_edit)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


def init_unet(config: UNet3DConfig, key: jax.Array) -> dict[str, Any]:
    """Newly initialised float32 parameters. Under `jax.jit`, XLA drops the forward pass."""
    side = 2 ** (len(config.block_out_channels) - 1)
    latents = jnp.zeros((1, 1, side, side, config.in_channels))
    text = jnp.zeros((1, 1, config.cross_attention_dim))
    return dict(UNet3D(config).init(key, latents, jnp.zeros(1, jnp.int32), text)["params"])


@functools.partial(jax.jit, static_argnames="config")
def init_temporal(config: UNet3DConfig, key: jax.Array) -> dict[str, Any]:
    """Newly initialised parameters, by path, of the temporal modules, which an image model does not have."""
    params = flatten_dict(init_unet(config, key), sep="/")
    return {path: leaf for path, leaf in params.items() if TEMPORAL.search(path)}


@functools.cache
def unet_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Nested shapes of the parameters; no parameter is computed."""

    def shapes() -> dict[str, Any]:
        return jax.eval_shape(lambda: init_unet(config, jax.random.key(0)))

    return cached("unet_shapes", {"config": str(config)}, shapes)
