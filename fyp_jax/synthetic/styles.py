"""The styles of the synthetic world: filters for a rendered image. None of them depends on a seed."""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Pixels = Float[np.ndarray, "h w 3"]
"""RGB in [0, 1]."""

BLOCKS = 16
"""Number of Minecraft blocks along a side of the image."""


def _plain(image: Pixels) -> Pixels:
    return image


def _sunset(image: Pixels) -> Pixels:
    """Warm light: more red, less blue, and a glow around the horizon."""
    height = np.linspace(0, 1, len(image))[:, None, None]
    glow = np.exp(-(((height - 0.45) / 0.25) ** 2)) * np.array([0.30, 0.10, -0.02])
    return image * np.array([0.86, 0.52, 0.46]) + np.array([0.08, 0.0, 0.04]) + glow


def _minecraft(image: Pixels) -> Pixels:
    """Square blocks of one colour each, lighter and darker in a checkerboard."""
    height, width = image.shape[:2]
    rows, columns = height // BLOCKS, width // BLOCKS
    blocks = image.reshape(BLOCKS, rows, BLOCKS, columns, 3).mean(axis=(1, 3))
    grey = blocks.mean(axis=-1, keepdims=True)
    blocks = np.clip(grey + 1.35 * (blocks - grey), 0, 1)
    image = blocks.repeat(rows, axis=0).repeat(columns, axis=1)
    checks = (np.indices((BLOCKS, BLOCKS)).sum(axis=0) % 2 * 2 - 1) * 0.035
    return image + checks.repeat(rows, axis=0).repeat(columns, axis=1)[..., None]


@functools.cache
def _strokes(height: int, width: int) -> np.ndarray:
    """Brightness of curls around three centres, from -1 to 1, [height width]."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    total = np.zeros((height, width))
    for cx, cy, turn in ((0.22, 0.2, 1), (0.8, 0.3, -1), (0.5, 0.95, 1)):
        radius, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
        total += np.exp(-((radius / 0.45) ** 2)) * np.sin(55 * radius + 3 * turn * angle)
    return np.clip(total, -1, 1)


def _van_gogh(image: Pixels) -> Pixels:
    """Curling strokes of light yellow and deep blue over a bluish image."""
    grey = image.mean(axis=-1, keepdims=True)
    image = np.clip(grey + 1.2 * (image - grey), 0, 1) * np.array([0.80, 0.86, 0.84]) + np.array(
        [0, 0.03, 0.16]
    )
    return image + _strokes(*image.shape[:2])[..., None] * np.array([0.17, 0.15, -0.02])


STYLES: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    "none": ("", _plain),
    "sunset": ("at sunset", _sunset),
    "minecraft": ("Minecraft style", _minecraft),
    "van gogh": ("Van Gogh style", _van_gogh),
}
"""For each style its words in a caption, and its filter, which is applied at the final size."""


def apply_style(name: str, image: Pixels) -> Pixels:
    """Apply a style of `STYLES` to an RGB image in [0, 1] whose height and width are multiples of 16.

    Returns RGB in [0, 1].
    """
    return np.clip(STYLES[name][1](image), 0, 1)
