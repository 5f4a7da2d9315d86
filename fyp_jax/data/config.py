"""Which records a run trains on."""

from dataclasses import dataclass

from fyp_jax.config import config_field
from fyp_jax.errors import UserError


@dataclass
class DataConfig:
    """Which clips of which records, and how they are loaded."""

    path: str = config_field("records", "folder of records, as scripts/prepare_data.py makes them")
    num_frames: int = config_field(8, "frames of a clip; 1 for images")
    stride: int = config_field(
        5, "take every n-th frame; clips too short for it: the largest stride that fits"
    )
    height: int = config_field(512, "pixels; the short side is scaled, the centre is cropped")
    width: int = config_field(512, "pixels")
    batch_size: int = config_field(8, "clips in a batch, of all processes together")
    workers: int = config_field(2, "decoding processes on each host; 0: decode in the training process")
    max_corrupt_fraction: float = config_field(
        0.01, "share of the records that may be broken before the run stops"
    )
    caption_dropout: float = config_field(
        0.0, "share of captions replaced by the empty text; 0.1 is usual for guidance"
    )

    def check(self) -> None:
        """Raise UserError for values that have the right type and make no batch."""
        for name, least in (
            ("num_frames", 1),
            ("stride", 1),
            ("height", 1),
            ("width", 1),
            ("batch_size", 1),
            ("workers", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"data.{name}={getattr(self, name)} must be at least {least}")
        for name in ("max_corrupt_fraction", "caption_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name}={getattr(self, name)} is not between 0 and 1")
