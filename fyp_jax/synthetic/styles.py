"""The styles of the synthetic world: how they change colours and shapes, and how they finish a place.

Places are finished once for a clip, before the camera takes its windows. So a style moves along with a pan.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from fyp_jax.synthetic.canvas import PERIOD, Canvas
from fyp_jax.synthetic.shapes import Colour

BLOCKS = 32
"""Number of Minecraft blocks along a side of the frame."""
STROKES = 18
"""Number of rows of brush strokes in Van Gogh's style."""


class Style(NamedTuple):
    """A linear map of colours: `scale` and `add` for places, and a weaker one for figures."""

    words: str
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    add: tuple[float, float, float] = (0.0, 0.0, 0.0)
    saturation: float = 1.0
    figures: float = 0.0
    """How much of the map figures get: 0 none, 1 all of it."""
    boxes: bool = False
    finished: bool = False
    """Whether `finish` needs to see what is beside the window."""

    def tint(self, colour: Colour) -> Colour:
        """The colour of something in a place."""
        grey = sum(colour) / 3
        values = [
            min(255, max(0, round(scale * (grey + self.saturation * (value - grey)) + add)))
            for value, scale, add in zip(colour, self.scale, self.add, strict=True)
        ]
        return values[0], values[1], values[2]

    def tint_figure(self, colour: Colour) -> Colour:
        """The colour of something on a figure."""
        full = self.tint(colour)
        mixed = [round(a + self.figures * (b - a)) for a, b in zip(colour, full, strict=True)]
        return mixed[0], mixed[1], mixed[2]


STYLES: dict[str, Style] = {
    "none": Style(""),
    "sunset": Style("at sunset", (0.72, 0.46, 0.42), (70, 26, 26), 0.9, 0.45),
    "minecraft": Style("Minecraft style", saturation=1.25, boxes=True, finished=True),
    "van gogh": Style("Van Gogh style", (0.86, 0.9, 0.88), (0, 6, 34), 1.25, 0.4, finished=True),
}


def finish_sky(style: str, sky: Canvas) -> None:
    """Finish a painted sky: at sunset it glows, with a sun in it."""
    if style == "sunset":
        glow = Image.new("RGB", sky.image.size)
        canvas = Canvas(glow, sky.side, sky.left)
        canvas.gradient((116, 72, 140), (255, 168, 92), 0.62)
        sky.image.paste(Image.blend(sky.image, glow, 0.8))
        Canvas(sky.image, sky.side, sky.left).circle(0.35, 0.36, 0.11, (255, 226, 130))
    finish(style, sky, sky=True)


def finish(style: str, canvas: Canvas, sky: bool = False) -> None:
    """Finish a painted sky or ground: blocks for Minecraft, brush strokes for Van Gogh."""
    if style == "minecraft":
        _pixelate(canvas)
    elif style == "van gogh":
        _brush(canvas, sky)


def _pixelate(canvas: Canvas) -> None:
    """Blocks of one colour each, at fixed places of the world: the colour in the middle of the block."""
    block = canvas.side // BLOCKS
    image, array = canvas.image, np.array(canvas.image)
    first = int(np.floor(canvas.left * BLOCKS + 1e-9))
    margin = round(canvas.left * canvas.side) - first * block
    rows = np.arange(array.shape[0] // block)
    columns = np.arange(-(-(array.shape[1] + margin) // block))
    middle = np.clip(columns * block + block // 2 - margin, 0, array.shape[1] - 1)
    blocks = array[np.ix_(rows * block + block // 2, middle)].astype(np.int16)
    blocks[..., :3] += (5 * ((rows[:, None] + columns + first) % 2 * 2 - 1))[..., None].astype(np.int16)
    small = Image.fromarray(blocks.clip(0, 255).astype(np.uint8), image.mode)
    large = small.resize((len(columns) * block, len(rows) * block), Image.Resampling.NEAREST)
    image.paste(large.crop((margin, 0, margin + image.width, image.height)), (0, 0))


def _brush(canvas: Canvas, sky: bool) -> None:
    """Short curved strokes, lighter and darker than what they cover, around swirls in the sky."""
    rng = np.random.default_rng(11 if sky else 12)  # of the world, not of a seed: a style is always the same
    image, side, columns = canvas.image, canvas.side, 2 * STROKES
    x = (np.arange(columns) + rng.uniform(size=(STROKES, columns))).ravel() * PERIOD / columns
    y = ((np.arange(STROKES)[:, None] + rng.uniform(size=(STROKES, columns))) / STROKES).ravel()
    light, order = 1 + rng.uniform(-0.12, 0.12, x.size), rng.permutation(x.size)
    angle, glow = _flow(x, y) if sky else (0.5 * np.sin(np.pi * x + 3 * y), np.zeros(x.size))
    turns = np.arange(np.floor(canvas.left / PERIOD) - 1, canvas.left / PERIOD + canvas.width / PERIOD + 1)
    at = np.stack(
        [(x[order] + PERIOD * turns[:, None] - canvas.left), np.broadcast_to(y[order], (len(turns), x.size))]
    )
    at = np.moveaxis(at, 0, -1).swapaxes(0, 1).reshape(-1, 2)  # each stroke, with its repetitions
    chosen = np.repeat(order, len(turns))
    seen = (at[:, 0] > -0.05) & (at[:, 0] < canvas.width + 0.05)
    pixels, chosen = at[seen] * side, chosen[seen]
    source = np.array(image)
    column, row = np.clip(pixels.astype(int), 0, [image.width - 1, image.height - 1]).T
    below = source[row, column].astype(float)
    colours = below[:, :3] * light[chosen, None]
    colours += glow[chosen, None] * (np.array([250, 226, 110]) - colours)
    along = 0.034 * side * np.stack([np.cos(angle[chosen]), np.sin(angle[chosen])], axis=1)
    across = 0.5 * along[:, ::-1] * [-1, 1]
    corners = [pixels - along, pixels - 0.5 * along + across, pixels + 0.5 * along + across, pixels + along]
    corners += [pixels + 0.5 * along - across, pixels - 0.5 * along - across]
    outlines = np.stack(corners, axis=1).reshape(len(pixels), -1).tolist()
    fills = colours.clip(0, 255).round().astype(int).tolist()
    draw = ImageDraw.Draw(image)
    for outline, fill, painted in zip(outlines, fills, below[:, -1] > 0, strict=True):
        if sky or painted:
            draw.polygon(outline, fill=tuple(fill))


def _flow(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The direction of strokes in the sky, and how much of the swirls' yellow is there."""
    angle, glow = 0.5 * np.sin(np.pi * x + 3 * y), np.zeros_like(x)
    for centre_x, centre_y in ((0.3, 0.2), (0.85, 0.12), (1.4, 0.24), (1.85, 0.1)):
        dx, dy = (x - centre_x + PERIOD / 2) % PERIOD - PERIOD / 2, y - centre_y
        radius = np.hypot(dx, dy)
        angle = np.where(radius < 0.25, np.arctan2(dy, dx) + np.pi / 2, angle)
        glow = np.maximum(glow, 0.9 * np.exp(-((radius / 0.07) ** 2)))
        glow = np.maximum(glow, 0.5 * np.exp(-(((radius - 0.13) / 0.025) ** 2)))
    return angle, glow
