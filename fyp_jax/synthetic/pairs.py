"""Pairs of named character and place. One in eight is held out of all training."""

from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES

PAIRS = tuple((name, place) for name in NAMED for place in PLACES if place not in OPEN_PLACES)
HELD_OUT_PAIRS = tuple(
    (name, place)
    for name, place in PAIRS
    if (3 * list(NAMED).index(name) + list(PLACES).index(place)) % 8 == 5
)
TRAIN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)
