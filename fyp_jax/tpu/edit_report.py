"""What a compile check says of an edit beside plain sampling: memory of their steps, and what is kept."""

from collections.abc import Iterator, Mapping, Sequence

from fyp_jax.convert.open_pipeline import open_pipeline, options_of
from fyp_jax.models.pose_encoder import DOWNSCALE
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.tpu.program_stats import GIB, ProgramStats
from fyp_jax.tpu.programs import bundled_sizes

STEPS = ("denoise", "invert", "edit")
"""Programs of a step of plain sampling, of the inversion and of the edit."""


def edit_figures(config: EditConfig, programs: Sequence[ProgramStats]) -> dict[str, int | float]:
    """Bytes of HBM of a step of plain sampling, of the inversion and of the edit, and the ratio of the edit's
    to that of sampling; bytes that an inversion keeps for its edits (`Inversion`) if its prompt has as many
    tokens as there may be."""
    peaks = {item.name: item.peak_hbm_bytes for item in programs}
    found: dict[str, int | float] = {f"{name}_hbm_bytes": peaks[name] for name in STEPS if name in peaks}
    found["edit_over_denoise"] = peaks["edit"] / peaks["denoise"]
    folder = open_pipeline(bundled_sizes(config.pretrained)[0], (), options_of(config))
    height, width = config.height // DOWNSCALE, config.width // DOWNSCALE
    level, steps = config.edit.map_level, config.num_inference_steps
    latents = config.num_frames * height * width * folder.unet_config().in_channels
    maps = config.num_frames * (height >> level) * (width >> level) * folder.latent_encoders().spec.tokens
    if "invert" in peaks:
        found |= {"kept_latents_bytes": 4 * (steps + 1) * latents, "kept_word_maps_bytes": 4 * steps * maps}
    return found


def edit_lines(config: EditConfig, figures: Mapping[str, int | float]) -> Iterator[str]:
    """The figures of an edit as lines of text."""
    for name in STEPS:
        if f"{name}_hbm_bytes" in figures:
            yield f"HBM of a step of {name}, GiB: {figures[f'{name}_hbm_bytes'] / GIB:.3f}"
    yield f"HBM of an edit's step / of a sampling step: {figures['edit_over_denoise']:.2f}"
    if "kept_latents_bytes" in figures:
        latents, maps = (figures[f"kept_{name}_bytes"] / 2**20 for name in ("latents", "word_maps"))
        yield (
            f"kept for {config.num_inference_steps} steps, MiB: {latents + maps:.1f} "
            f"({latents:.1f} latents, {maps:.1f} word maps at most)"
        )
