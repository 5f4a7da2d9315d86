"""What a page takes from its users: sizes of uploads and of clips, each refused with a line that says the
limit."""

from pathlib import Path
from typing import NamedTuple

from fyp_jax.errors import UserError
from fyp_jax.media.errors import MediaError
from fyp_jax.media.headers import read_header
from fyp_jax.pipeline.config import SampleConfig

VIDEOS = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi", ".gif")
KEYPOINTS = (".json",)


class Limits(NamedTuple):
    """The largest values that a page takes."""

    upload_mb: int = 50
    keypoints_mb: int = 10
    film_seconds: int = 120
    film_side: int = 2048
    """Pixels of the longer side of a film."""
    last_frame: int = 9000
    """Index of the last frame of a film or pose that a clip may need."""
    num_frames: int = 96
    side: int = 1024
    """Pixels of a clip's height and width."""
    num_inference_steps: int = 100

    def check_clip(self, config: SampleConfig) -> None:
        """Raise UserError for a clip that would keep the machine busy for too long."""
        for name, value, most in (
            ("num_frames", config.num_frames, self.num_frames),
            ("height", config.height, self.side),
            ("width", config.width, self.side),
            ("num_inference_steps", config.num_inference_steps, self.num_inference_steps),
        ):
            if value > most:
                raise UserError(f"{name}={value}: this page takes {most} at most")

    def check_last_frame(self, start: int, stride: int, num_frames: int) -> None:
        """Raise UserError where a clip needs frames from too far inside of a film."""
        last = start + stride * (num_frames - 1)
        if last > self.last_frame:
            raise UserError(
                f"start={start} stride={stride} num_frames={num_frames} needs frame {last}; this page reads "
                f"frames up to {self.last_frame}"
            )

    def check_upload(self, file: Path, suffixes: tuple[str, ...]) -> None:
        """Raise UserError for a file of another kind, and for one that is too large or too long."""
        suffix = file.suffix.lower()
        if suffix not in suffixes:
            raise MediaError(file, f"is none of {', '.join(suffixes)}")
        megabytes = file.stat().st_size / 1e6
        most = self.keypoints_mb if suffix in KEYPOINTS else self.upload_mb
        if megabytes > most:
            raise MediaError(file, f"has {megabytes:.1f} MB; this page takes {most} MB at most")
        if suffix in KEYPOINTS:
            return
        header = read_header(file)
        seconds = header.num_frames / header.fps if header.fps else 0
        if seconds > self.film_seconds:
            raise MediaError(
                file, f"is {seconds:.0f} s long; this page takes {self.film_seconds} s at most: cut it"
            )
        if max(header.width, header.height) > self.film_side:
            raise MediaError(
                file,
                f"has {header.width}x{header.height} pixels; this page takes {self.film_side} on a side at "
                "most: scale it down",
            )
