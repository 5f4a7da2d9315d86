"""The looks of figures: nine named characters, and open ones, whose looks are sampled from a seed.

A caption names a character. It says all about the looks of a named one, and nothing about those of an open
one. A seventh of the combinations of colours of top and bottom is held out of training (`HELD_OUT_CLOTHES`).
"""

from dataclasses import dataclass, replace

import numpy as np

from fyp_jax.synthetic.shapes import Colour

SKIN, BROWN, BLACK, WHITE = (240, 190, 150), (96, 58, 32), (26, 26, 34), (250, 248, 242)


@dataclass(frozen=True)
class Look:
    """Colours of the body parts, proportions, head and clothes."""

    torso: Colour
    arms: Colour
    forearms: Colour
    thighs: Colour
    shins: Colour
    head: Colour
    hands: Colour
    feet: Colour
    stoutness: float = 1.0
    """Factor on the widths of limbs and trunk."""
    head_size: float = 1.0
    """Factor on the radius of the head."""
    mask: str | None = None
    """How the head of a named character is drawn (`heads.MASKS`); None: a face."""
    hair: tuple[str, Colour] | None = None
    """Style (short, bob, long, bun, ponytail, afro, spiky or bald) and colour."""
    hat: tuple[str, Colour] | None = None
    """Kind (`HATS`) and colour."""
    cape: Colour | None = None
    belt: Colour | None = None
    skirt: tuple[float, Colour] | None = None
    """Length, as a fraction of the thighs, and colour."""
    emblem: tuple[str, Colour, Colour] | None = None
    """Kind (star, heart, disc, diamond, reactor, bat, panel or belly), its colour and a second one."""
    stripes: Colour | None = None
    """Colour of horizontal stripes on the torso."""
    briefs: Colour | None = None
    sleeve: Colour | None = None
    """Colour of short sleeves, which cover half of the arms."""


HATS = ("cap", "beanie", "brim", "headband")

NAMED: dict[str, Look] = {
    "iron man": Look(
        torso=(200, 28, 34), arms=(200, 28, 34), forearms=(244, 184, 50), thighs=(244, 184, 50),
        shins=(200, 28, 34),
        head=(200, 28, 34), hands=(200, 28, 34), feet=(150, 14, 22), mask="iron", belt=(244, 184, 50),
        emblem=("reactor", (170, 250, 255), (120, 14, 22)),
    ),
    "hulk": Look(
        torso=(84, 184, 56), arms=(84, 184, 56), forearms=(84, 184, 56), thighs=(112, 48, 156),
        shins=(84, 184, 56),
        head=(94, 194, 66), hands=(84, 184, 56), feet=(84, 184, 56), stoutness=1.35, mask="angry",
        hair=("short", BLACK), briefs=(112, 48, 156), emblem=("belly", (60, 146, 40), (60, 146, 40)),
    ),
    "astronaut": Look(
        torso=(246, 128, 36), arms=(246, 128, 36), forearms=(246, 128, 36), thighs=(246, 128, 36),
        shins=(246, 128, 36), head=WHITE, hands=WHITE, feet=WHITE, stoutness=1.15, head_size=1.22,
        mask="helmet",
        belt=WHITE, emblem=("panel", WHITE, (60, 130, 220)),
    ),
    "batman": Look(
        torso=(104, 110, 130), arms=(104, 110, 130), forearms=(40, 42, 64), thighs=(104, 110, 130),
        shins=(40, 42, 64), head=(40, 42, 64), hands=(40, 42, 64), feet=(40, 42, 64), mask="bat",
        cape=(40, 42, 64), belt=(250, 210, 50), emblem=("bat", (250, 210, 50), (30, 30, 46)),
        briefs=(40, 42, 64),
    ),
    "superman": Look(
        torso=(34, 88, 214), arms=(34, 88, 214), forearms=(34, 88, 214), thighs=(34, 88, 214),
        shins=(214, 26, 40),
        head=SKIN, hands=SKIN, feet=(214, 26, 40), hair=("short", BLACK), cape=(214, 26, 40),
        belt=(250, 210, 50),
        briefs=(214, 26, 40), emblem=("diamond", (250, 210, 50), (214, 26, 40)),
    ),
    "panda": Look(
        torso=WHITE, arms=BLACK, forearms=BLACK, thighs=BLACK, shins=BLACK, head=WHITE, hands=BLACK,
        feet=BLACK, stoutness=1.25, head_size=1.28, mask="panda",
    ),
    "robot": Look(
        torso=(96, 206, 214), arms=(160, 170, 182), forearms=(96, 206, 214), thighs=(160, 170, 182),
        shins=(96, 206, 214), head=(96, 206, 214), hands=(240, 78, 156), feet=(240, 78, 156), head_size=1.08,
        mask="robot", emblem=("panel", (240, 78, 156), (250, 236, 120)), belt=(160, 170, 182),
    ),
    "stormtrooper": Look(
        torso=(236, 240, 246), arms=(236, 240, 246), forearms=(236, 240, 246), thighs=(236, 240, 246),
        shins=(236, 240, 246), head=(236, 240, 246), hands=BLACK, feet=(236, 240, 246), head_size=1.12,
        mask="trooper", belt=BLACK, briefs=BLACK, emblem=("panel", (150, 160, 176), BLACK),
    ),
    "man": Look(
        torso=(252, 216, 64), arms=(252, 216, 64), forearms=SKIN, thighs=(92, 70, 130), shins=(92, 70, 130),
        head=SKIN, hands=SKIN, feet=(64, 40, 30), hair=("short", BROWN), belt=(64, 40, 30),
    ),
}  # fmt: skip
NAMES_WITHOUT_ARTICLE = ("iron man", "hulk", "batman", "superman")

