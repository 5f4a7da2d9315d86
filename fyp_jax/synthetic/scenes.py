"""Scenes of the synthetic world, rendered to clips of any size with keypoints, caption, labels and motion.

With this world the full method can be trained and evaluated on a laptop. A `Scene` determines every pixel of
its clip, in every process. Held out of all training are one in eight pairs of named character and place
(`pairs.HELD_OUT_PAIRS`), one motion (`planar_motions.HELD_OUT_MOTION`), and `looks.HELD_OUT_CLOTHES`.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.synthetic.canvas import PERIOD, Canvas
from fyp_jax.synthetic.figure import draw_figure
from fyp_jax.synthetic.looks import NAMED, NAMES_WITHOUT_ARTICLE, OPEN, Look, sample_look
from fyp_jax.synthetic.motions import TRAIN_MOTIONS, TRAIN_WEIGHTS
from fyp_jax.synthetic.movers import Mover
from fyp_jax.synthetic.pairs import HELD_OUT_PAIRS
from fyp_jax.synthetic.people import people_keypoints
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES
from fyp_jax.synthetic.shapes import Group, blocky, paint
from fyp_jax.synthetic.styles import BLOCKS, STYLES, Style, finish, finish_sky

SIZE = 128
"""Height and width of a frame, in pixels, unless another one is asked for."""
SIZE_MULTIPLE = BLOCKS
FPS = 8
NUMBERS = {2: "Two", 3: "Three"}
SUPERSAMPLING = 4
"""Factor by which frames are painted larger and then reduced, so that edges are smooth."""
PERSON_LABELS = 32
"""In a label map, a part of person p has the label PERSON_LABELS * p + part, parts as in PARTS."""
FIRST_MOVER_LABEL = 200
"""In a label map, what belongs to entry i > 0 of the velocities has the label FIRST_MOVER_LABEL + i."""
FIRST_HELD_OUT_SEED = 10**9
"""Training scenes have smaller seeds; evaluation takes seeds from here on."""


class Scene(NamedTuple):
    """All that a clip depends on. The seed determines looks, bodies, tempo, things and camera."""

    characters: tuple[str, ...]
    """One, two or three."""
    place: str
    style: str
    motion: str
    seed: int
    held_out_clothes: bool = False
    """Whether open characters wear combinations of colours that training never has."""
    pan: float | None = None
    """Velocity of the camera to the right in frame widths a frame; None: chosen by the seed."""


class SyntheticClip(NamedTuple):
    """A rendered scene."""

    video: UInt8[np.ndarray, "f h w 3"]
    keypoints: Float[np.ndarray, "f p 17 3"]
    """COCO joints of each person, x and y in pixels; joints that are not seen have the confidence 0."""
    caption: str
    velocities: Float[np.ndarray, "n 2"]
    """True motion of the background from each frame to the next, x and y in pixels: first that of the place,
    which a pan moves, then those of what moves by itself, with the labels FIRST_MOVER_LABEL + 1, ..."""
    labels: UInt8[np.ndarray, "f h w"] | None
    """What each pixel shows: 0 the place, and labels of people and of what moves. None unless asked for."""


def caption(scene: Scene, comma: bool = True) -> str:
    """The scene's caption, e.g. "A dancer, in the park" or "Batman and a robot on the beach, at sunset".

    `comma` is whether a comma follows the subject. Open characters of one kind are "Two people".
    """
    place, style = PLACES[scene.place][0], STYLES[scene.style].words
    comma = comma or scene.place == "simple"
    return f"{_subject(scene.characters)}{',' if comma else ''} {place}" + (f", {style}" if style else "")


def _subject(characters: tuple[str, ...]) -> str:
    if len(characters) > 1 and set(characters) == {characters[0]} and characters[0] in OPEN:
        return f"{NUMBERS[len(characters)]} {OPEN[characters[0]]}"
    text = " and ".join(
        name.capitalize()
        if name in NAMES_WITHOUT_ARTICLE
        else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        for name in characters
    )
    return text[0].upper() + text[1:]


def caption_words() -> set[str]:
    """All words of all captions, in lower case: what a tokenizer has to know."""
    everyone = [(name,) for name in (*NAMED, *OPEN)]
    everyone += [(a, "person") for a in NAMED] + [(name,) * count for name in OPEN for count in NUMBERS]
    captions = [
        caption(Scene(names, place, style, "walk", 0))
        for names in everyone
        for place in PLACES
        for style in STYLES
    ]
    return set(re.findall(r"[a-z]+", " ".join(captions).lower()))


def pan_velocity(scene: Scene, size: int = SIZE) -> float:
    """Velocity of the camera to the right in pixels a frame, in quarters; 0 in half of the scenes."""
    rng = np.random.default_rng([scene.seed, 61])
    if scene.pan is not None:
        pan = scene.pan * size
    else:
        pan = rng.choice([-1, 1]) * rng.uniform(0.5, 2.0) * size / 128 if rng.random() < 0.5 else 0.0
    return round(SUPERSAMPLING * pan) / SUPERSAMPLING


def scene_looks(scene: Scene) -> list[Look]:
    """The looks of the people of a scene."""
    return [
        sample_look(name, scene.seed, i, scene.held_out_clothes) for i, name in enumerate(scene.characters)
    ]


def scene_keypoints(scene: Scene, frames: range, size: int = SIZE) -> Float[np.ndarray, "f p 17 3"]:
    """Keypoints of the people of a scene in given frames, in pixels."""
    return people_keypoints(scene.characters, scene.motion, frames, scene.seed) * [size, size, 1]


def check_size(size: int) -> None:
    """Raise UserError for a size of frames that the world does not have."""
    if size < 1 or size % SIZE_MULTIPLE:
        raise UserError(
            f"the synthetic world renders sizes that are multiples of {SIZE_MULTIPLE}, not {size}"
        )


def render_clip(
    scene: Scene, num_frames: int, size: int = SIZE, start: int = 0, stride: int = 1, labels: bool = False
) -> SyntheticClip:
    """Render frames of a scene, which has 8 frames a second: `num_frames` from `start` on, each `stride`-th.

    Velocities are those from each of these frames to the next. Raises UserError for a size that is no
    multiple of 32.
    """
    frames = range(start, start + num_frames * stride, stride)
    keypoints = scene_keypoints(scene, frames, size)
    comma = bool(np.random.default_rng([scene.seed, 63]).random() < 0.7)
    video, velocities, label_maps = render_frames(scene, keypoints, size, frames, labels)
    return SyntheticClip(video, keypoints, caption(scene, comma), velocities * stride, label_maps)


def render_frames(
    scene: Scene,
    keypoints: Float[np.ndarray, "f p 17 3"],
    size: int = SIZE,
    frames: range | None = None,
    labels: bool = False,
) -> tuple[UInt8[np.ndarray, "f h w 3"], Float[np.ndarray, "n 2"], UInt8[np.ndarray, "f h w"] | None]:
    """Render a scene with given keypoints, in pixels, whatever its motion is.

    Keypoints of no people give the place alone. Returns frames, velocities in pixels a frame of the scene,
    and label maps, or None without `labels`. `frames` are the times at which place and camera are seen
    (default: from 0 on, one after the other).
    """
    check_size(size)
    frames = range(len(keypoints)) if frames is None else frames
    view = _View(scene, size, frames)
    looks = scene_looks(scene)
    images, maps = [], []
    for joints, time in zip(keypoints, frames, strict=True):
        label_map = Image.new("L", (view.side, view.side)) if labels else None
        image = view.behind_figures(time, label_map)
        for person, points in enumerate(joints):
            groups = _styled(
                draw_figure(points * [SUPERSAMPLING, SUPERSAMPLING, 1], looks[person]), view.style
            )
            paint(groups, image, label_map, PERSON_LABELS * person)
        view.paint_movers(image, time, "front", label_map)
        images.append(np.asarray(image.reduce(SUPERSAMPLING)))
        if label_map is not None:
            maps.append(
                np.asarray(label_map)[
                    SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING
                ]
            )
    return np.stack(images), view.velocities * size, np.stack(maps) if labels else None


def _styled(groups: list[Group], style: Style) -> list[Group]:
    """Figures in a style: tinted, and made of boxes where the style is."""
    if not (style.figures or style.boxes):
        return groups
    return [
        Group(
            tuple(
                (blocky(s) if style.boxes else s)._replace(colour=style.tint_figure(s.colour))
                for s in group.shapes
            ),
            group.outline,
        )
        for group in groups
    ]


class _View:
    """The place of a scene as its camera sees it in some frames, supersampled."""

    def __init__(self, scene: Scene, size: int, frames: range):
        self.side, self.style = size * SUPERSAMPLING, STYLES[scene.style]
        rng = np.random.default_rng([scene.seed, 65])
        pan = round(pan_velocity(scene, size) * SUPERSAMPLING)
        start = int(rng.integers(round(PERIOD * self.side)))
        self._lefts = {time: start + pan * time for time in frames}
        # Pillow draws otherwise at an image's edges, and a style may look at what is beside the window.
        margin = self.side // 16 if self.style.finished else SUPERSAMPLING
        self._first = min(self._lefts.values()) - margin
        width = max(self._lefts.values()) + self.side + margin - self._first
        sky, ground = (
            Canvas(
                Image.new(mode, (width, self.side)),
                self.side,
                self._first / self.side,
                self.style.tint,
                self.style.boxes,
            )
            for mode in ("RGB", "RGBA")
        )
        self._movers: list[Mover] = PLACES[scene.place][1](
            sky, ground, np.random.default_rng([scene.seed, 67])
        )
        finish_sky(scene.style, sky)
        finish(scene.style, ground)
        self._sky, self._ground = sky.image, ground.image
        camera = np.array([pan / self.side, 0.0])
        self.velocities = np.stack([-camera, *(np.array(mover.velocity) - camera for mover in self._movers)])
        """In sides a frame: of the place, then of each mover."""

    def behind_figures(self, time: int, labels: Image.Image | None) -> Image.Image:
        """The frame at a time, but for the figures and what is in front of them."""
        left = self._lefts[time] - self._first
        box = (left, 0, left + self.side, self.side)
        image, ground = self._sky.crop(box), self._ground.crop(box)
        self.paint_movers(image, time, "sky", labels)
        image.paste(ground, (0, 0), ground)
        if labels is not None:
            labels.paste(0, (0, 0), ground)
        self.paint_movers(image, time, "behind", labels)
        return image

    def paint_movers(self, image: Image.Image, time: int, where: str, labels: Image.Image | None) -> None:
        """Paint what moves by itself, where it is at a time, of the movers that are `where`."""
        left = self._lefts[time] / self.side
        for index, mover in enumerate(self._movers):
            if mover.where == where:
                canvas = Canvas(image, self.side, left, self.style.tint, self.style.boxes, labels)
                canvas.label, canvas.drop = FIRST_MOVER_LABEL + 1 + index, mover.drop
                canvas.shift = (mover.velocity[0] * time, mover.velocity[1] * time)
                mover.paint(canvas, float(time))


def training_scene(seed: int) -> Scene:
    """Sample a scene for training: half with a named character, a third with an open one, the rest with two
    people, or three."""
    if not 0 <= seed < FIRST_HELD_OUT_SEED:
        raise ValueError(f"seed {seed}: training scenes have seeds from 0 to {FIRST_HELD_OUT_SEED - 1}")
    rng = np.random.default_rng([seed, 69])
    named, opened = list(NAMED), list(OPEN)
    chance, characters = rng.random(), ()
    if chance < 0.5:
        characters = (named[rng.integers(len(named))],)
    elif chance < 0.84:
        characters = (opened[rng.integers(len(opened))],)
    elif chance < 0.92:
        characters = (opened[rng.integers(len(opened))],) * int(rng.choice([2, 2, 3]))
    else:
        everyone = named + opened
        first, second = rng.permutation(len(everyone))[:2]
        characters = (everyone[first], everyone[second])
    places = [
        place
        for place in PLACES
        if place not in OPEN_PLACES and not any((name, place) in HELD_OUT_PAIRS for name in characters)
    ]
    if rng.random() < (0.2 if set(characters) & set(OPEN) else 0.06):
        places = list(OPEN_PLACES)
    place = places[rng.integers(len(places))]
    style = "none" if rng.random() < 0.58 else list(STYLES)[1 + rng.integers(len(STYLES) - 1)]
    weights = np.array(TRAIN_WEIGHTS)
    motion = TRAIN_MOTIONS[rng.choice(len(TRAIN_MOTIONS), p=weights / weights.sum())]
    return Scene(characters, place, style, motion, seed)
