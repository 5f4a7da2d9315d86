"""What a run leaves behind: a folder of its own, and for each clip an mp4, a GIF, a sheet and a record."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fyp_jax.errors import UserError
from fyp_jax.media.images import Clip, image_grid
from fyp_jax.media.writing import wrap_write_errors, write_gif, write_mp4, write_png

NAME_LENGTH = 48


def new_run_folder(out: Path) -> Path:
    """Make the folder `out/NNNN` with the next free number; an earlier run is never written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in out.iterdir() if path.name.isdigit()), default=-1)
        while True:
            folder = out / f"{number:04d}"
            try:
                folder.mkdir()
            except FileExistsError:  # another run was faster
                number += 1
            else:
                return folder
    except OSError as error:
        raise UserError(f"{out}: no folder can be made here ({error.strerror})") from error


def write_clip(
    folder: Path,
    number: int,
    prompt: str,
    video: Clip,
    poses: Float32[np.ndarray, "f h w 3"] | None,
    fps: int | float,
    record: Mapping[str, Any],
) -> Path:
    """Write NUMBER-PROMPT.mp4, .gif, .png (poses, if any, above; frames below) and .json; returns the mp4."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:NAME_LENGTH].strip("-")
    stem = folder / (f"{number:02d}-{words}" if words else f"{number:02d}")
    write_mp4(stem.with_suffix(".mp4"), video, fps)
    write_gif(stem.with_suffix(".gif"), video, fps)
    rows = [video] if poses is None else [np.round(poses * 255).astype(np.uint8), video]
    write_png(stem.with_suffix(".png"), image_grid(rows))
    with wrap_write_errors(stem.with_suffix(".json")) as file:
        file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return stem.with_suffix(".mp4")
