"""How well clips follow skeleton images: the measure, its windows, and the script that prints them."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.errors import UserError
from fyp_jax.evaluation import pose_files
from fyp_jax.evaluation.pose_files import PoseWindow, line_accuracy, pose_windows, score_pose_files
from fyp_jax.evaluation.scene_metrics import drawn_parts
from fyp_jax.evaluation.scene_set import Kind, drawings, make_scene_cases
from fyp_jax.media.writing import write_png
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline


def write_skeletons(folder: Path, images: np.ndarray) -> str:
    folder.mkdir()
    for i, image in enumerate(images):
        write_png(folder / f"{i}.png", image)
    return str(folder)


def test_figures_of_the_given_skeletons_are_on_their_lines_and_shifted_ones_are_not():
    for case in make_scene_cases(2, 3, Kind.NAMED):
        parts = drawn_parts(case.scene, case.keypoints, 128)
        assert line_accuracy(parts, case.pose_images) > 0.97
        assert line_accuracy(np.roll(parts, 30, axis=2), case.pose_images) < 0.5


def test_skeletons_without_a_line_have_no_accuracy():
    assert np.isnan(line_accuracy(np.ones((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)))


def test_windows_without_a_skeleton_are_left_out_of_the_mean(monkeypatch: pytest.MonkeyPatch):
    black, line = np.zeros((2, 2, 8, 8, 3), np.uint8)
    line[:, 4] = 255
    windows = {
        "some.mov": [PoseWindow("a", black), PoseWindow("b", line)],
        "none.mov": [PoseWindow("c", black), PoseWindow("d", black)],
    }
    monkeypatch.setattr(pose_files, "segment_parts", lambda clip: np.ones(clip.shape[:3], np.uint8))
    (_, some, _), (_, none, _) = score_pose_files(windows, lambda window, seed: window.pose_images)
    assert some.accuracy is not None
    assert (some.accuracy.mean, some.accuracy_shuffled) == (1, None)
    assert none.accuracy is None
    assert none.accuracy_shuffled is not None


def test_windows_follow_each_other_and_have_captions_of_their_own(tmp_path: Path):
    images = np.zeros((8, 32, 32, 3), np.uint8)
    images[:, 4:6, 4:6] = np.arange(100, 180, 10)[:, None, None, None]
    files = [write_skeletons(tmp_path / name, images) for name in ("a", "b")]
    windows = pose_windows(files, num_clips=2, frames=2, stride=2, size=32)
    assert list(windows) == files
    shown = [window.pose_images[:, 4, 4, 0].tolist() for window in windows[files[0]]]
    assert shown == [[100, 120], [140, 160]]
    assert len({window.caption for x in windows.values() for window in x}) == 4


def test_one_pose_file_is_refused():
    with pytest.raises(UserError, match="give at least two"):
        pose_windows(["dance"], 1, 1, 1)


def test_mistake_in_the_script_ends_with_one_line():
    assert_mistake(run_script(SCRIPTS / "evaluate_poses.py", "dance", "nowhere.mov"), "nowhere.mov")


def test_script_prints_a_row_for_each_pose_and_writes_its_picture(tmp_path: Path):
    cases = make_scene_cases(2, 2, Kind.NAMED)
    drawn = {case.pose_images.tobytes(): frames for case, frames in zip(cases, drawings(cases), strict=True)}
    files = [
        write_skeletons(tmp_path / name, case.pose_images)
        for name, case in zip(("walk", "jump"), cases, strict=True)
    ]

    def draw(caption: str, pose_images: np.ndarray, params: SamplingParams) -> SimpleNamespace:
        return SimpleNamespace(frames=drawn[pose_images.tobytes()])

    options = ("--num-clips", 1, "--frames", 2, "--stride", 1, "--picture", tmp_path / "x.png")
    pipeline = mock.Mock(spec=FollowYourPosePipeline, side_effect=draw)
    with mock.patch.object(FollowYourPosePipeline, "from_config", return_value=pipeline):
        run = run_script(SCRIPTS / "evaluate_poses.py", *files, *options)
    assert run.status == 0, run.err
    rows = [line.split(" | ") for line in run.out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| walk", "| jump"]
    for _, own, other in rows:
        assert float(own.split()[0]) > 0.95
        assert float(other.split()[0]) < float(own.split()[0]) - 0.1
    assert Image.open(tmp_path / "x.png").size == (260, 524)
