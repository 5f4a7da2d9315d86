"""What the pipeline gives: a clip, which saves itself as a video, a GIF or a picture."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from fyp_jax.errors import UserError
from fyp_jax.media.images import image_grid
from fyp_jax.media.writing import write_gif, write_mp4, write_png

Frames = UInt8[np.ndarray, "f H W 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class PipelineOutput:
    """A clip, and what it was made of."""

    frames: Frames
    """RGB in 0..255."""
    latents: Float32[np.ndarray, "f h w c"]
    """The latents that the VAE decoded."""
    pose_images: Frames | None
    """The skeletons that the clip follows; None for a clip from text alone."""

    def save(self, path: str | os.PathLike[str], fps: float = 8.0) -> Path:
        """Write an .mp4, a .gif, or a .png: a grid of frames, below their skeletons. `fps` is frames per
        second.

        Raises UserError for another suffix, and where the file cannot be written.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".mp4":
            write_mp4(path, self.frames, fps)
        elif suffix == ".gif":
            write_gif(path, self.frames, fps)
        elif suffix == ".png":
            write_png(path, image_grid([x for x in (self.pose_images, self.frames) if x is not None]))
        else:
            raise UserError(f"{path}: a clip is saved as .mp4, .gif or .png")
        return Path(path)
