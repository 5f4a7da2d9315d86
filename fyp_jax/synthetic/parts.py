"""The parts of a figure, and their labels in a label map, which are 1, 2, ...; 0 is the background."""

PARTS = (
    "torso", "arms", "forearms", "thighs", "shins", "head", "hands", "feet", "hair", "skirt", "cape", "hat",
    "details",
)  # fmt: skip
TORSO, ARMS, FOREARMS, THIGHS, SHINS, HEAD, HANDS, FEET, HAIR, SKIRT, CAPE, HAT, DETAIL = range(1, 14)
