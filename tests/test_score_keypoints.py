"""scripts/score_keypoints.py on files with known scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.evaluation.keypoint_metrics import match_people, pck
from fyp_jax.pose.similarity import oks

SCRIPT = SCRIPTS / "score_keypoints.py"


def person(shift: float = 0.0) -> np.ndarray:
    joints = np.random.default_rng(1).uniform(10, 50, (17, 3))
    joints[:, 2], joints[:, 0] = 1, joints[:, 0] + shift
    return joints


def write_keypoints(file: Path, frames: list[list[np.ndarray]], side: int = 64) -> Path:
    people = [[one.tolist() for one in frame] for frame in frames]
    file.write_text(json.dumps({"width": side, "height": side, "frames": people}))
    return file


def test_target_person_is_matched_with_the_most_similar_prediction():
    left, right = person(), person(300)
    pred, target = match_people([np.stack([right, left]), np.zeros((0, 17, 3))], [left[None], right[None]])
    assert (pred[0] == left).all()
    assert pck(pred, target) == 0.5
    assert oks(pred, target) == pytest.approx(0.5)


def test_two_files_are_compared(tmp_path: Path):
    target = write_keypoints(tmp_path / "target.json", [[person()], []])
    twice_as_large = person()
    twice_as_large[:, :2] *= 2
    pred = write_keypoints(tmp_path / "pred.json", [[twice_as_large], [person()]], side=128)
    done = run_script(SCRIPT, "--pred", pred, "--target", target)
    assert done.status == 0, done.err
    assert "PCK@0.1: 1.0000\nOKS: 1.0000\npeople: 1 in 2 frames\n" in done.out
    for frames, message in (([[person()]], "has 2 frames"), ([[], []], "holds no person")):
        other = write_keypoints(tmp_path / "other.json", frames)
        assert_mistake(run_script(SCRIPT, "--pred", target, "--target", other), message)


def test_threshold_is_a_fraction_of_the_larger_side(tmp_path: Path):
    side = np.ptp(person()[:, :2], axis=0).max()
    target = write_keypoints(tmp_path / "target.json", [[person()]])
    pred = write_keypoints(tmp_path / "pred.json", [[person(0.3 * side)]])
    for threshold, expected in ((0.2, "PCK@0.2: 0.0000"), (0.4, "PCK@0.4: 1.0000")):
        files = ("--pred", pred, "--target", target)
        assert expected in run_script(SCRIPT, *files, "--threshold", threshold).out
