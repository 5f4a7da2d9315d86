"""The frozen encoders on all devices of a process, over any number of frames and texts."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax.data.collate import to_float
from fyp_jax.data.latent_shards import FrameLatents
from fyp_jax.errors import UserError
from fyp_jax.media.images import Frames
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.types import Params

TEXTS_PER_DEVICE = 8


class MeshEncoders:
    """VAE and text encoder: each device has all weights, and gets its part of a batch of one size.

    Results are in `dtype`, in which they are stored. Raises UserError where one is not finite in it.
    """

    def __init__(self, encoders: LatentEncoders, params: Params, frames_per_device: int, dtype: str):
        devices = jax.local_devices()
        mesh = Mesh(np.asarray(devices), ("devices",))
        rows, whole = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())
        self._rows = rows
        self._params = jax.device_put(dict(params), whole)
        self._frame_count = frames_per_device * len(devices)
        self._text_count = TEXTS_PER_DEVICE * len(devices)
        self._encoders, self._dtype = encoders, np.dtype(dtype)
        compiled = functools.partial(jax.jit, in_shardings=(whole, rows), out_shardings=rows)
        self._posterior = compiled(functools.partial(_posterior, encoders))
        self._encode_text = compiled(functools.partial(_encode_text, encoders))

    def frames(self, parts: Iterator[Frames]) -> Iterator[FrameLatents]:
        """Mean and deviation of each frame's posterior, in order.

        The devices encode one batch while the host decodes the next.
        """
        running: tuple[Any, int] | None = None
        for frames, count in self._batches(parts):
            dispatched = self._posterior(self._params, self._placed(to_float([frames])[0])), count
            if running is not None:
                yield from self._stored(*running)
            running = dispatched
        if running is not None:
            yield from self._stored(*running)

    def texts(self, texts: list[str]) -> Float[np.ndarray, "n l d"]:
        """Text embeddings of each text."""
        sizes = self._encoders.spec
        found = [np.zeros((0, sizes.tokens, sizes.text_width), self._dtype)]
        for start in range(0, len(texts), self._text_count):
            part = texts[start : start + self._text_count]
            padded = part + [""] * (self._text_count - len(part))
            ids = np.concatenate([self._encoders.tokenize(text)[0] for text in padded])
            embeddings = np.asarray(self._encode_text(self._params, self._placed(ids)))
            found.append(self._cast(embeddings[: len(part)], "text embeddings"))
        return np.concatenate(found)

    def _placed(self, array: np.ndarray) -> jax.Array:
        """An array divided over the devices of this process. `jit` divides none of the host where there are
        several processes."""
        return jax.device_put(array, self._rows)

    def _batches(self, parts: Iterator[Frames]) -> Iterator[tuple[Frames, int]]:
        """Batches of one size, and the frames of each that count; the last is filled up with its last
        frame."""
        waiting: list[Frames] = []
        for part in parts:
            waiting.append(part)
            while sum(map(len, waiting)) >= self._frame_count:
                frames = np.concatenate(waiting)
                yield frames[: self._frame_count], self._frame_count
                waiting = [frames[self._frame_count :]]
        if count := sum(map(len, waiting)):
            frames = np.concatenate(waiting)
            yield np.concatenate([frames, np.repeat(frames[-1:], self._frame_count - count, axis=0)]), count

    def _stored(self, latents: Any, count: int) -> Iterator[FrameLatents]:
        mean, std = (self._cast(np.asarray(x)[:count], "latents") for x in latents)
        yield from zip(mean, std, strict=True)

    def _cast(self, array: np.ndarray, what: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            stored = array.astype(self._dtype)
        if not np.isfinite(stored).all():
            hint = "; use --dtype float32" if np.isfinite(array).all() else ""
            raise UserError(f"{what} are not finite in {self._dtype}{hint}")
        return stored


def _posterior(
    encoders: LatentEncoders, params: Params, frames: Float[Array, "n H W 3"]
) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w c"]]:
    mean, std = encoders.posterior(params, frames[:, None])
    return jnp.asarray(mean[:, 0], jnp.float32), jnp.asarray(std[:, 0], jnp.float32)


def _encode_text(encoders: LatentEncoders, params: Params, ids: Int[Array, "n l"]) -> Float[Array, "n l d"]:
    return jnp.asarray(encoders.encode_text(params, ids), jnp.float32)
