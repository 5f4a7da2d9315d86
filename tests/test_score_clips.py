"""scripts/score_clips.py: CLIP against PyTorch's on one folder; both commands on files with known scores."""

import json
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.errors import UserError
from fyp_jax.evaluation.clip_score import load_clip
from fyp_jax.evaluation.keypoint_metrics import match_people, pck
from fyp_jax.media.writing import write_mp4
from fyp_jax.pose.similarity import oks

SCRIPT = SCRIPTS / "score_clips.py"
VIDEO = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3)).astype(np.uint8)


def test_embeddings_equal_those_of_pytorch(clip_folder: Path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    clip, params = load_clip(str(clip_folder))
    text, images = clip.embed(params, "A robot, on the beach", VIDEO)
    torch_clip = transformers.CLIPModel.from_pretrained(str(clip_folder)).eval()
    inputs = clip.tokenizer("A robot, on the beach", return_tensors="pt")
    pixels = clip.processor(list(VIDEO), return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        out = torch_clip(**inputs, **pixels)
    np.testing.assert_allclose(text, out.text_embeds[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(images, out.image_embeds.numpy(), atol=1e-5)


def test_long_prompt_is_cut_and_folder_of_another_model_refused(clip_folder: Path, tmp_path: Path):
    clip, params = load_clip(str(clip_folder))
    text, _ = clip.embed(params, "a robot dances " * 60, VIDEO[:1])
    assert np.linalg.norm(text) == pytest.approx(1, abs=1e-5)
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.TEXT_ENCODER))
    with pytest.raises(UserError, match="does not describe a CLIP model"):
        load_clip(str(tmp_path))


def test_clip_command_scores_the_clips_of_a_run(clip_folder: Path, tmp_path: Path):
    still = VIDEO[:1].repeat(4, axis=0)
    for number, video in enumerate((still, VIDEO)):
        write_mp4(tmp_path / "run" / f"{number}.mp4", video, 8)
        (tmp_path / "run" / f"{number}.json").write_text(json.dumps({"prompt": "A robot"}))
    done = run_script(SCRIPT, "clip", tmp_path / "run", "--model", clip_folder)
    assert done.status == 0, done.err
    rows = [line.split(" | ") for line in done.out.splitlines() if ".mp4" in line]
    assert len(rows) == 2
    consistency = [float(row[3].strip(" |")) for row in rows]
    assert consistency[0] > 99
    assert consistency[1] < consistency[0]
    assert "| mean |" in done.out
    (tmp_path / "run" / "1.json").unlink()
    done = run_script(SCRIPT, "clip", tmp_path / "run", "--model", clip_folder)
    assert_mistake(done, "1.json")


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


def test_keypoints_command_compares_two_files(tmp_path: Path):
    target = write_keypoints(tmp_path / "target.json", [[person()], []])
    twice_as_large = person()
    twice_as_large[:, :2] *= 2
    pred = write_keypoints(tmp_path / "pred.json", [[twice_as_large], [person()]], side=128)
    done = run_script(SCRIPT, "keypoints", "--pred", pred, "--target", target)
    assert done.status == 0, done.err
    assert "PCK@0.1: 1.0000\nOKS: 1.0000\npeople: 1 in 2 frames\n" in done.out
    for frames, message in (([[person()]], "has 2 frames"), ([[], []], "holds no person")):
        other = write_keypoints(tmp_path / "other.json", frames)
        assert_mistake(run_script(SCRIPT, "keypoints", "--pred", target, "--target", other), message)


def test_threshold_is_a_fraction_of_the_larger_side(tmp_path: Path):
    side = np.ptp(person()[:, :2], axis=0).max()
    target = write_keypoints(tmp_path / "target.json", [[person()]])
    pred = write_keypoints(tmp_path / "pred.json", [[person(0.3 * side)]])
    for threshold, expected in ((0.2, "PCK@0.2: 0.0000"), (0.4, "PCK@0.4: 1.0000")):
        files = ("--pred", pred, "--target", target)
        assert expected in run_script(SCRIPT, "keypoints", *files, "--threshold", threshold).out