OPEN = {"person": "people", "dancer": "dancers", "child": "children", "woman": "women"}
"""The open characters, each with its plural."""

SKINS = ((252, 218, 186), (240, 190, 150), (214, 156, 112), (172, 116, 76), (122, 78, 52), (88, 56, 40))
HAIR_COLOURS = (
    (34, 28, 30), (34, 28, 30), (92, 56, 32), (140, 84, 42), (224, 178, 84), (186, 74, 36), (170, 170, 176),
    (226, 90, 150), (70, 110, 210),
)  # fmt: skip
CLOTHES: tuple[Colour, ...] = (
    (222, 44, 48), (246, 138, 36), (250, 208, 56), (70, 170, 78), (36, 160, 170), (44, 104, 214),
    (126, 74, 186),
    (236, 104, 164), (248, 246, 240), (52, 54, 66), (150, 36, 84), (142, 206, 236),
)  # fmt: skip
SHOES = ((40, 40, 50), (250, 248, 242), (214, 40, 48), (110, 66, 40), (250, 200, 60), (50, 110, 210))

Clothes = tuple[int, int]
"""Colours of the top and of the bottom, as indices of CLOTHES."""
ALL_CLOTHES: tuple[Clothes, ...] = tuple(
    (top, bottom) for top in range(len(CLOTHES)) for bottom in range(len(CLOTHES)) if top != bottom
)
HELD_OUT_CLOTHES = tuple(pair for pair in ALL_CLOTHES if (3 * pair[0] + 5 * pair[1]) % 8 == 3)
TRAIN_CLOTHES = tuple(pair for pair in ALL_CLOTHES if pair not in HELD_OUT_CLOTHES)


def sample_clothes(seed: int, index: int = 0, held_out: bool = False) -> Clothes:
    """The colours of the clothes of an open character; `index` counts the people of a scene."""
    choices = HELD_OUT_CLOTHES if held_out else TRAIN_CLOTHES
    return choices[np.random.default_rng([seed, 41, index]).integers(len(choices))]


def sample_look(name: str, seed: int, index: int = 0, held_out_clothes: bool = False) -> Look:
    """The look of a character: the same for each seed if it is named, another one if it is open."""
    if name in NAMED:
        return NAMED[name]
    top, bottom = (CLOTHES[i] for i in sample_clothes(seed, index, held_out_clothes))
    rng = np.random.default_rng([seed, 43, index])
    skin = SKINS[rng.integers(len(SKINS))]
    hair_colours = HAIR_COLOURS if sum(skin) > 450 else HAIR_COLOURS[:4]
    woman = name == "woman" or (name != "person" and rng.random() < 0.5) or rng.random() < 0.4
    styles = (
        ("bob", "long", "bun", "ponytail", "afro", "short")
        if woman
        else ("short", "spiky", "afro", "bald", "bob")
    )
    style, hair = styles[rng.integers(len(styles))], hair_colours[rng.integers(len(hair_colours))]
    garment = rng.choice(
        ["dress", "skirt", "trousers", "shorts"], p=[0.32, 0.25, 0.25, 0.18] if woman else [0, 0, 0.72, 0.28]
    )
    sleeves = rng.choice(["long", "short", "none"], p=[0.45, 0.35, 0.2])
    shoes = SHOES[rng.integers(len(SHOES))]
    bare = garment in ("shorts", "skirt") or (garment == "dress" and rng.random() < 0.3)
    look = Look(
        torso=top,
        arms=top if sleeves == "long" else skin,
        forearms=top if sleeves == "long" else skin,
        thighs=bottom if garment in ("trousers", "shorts") or not bare else skin,
        shins=skin if bare else bottom,
        head=skin,
        hands=skin,
        feet=shoes,
        stoutness=float(rng.uniform(0.88, 1.15)) * (1.06 if name == "child" else 1.0),
        head_size=float(rng.uniform(0.96, 1.06)) * (1.22 if name == "child" else 1.0),
        hair=(style, hair),
        sleeve=top if sleeves == "short" else None,
    )
    if garment in ("dress", "skirt"):
        look = replace(look, skirt=(float(rng.uniform(0.55, 0.95)), top if garment == "dress" else bottom))
    elif rng.random() < 0.4:
        look = replace(look, belt=SHOES[rng.integers(len(SHOES))])
    accent = CLOTHES[rng.choice([i for i, colour in enumerate(CLOTHES) if colour not in (top, bottom)])]
    decoration = rng.random()
    if decoration < 0.25:
        look = replace(look, stripes=accent)
    elif decoration < 0.5:
        look = replace(look, emblem=(str(rng.choice(["star", "heart", "disc", "diamond"])), accent, accent))
    if rng.random() < 0.25:
        look = replace(look, hat=(HATS[rng.integers(len(HATS))], CLOTHES[rng.integers(len(CLOTHES))]))
    if rng.random() < 0.1:
        look = replace(look, cape=accent)
    return look
