"""Sharpness of edges: against a drawing, and by the width of edges."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fyp_jax.evaluation.autoencoder import held_out_drawings, is_figure, score_autoencoder
from fyp_jax.evaluation.sharpness import edge_sharpness, mean_edge_width
from fyp_jax.synthetic.scenes import render_clip, training_scene


def ramp(width: int, low: int = 40, high: int = 200) -> np.ndarray:
    """A clip of one frame: dark on the left, bright on the right, and so many pixels between them."""
    row = np.interp(np.arange(64), [30, 30 + width], [low, high])
    return np.tile(np.rint(row).astype(np.uint8)[None, None, :, None], (1, 24, 1, 3))


def blurred(video: np.ndarray, radius: float) -> np.ndarray:
    blur = ImageFilter.GaussianBlur(radius)
    return np.stack([np.asarray(Image.fromarray(frame).filter(blur)) for frame in video])


@pytest.mark.parametrize("width", [1, 2, 3, 7, 12])
def test_width_of_a_ramp_is_its_length_in_both_directions(width: int):
    assert mean_edge_width(ramp(width)) == width
    assert mean_edge_width(ramp(width)[:, :, ::-1]) == width


def test_row_without_an_edge_between_two_with_one_is_not_counted():
    """The Sobel filter finds the edges of the rows above and below there, too."""
    video = ramp(3)
    video[:, 12] = 40
    assert mean_edge_width(video) == 3


def test_clip_without_edges_has_no_width():
    assert np.isnan(mean_edge_width(np.full((2, 16, 16, 3), 9, np.uint8)))
    with pytest.raises(ValueError, match="no edges"):
        edge_sharpness(ramp(3), np.full((1, 24, 64, 3), 9, np.uint8))


def test_blur_widens_edges_and_takes_their_sharpness():
    video = np.concatenate([render_clip(training_scene(seed), 1, 128).video for seed in range(6)])
    assert edge_sharpness(video, video) == 1
    widths, sharpness = [mean_edge_width(video)], [1.0]
    for radius in (0.5, 1, 2):
        widths.append(mean_edge_width(blurred(video, radius)))
        sharpness.append(edge_sharpness(blurred(video, radius), video))
    assert widths == sorted(widths)
    assert sharpness == sorted(sharpness, reverse=True)
    assert widths[0] < 2.5
    assert widths[-1] > 6


def test_scores_of_a_vae_tell_errors_of_figures_from_those_of_places():
    drawings = list(held_out_drawings(4, size=64))

    def five_levels_off_in_figures(video: np.ndarray) -> np.ndarray:
        labels = next(drawing.labels for drawing in drawings if np.array_equal(drawing.video, video))
        assert labels is not None
        off = np.where(video > 127, -5, 5) * is_figure(labels)[..., None]
        return (video + off).astype(np.uint8)

    scores = score_autoencoder(five_levels_off_in_figures, drawings)
    assert scores.figure_psnr.mean == pytest.approx(20 * np.log10(255 / 5))
    fractions = [is_figure(drawing.labels).mean() for drawing in drawings if drawing.labels is not None]
    expected = [20 * np.log10(255 / 5) - 10 * np.log10(fraction) for fraction in fractions]
    assert scores.psnr.mean == pytest.approx(np.mean(expected))
    assert scores.drawn_edge_width.mean < 3


def test_drawings_of_the_evaluation_are_none_of_training():
    held_out = [clip.video for clip in held_out_drawings(3, size=64)]
    trained = [render_clip(training_scene(seed), 1, 64).video for seed in range(3)]
    assert not any(np.array_equal(a, b) for a, b in zip(held_out, trained, strict=True))
