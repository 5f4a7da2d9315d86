"""What an evaluation keeps of each clip, so that it resumes where it was stopped."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.Image import DecompressionBombError

from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.images import Frames
from fyp_jax.media.writing import write_png

ClipScores = Mapping[str, float | None]
"""The scores of one clip; None where it has none."""


class ClipRecords:
    """Scores of clips, and clips to show, in a folder: FOLDER/clips.jsonl and FOLDER/shown/.

    A key is a text of letters and digits that stands for all that a clip depends on, except for its index.
    What cannot be read of a file, such as a last line that was cut, is taken for missing.
    """

    def __init__(self, folder: Path):
        self._file, self._shown = folder / "clips.jsonl", folder / "shown"
        self._scores: dict[tuple[str, int], ClipScores] = {}
        if self._file.is_file():
            for line in self._file.read_bytes().splitlines():
                try:
                    key, index, scores = json.loads(line)
                    self._scores[key, index] = dict(scores)
                except (ValueError, TypeError):
                    continue

    def scores(self, key: str, index: int) -> ClipScores | None:
        return self._scores.get((key, index))

    def frames(self, key: str, index: int, count: int) -> Frames | None:
        """A clip of `count` frames that was kept; None without one."""
        try:
            with Image.open(self._picture(key, index)) as picture:
                rows = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, DecompressionBombError):
            return None
        return None if len(rows) % count else rows.reshape(count, -1, *rows.shape[1:])

    def add(self, key: str, index: int, scores: ClipScores, frames: Frames | None = None) -> None:
        """Keep the scores of a clip, and its frames if given. Raises UserError if they cannot be written."""
        if frames is not None:
            with wrap_write_errors(self._picture(key, index)) as file:
                write_png(file, np.concatenate(list(frames)))
        with wrap_write_errors(self._file) as file, file.open("a") as stream:
            # A line of its own, even behind one that was cut.
            stream.write("\n" + json.dumps([key, index, dict(scores)]))
        self._scores[key, index] = scores

    def _picture(self, key: str, index: int) -> Path:
        return self._shown / f"{key[:20]}-{index}.png"
