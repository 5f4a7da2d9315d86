"""The inversion of a clip: the latents of all steps and the maps of the prompt's tokens, in memory and in a
file."""

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from fyp_jax.errors import UserError, reason, wrap_write_errors

FORMAT = "fyp_jax inversion 2"


@dataclasses.dataclass(frozen=True, eq=False)
class Inversion:
    """What ten edits of a clip need of its one inversion."""

    latents: Float32[np.ndarray, "times f h w c"]
    """The latents of all steps, clean ones first."""
    word_maps: Float32[np.ndarray, "steps f _ _ m"]
    """The attention of each pixel of a level to the prompt's tokens, start token first, in each step."""
    prompt: str
    made_for: dict[str, Any]
    """What the numbers depend on: clip, weights, noise schedule, steps, level of the maps, pose."""

    @property
    def noise(self) -> Float32[np.ndarray, "f h w c"]:
        """The latents of the last step, from which sampling makes about this clip again."""
        return self.latents[-1]

    @property
    def num_inference_steps(self) -> int:
        return len(self.word_maps)

    def word_map(self, step: int, words: Float[np.ndarray, "l 1"]) -> Float32[np.ndarray, "f _ _"]:
        """The map of some words at a step of sampling (0: at the noisy side), from weights of all tokens."""
        maps = self.word_maps[self.num_inference_steps - 1 - step]
        return maps @ words[: maps.shape[-1], 0].astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an .npz file. Raises UserError where it cannot be written."""
        header = {"format": FORMAT, "prompt": self.prompt, "made_for": self.made_for}
        with wrap_write_errors(path) as file, file.open("wb") as stream:
            np.savez(stream, header=json.dumps(header), latents=self.latents, word_maps=self.word_maps)
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Inversion":
        """Read what `save` wrote. Raises UserError for any other file, and for one that is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                if header["format"] != FORMAT:
                    raise ValueError(f"its format is {header['format']!r}")
                latents, maps = arrays["latents"], arrays["word_maps"]
                prompt, made_for = str(header["prompt"]), dict(header["made_for"])
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file") from error
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is no inversion that this package saved ({reason(error)})") from error
        if not _fit(latents, maps):
            raise UserError(f"{path}: is damaged: its latents do not fit its word maps, or are not finite")
        return cls(latents, maps, prompt, made_for)

    def check_made_for(self, made_for: dict[str, Any], what: str) -> None:
        """Raise UserError where the inversion was made for something else: other weights, steps, pose.

        `what` names the inversion in the message.
        """
        for name, value in made_for.items():
            if self.made_for.get(name) != value:
                found = self.made_for.get(name)
                raise UserError(f"{what}: was made for {name}={found}, not {value}; invert the clip again")


def _fit(latents: np.ndarray, maps: np.ndarray) -> bool:
    """Whether two arrays of a file are the latents and the word maps of one inversion."""
    whole = all(x.ndim == 5 and x.dtype == np.float32 and np.isfinite(x).all() for x in (latents, maps))
    return whole and len(latents) == len(maps) + 1 and latents.shape[1] == maps.shape[1]
