"""Drawn clips that edits are measured on: scores of the clip, of the edit as drawn, and of neither."""

import json
from pathlib import Path

import numpy as np
import pytest

from cli_utils import SCRIPTS
from fyp_jax.evaluation.edit_cases import EditCase, style_cases, swap_cases

FRAMES, SIZE = 2, 128


@pytest.mark.slow
def test_drawing_of_the_edit_has_the_best_scores_and_the_clip_another_character():
    (case,) = swap_cases(1, FRAMES, SIZE)
    assert case.clip.shape == case.drawing.shape == case.pose_images.shape == (FRAMES, SIZE, SIZE, 3)
    assert all(a in b.lower() for a, b in zip(case.characters, case.captions, strict=True))
    drawn, source = (case.swap_scores(video, case.clip) for video in (case.drawing, case.clip))
    assert (drawn.character, source.character) == (1, 0)
    assert min(drawn.pose_accuracy, source.pose_accuracy) > 0.9
    assert drawn.background_psnr > 40, "the world draws the same background behind another character"
    assert case.background.mean() > 0.3


@pytest.mark.slow
def test_scores_fall_with_what_is_wrong():
    (case,) = swap_cases(1, FRAMES, SIZE)
    place = place_alone(case)
    assert case.swap_scores(place, case.clip).pose_accuracy < 0.5
    noisy = np.clip(case.drawing.astype(int) + 20, 0, 255).astype(np.uint8)
    # An error of 20 in most values is 20 log10(255 / 20) dB.
    assert case.swap_scores(noisy, case.clip).background_psnr == pytest.approx(22.1, abs=1.5)


def place_alone(case: EditCase) -> np.ndarray:
    """The clip with the mean colour of the place where figures are."""
    video = case.clip.copy()
    for frame, background in zip(video, case.background, strict=True):
        frame[~background] = frame[background].mean(axis=0)
    return video


def test_style_score_is_0_for_the_clip_and_1_for_the_drawing():
    (case,) = style_cases(1, FRAMES, SIZE)
    assert case.captions[1].startswith(case.captions[0] + ", ")
    half = ((case.clip.astype(int) + case.drawing) // 2).astype(np.uint8)
    assert case.style_score(case.clip) == 0
    assert case.style_score(case.drawing) == 1
    assert case.style_score(half) == pytest.approx(0.5, abs=0.02)


@pytest.mark.release
def test_benchmark_of_edits_prints_tables_and_writes_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks.editing import main  # pyright: ignore

    args = ["--clips", "1", "--factors", "1", "4", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["benchmark.py editing", "num_inference_steps=4", "num_frames=2", *args])
    monkeypatch.setattr("benchmarks.editing.enable_compilation_cache", lambda: None)
    main()
    out = capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text())
    edit, plain = scores["swap"]["edit"], scores["swap"]["inversion and new prompt"]
    assert scores["swap"]["background_gain"]["mean"] == pytest.approx(
        edit["background_psnr"]["mean"] - plain["background_psnr"]["mean"]
    )
    assert set(scores["style"]) == {"1.0", "4.0", "monotone"}
    assert "| edit |" in out
    assert "s for each clip" in out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["style-00.png", "swap-00.png"]
