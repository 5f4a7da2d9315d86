"""What a VAE keeps of drawings of the synthetic world: fidelity, also of figures alone, and sharp edges."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fyp_jax.evaluation.sharpness import edge_sharpness, mean_edge_width
from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci, psnr
from fyp_jax.media.images import Frames
from fyp_jax.synthetic.scenes import (
    FIRST_HELD_OUT_SEED,
    FIRST_MOVER_LABEL,
    SIZE,
    Scene,
    SyntheticClip,
    render_clip,
    training_scene,
)


class AutoencoderScores(NamedTuple):
    """Means over drawings, with intervals."""

    psnr: ConfidenceInterval
    """Peak signal-to-noise ratio in dB."""
    figure_psnr: ConfidenceInterval
    """The same over the pixels of figures."""
    sharpness: ConfidenceInterval
    """`edge_sharpness`: 1 for edges as sharp as drawn."""
    edge_width: ConfidenceInterval
    """`mean_edge_width` in pixels."""
    drawn_edge_width: ConfidenceInterval
    """The same of the drawings."""


def held_out_drawings(count: int, size: int = SIZE) -> Iterable[SyntheticClip]:
    """Drawings of one frame with label maps, of looks, bodies and places that no training data has."""
    for seed in range(count):
        yield render_clip(held_out_scene(seed), 1, size, labels=True)


def held_out_scene(index: int) -> Scene:
    """The scene of a training seed, with a held-out seed for all that its names leave open."""
    return training_scene(index)._replace(seed=FIRST_HELD_OUT_SEED + index)


def score_autoencoder(
    reconstruct: Callable[[Frames], Frames], drawings: Iterable[SyntheticClip]
) -> AutoencoderScores:
    """Scores of `reconstruct`, which encodes and decodes frames (uint8 [f h w 3])."""
    columns: dict[str, list[float]] = {name: [] for name in AutoencoderScores._fields}
    for drawing in drawings:
        assert drawing.labels is not None
        frames, figure = reconstruct(drawing.video), is_figure(drawing.labels)
        squared = (frames.astype(np.float64) - drawing.video) ** 2
        row = {
            "psnr": psnr(squared),
            "figure_psnr": psnr(squared[figure]) if figure.any() else float("nan"),
            "sharpness": edge_sharpness(frames, drawing.video),
            "edge_width": mean_edge_width(frames),
            "drawn_edge_width": mean_edge_width(drawing.video),
        }
        for name, value in row.items():
            if np.isfinite(value):  # a frame without figure, or without edges, has no such value
                columns[name].append(value)
    return AutoencoderScores(**{name: bootstrap_ci(values) for name, values in columns.items()})


def is_figure(labels: np.ndarray) -> np.ndarray:
    """Where label maps show a person, and not the place or what moves there."""
    return (labels > 0) & (labels < FIRST_MOVER_LABEL)
