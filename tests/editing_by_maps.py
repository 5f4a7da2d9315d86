"""Edits as the published codes make them, by attention maps: what tests of whole edits compare with.

Nothing here is fast, and nothing of `fyp_jax/editing/` is used but the tables of the texts, which have tests
of their own. A layer's maps are made, changed and multiplied by the values; the loop follows the papers.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.models.attention_functions import concat_kv
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.layer_forms import LayerForms
from fyp_jax.models.unet import UNet3D, UNet3DConfig

TEXT_LEVELS = {"fatezero": 1, "p2p": 0, "generate": 0}
"""The first level at which a method edits text attention."""


class Case(NamedTuple):
    """An edit of one source into k targets."""

    method: str
    steps: int
    cross: tuple[np.ndarray, np.ndarray]
    """A [steps k l l] and b [steps k l]."""
    self_steps: float
    words: np.ndarray | None
    """Blend words of source and targets, [1 + k, l]; None: no blending."""
    threshold: float
    guidance: float
    blend_self: bool = False


@functools.partial(jax.jit, static_argnames=("config", "size", "first", "targets"))
def predict_by_maps(
    config: UNet3DConfig,
    params: Any,
    batch: jax.Array,
    t: jax.Array,
    text: jax.Array,
    cross: tuple[jax.Array, jax.Array],
    own: Sequence[jax.Array],
    words: jax.Array,
    size: tuple[int, int, int],
    first: int,
    targets: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The UNet's prediction where maps of the last rows are edited; and maps of the words at level 0, of
    source and targets, before and after the edit."""
    frames, height, width = size
    before, after = [], []

    def attention(q: jax.Array, keys: Sequence[jax.Array], values: Sequence[jax.Array]) -> jax.Array:
        k, v = (concat_kv(parts, q.shape[1]) for parts in (keys, values))
        scores = jnp.einsum("gfnhd,gfmhd->gfhnm", q, k) * q.shape[-1] ** -0.5
        maps = jax.nn.softmax(scores, axis=-1)
        source, rows = maps[-targets - 1 :][:1], maps[-targets:]
        if k.shape[2] == text.shape[1]:  # to the text: the pixels of all frames are queries
            pixels = q.shape[2] // frames
            level = 0 if pixels == height * width else 1
            a, b = cross
            if level >= first:
                edited = jnp.einsum("gfhni,kij->kfhnj", source, a) + rows * b[:, None, None, None]
                maps = jnp.concatenate([maps[:-targets], edited])
            if level == 0:
                for found, left in ((jnp.concatenate([source, rows]), before), (maps[-targets - 1 :], after)):
                    left.append(jnp.einsum("rfhnl,rl->rn", found, words) / found.shape[2])
        elif len(keys) == 2:  # within and across frames
            level = 0 if q.shape[2] == height * width else 1
            mask = own[level][:, :, None, :, None]
            maps = jnp.concatenate([maps[:-targets], jnp.where(mask, rows, source)])
        return jnp.einsum("gfhnm,gfmhd->gfnhd", maps, v)

    unet = UNet3D(config, ExecutionConfig(forms=LayerForms(attention)))
    out = unet.apply({"params": params}, batch, jnp.broadcast_to(t, len(batch)), text)
    mean = [sum(left) / len(left) for left in (before, after)]
    pictures = [rearrange(x, "r (f h w) -> r f h w", f=frames, h=height) for x in mean]
    return out, *pictures  # pyright: ignore


def nearest(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Changes the size as torch.nn.functional.interpolate does it by default."""
    rows = [int(np.floor(i * picture.shape[-2] / height)) for i in range(height)]
    columns = [int(np.floor(i * picture.shape[-1] / width)) for i in range(width)]
    return picture[..., rows, :][..., columns]


def mask_of(picture: np.ndarray, threshold: float, height: int, width: int) -> np.ndarray:
    """The mask of each frame, [f h w]."""
    frames = []
    for frame in picture:
        padded = np.pad(frame, 1, constant_values=-np.inf)
        squares = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
        pooled = nearest(squares.max(axis=(-1, -2)), height, width)
        frames.append(pooled / pooled.max() > threshold)
    return np.stack(frames)


def edit_by_maps(
    case: Case,
    config: UNet3DConfig,
    params: Any,
    trajectory: np.ndarray,
    text: np.ndarray,
    negative: np.ndarray,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Clean latents of all rows (those of a generated source first), and the masks of blending.

    `trajectory` are the inverted latents z*_0 .. z*_T, of which a generated source takes z*_T alone.
    """
    steps, schedule, targets = case.steps, ScheduleConfig(), len(text) - 1
    generated = case.method == "generate"
    _, frames, height, width, _ = trajectory.shape
    table = ddim.make_ddim_schedule(schedule, steps)
    z = np.stack([trajectory[-1]] * (targets + generated))
    sums, masks = 0.0, []
    predict = functools.partial(
        predict_by_maps,
        config,
        params,
        size=(frames, height, width),
        first=TEXT_LEVELS[case.method],
        targets=targets,
    )
    for k in range(steps):
        t = jnp.asarray(table.t[k])
        source = [] if generated else [trajectory[steps - 1 - k][None]]
        batch = np.concatenate([z, *source, z])
        texts = np.concatenate([np.repeat(negative, len(z), axis=0), text])
        words = np.zeros(text.shape[:2], np.float32) if case.words is None else case.words
        sizes = [height * width, height * width // 4]
        own = [np.ones((targets, frames, n), bool) for n in sizes]
        if k < int(steps * case.self_steps):
            own = [np.zeros_like(x) for x in own]
            if case.blend_self:
                a, b = np.zeros_like(case.cross[0][k]), np.ones_like(case.cross[1][k])
                _, plain, _ = predict(batch, t, texts, (a, b), own, words)
                for level in (0, 1):
                    side = height >> level, width >> level
                    mask = mask_of(np.asarray(plain[0]), case.threshold, *side).reshape(frames, -1)
                    own[level] = np.broadcast_to(mask, own[level].shape)
        out, before, after = predict(batch, t, texts, (case.cross[0][k], case.cross[1][k]), own, words)
        uncond, cond = out[: len(z)], out[-len(z) :]
        guided = uncond + case.guidance * (cond - uncond)
        z = np.array(ddim.step(lambda z, t, eps=guided: eps, jnp.asarray(z), k, table, schedule))
        if case.words is None:
            continue
        sums = sums + np.asarray(before if case.method == "fatezero" else after)
        if case.method == "fatezero":
            active, source_map, kept = int(0.2 * steps) < k + 1 < int(0.8 * steps), before[0], steps - k
        else:
            active, source_map, kept = k + 1 > int(0.2 * steps), sums[0], steps - k - 1
        background = z[0] if generated else trajectory[kept]
        for row in range(targets if active else 0):
            mask = mask_of(np.asarray(source_map), case.threshold, height, width)
            mask |= mask_of(sums[1 + row], case.threshold, height, width)
            masks.append(mask)
            z[row + generated] = np.where(mask[..., None], z[row + generated], background)
    return z, masks
