"""Fields of sample.py's config that an evaluation says itself, and so does not take from the command line."""

from collections.abc import Sequence

from fyp_jax.errors import UserError

OF_A_CASE = ("height", "width", "seed", "prompt", "pose", "invert", "invert_stride", "invert_start")
"""What a case of an evaluation says: how large its clip is, what it shows, and where it starts."""
OF_FILES = ("fps", "output_dir")
"""What only files of clips depend on."""


def check_used(overrides: Sequence[str], *unused: str) -> None:
    """Raise UserError for an override (a.b=c) on which no clip of an evaluation depends; `unused` are more
    such fields."""
    for text in overrides:
        field = text.partition("=")[0].strip().partition(".")[0]
        if field in (*OF_A_CASE, *OF_FILES, *unused):
            raise UserError(f"{text}: the clips that are scored do not depend on it; leave it out")
