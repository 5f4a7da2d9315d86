"""The options of one clip, as the command line, validation, evaluation and scripts pass them on."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fyp_jax.config import config_field
from fyp_jax.diffusion.config import SOLVERS, TIMESTEP_SPACINGS
from fyp_jax.errors import UserError

TRAINED_FRAMES = 8
"""Frames of the clips that the published model and the bundled one were trained on."""

LATENT_GRID = 64
"""Height and width are multiples of this: 8 pixels a latent, halved three times in the UNet."""


@dataclasses.dataclass
class SamplingParams:
    """Size, sampler, guidance and noise of one clip. The defaults are the published ones."""

    num_frames: int = config_field(8, "frames of the clip")
    window: int | None = config_field(
        None, "frames that are denoised together, of a longer clip in windows; null: as in training"
    )
    window_overlap: int = config_field(0, "frames that neighbouring windows of a step share, at least")
    height: int = config_field(512, f"pixels, a multiple of {LATENT_GRID}")
    width: int = config_field(512, f"pixels, a multiple of {LATENT_GRID}")
    num_inference_steps: int = config_field(50, "steps of the solver")
    solver: str = config_field("ddim", f"{', '.join(SOLVERS)}; the last two need fewer steps")
    timestep_spacing: str | None = config_field(
        None, "linspace, leading or trailing; null: the solver's own (ddim: leading, others: linspace)"
    )
    guidance_scale: float = config_field(12.5, "classifier-free guidance; 1 turns it off")
    negative_prompt: str = config_field("", "the text that guidance leads away from")
    pose_guidance: bool = config_field(
        False, "apply guidance to the pose too: the unconditional branch gets no pose"
    )
    noise_correlation: float = config_field(
        0.0, "fraction of the initial noise's variance that all frames have in common, 0 to 1"
    )
    eta: float = config_field(0.0, "noise that each step of DDIM adds: 0 is none, 1 is DDPM")
    seed: int = config_field(0, "seed of the initial noise, the same for each prompt")
    decode_chunk_size: int = config_field(
        4, "frames that the VAE decodes at a time; fewer frames need less memory"
    )

    def check(self) -> None:
        """Raise UserError for values that have the right type but make no clip."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 1 or value % LATENT_GRID:
                near = max(LATENT_GRID, round(value / LATENT_GRID) * LATENT_GRID)
                raise UserError(f"{name}={value} is not a multiple of {LATENT_GRID}; {near} is the nearest")
        if not math.isfinite(self.guidance_scale):
            raise UserError(f"guidance_scale={self.guidance_scale} is not a finite number")
        for name in ("eta", "noise_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is not between 0 and 1")
        for name in ("num_frames", "num_inference_steps", "decode_chunk_size", "window"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.window_overlap < 0 or (self.window is not None and self.window_overlap >= self.window):
            raise UserError(f"window_overlap={self.window_overlap} is not between 0 and window - 1")
        if self.solver not in SOLVERS:
            raise UserError(f"solver={self.solver} is none of {', '.join(SOLVERS)}")
        spacings = TIMESTEP_SPACINGS[self.solver]
        if self.timestep_spacing not in (None, *spacings):
            raise UserError(
                f"timestep_spacing={self.timestep_spacing}: solver={self.solver} takes {', '.join(spacings)}"
            )
        if self.eta and self.solver != "ddim":
            raise UserError(f"eta={self.eta}: only solver=ddim adds noise, not {self.solver}; leave one out")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not between 0 and {2**32 - 1}")


def trained_frames(provenance: Mapping[str, Any]) -> int:
    """Frames of the clips that weights were trained on, by their provenance; `TRAINED_FRAMES` where it does
    not say."""
    found = provenance.get("num_frames")
    return found if isinstance(found, int) and found > 0 else TRAINED_FRAMES


SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))


def sampling_params(config: Any, **changes: Any) -> SamplingParams:
    """The sampling fields of any config that has them all, with some of them changed."""
    return SamplingParams(**{name: getattr(config, name) for name in SAMPLING_FIELDS} | changes)


def check_edit_params(sampling: SamplingParams) -> None:
    """Raise UserError for options that an edit cannot follow."""
    if sampling.eta:
        raise UserError(f"eta={sampling.eta}: an edit takes the steps of its source, which needs eta=0")
    for name in ("solver", "timestep_spacing", "window", "window_overlap"):
        value = getattr(sampling, name)
        if value != getattr(SamplingParams, name):
            raise UserError(f"{name}={value}: an edit is made by DDIM, all frames together; leave it out")


def ddim_params(sampling: SamplingParams) -> SamplingParams:
    """The same options for DDIM, which has an inversion; a multistep solver's timestep spacing is left
    out."""
    if sampling.solver == "ddim":
        return sampling
    return dataclasses.replace(sampling, solver="ddim", timestep_spacing=None)
