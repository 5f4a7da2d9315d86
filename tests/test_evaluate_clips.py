"""evaluate.py --clips: measures with known values, CLIP against PyTorch's, the report, and mistakes."""

import csv
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_models
from cli_utils import SAMPLE, SCRIPTS, assert_mistake, run_script
from fyp_jax.errors import UserError
from fyp_jax.evaluation import clip_folders
from fyp_jax.evaluation.clip_folders import read_stored
from fyp_jax.evaluation.clip_measures import ClipMeasures, clip_scores, flicker, given_keypoints, pose_error
from fyp_jax.evaluation.clip_report import clip_table
from fyp_jax.evaluation.clip_score import load_clip, replicate_params
from fyp_jax.media.writing import write_mp4
from fyp_jax.pipeline.clip_store import list_clips, open_store
from fyp_jax.pipeline.output import PipelineOutput
from fyp_jax.pose.loading import load_pose
from fyp_jax.pose.networks import NetworkFiles
from fyp_jax.synthetic.kinematics import Figure
from keypoint_files import motion_keypoints

EVALUATE = SCRIPTS / "evaluate.py"
VIDEO = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3)).astype(np.uint8)
PROMPTS = ["A robot, on the beach", "a panda " * 90, "Ein Bär"]


def person(shift: float = 0.0) -> np.ndarray:
    joints = np.random.default_rng(1).uniform(10, 50, (17, 3))
    joints[:, 2], joints[:, 0] = 1, joints[:, 0] + shift
    return joints


def write_keypoints(file: Path, frames: list[list[np.ndarray]], width: int = 64, height: int = 64) -> Path:
    people = [[one.tolist() for one in frame] for frame in frames]
    file.write_text(json.dumps({"width": width, "height": height, "frames": people}))
    return file


def record_of(file: Path, crc32: int, prompt: str = "a robot", **pose: Any) -> dict[str, Any]:
    pose = {"path": str(file), "size": None, "stride": 1, "start": 0, **pose}
    return {"prompt": prompt, "pose": {"file": str(file), "crc32": crc32}, "config": {"pose": pose}}


def crc_of(file: Path, shape: tuple[int, ...], stride: int = 1, start: int = 0) -> int:
    frames, height, width = shape[:3]
    pose = load_pose(file, num_frames=frames, stride=stride, start=start, height=height, width=width)
    return zlib.crc32(pose.data)


def test_folder_of_another_model_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.TEXT_ENCODER))
    with pytest.raises(UserError, match="does not describe a CLIP model"):
        load_clip(str(tmp_path))


def test_scores_equal_those_of_pytorchs_clip_on_one_device_and_on_eight(clip_folder: Path):
    """The oracle pads no text, and gets its frames in one batch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, params = load_clip(str(clip_folder))
    oracle = transformers.CLIPModel.from_pretrained(str(clip_folder)).eval()
    for prompt in PROMPTS:
        inputs = model.tokenizer(prompt, return_tensors="pt", truncation=True, max_length=77)
        pixels = model.processor(list(VIDEO), return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            images = oracle.get_image_features(**pixels).numpy()
            text = oracle.get_text_features(**inputs)[0].numpy()
        images, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (images, text))
        alignment = 100 * np.mean([image @ text for image in images])
        consistency = 100 * np.mean([images[i] @ images[i + 1] for i in range(len(images) - 1)])
        for where in (params, replicate_params(params, jax.devices())):
            found = clip_scores(*model.embed(where, prompt, VIDEO))
            np.testing.assert_allclose(found, (alignment, consistency), atol=2e-3)


def test_flicker_is_the_change_from_frame_to_frame():
    still = np.full((4, 8, 8, 3), 100, np.uint8)
    assert flicker(still) == 0
    blinking = still.copy()
    blinking[1::2] += 6
    assert flicker(blinking) == 6
    assert flicker(still[:1]) is None


def test_given_pose_is_scaled_and_cropped_as_its_skeleton(tmp_path: Path):
    """The middle of the film is the middle of the clip; a joint that is cropped off is not there."""
    joints = person()
    joints[0, :2], joints[1, :2], joints[2] = (64, 32), (2, 32), (64, 32, 0.1)
    file = write_keypoints(tmp_path / "pose.json", [[person()], [joints], [person(5)]], width=128, height=64)
    frames = np.zeros((2, 128, 128, 3), np.uint8)
    record = record_of(file, crc_of(file, frames.shape, start=1), start=1)
    first, second = given_keypoints(record, frames) or []
    np.testing.assert_allclose(first[0, 0], [64, 64, 1])
    assert first[0, 1, 2] == 0, "left of the crop"
    assert first[0, 2, 2] == 0, "the skeleton does not show joints of low confidence"
    shown = second[0, :, 2] > 0
    np.testing.assert_allclose(second[0, shown, 0], 2 * (person(5)[shown, 0] - 32))
    write_keypoints(file, [[person(1)]] * 3, width=128, height=64)
    with pytest.raises(UserError, match="the pose has changed since the clip was made"):
        given_keypoints(record, frames)


def test_pose_of_skeleton_video_or_none_has_no_keypoints(tmp_path: Path):
    black = np.zeros((2, 64, 64, 3), np.uint8)
    write_mp4(tmp_path / "pose.mp4", black, 8)
    record = record_of(tmp_path / "pose.mp4", crc_of(tmp_path / "pose.mp4", black.shape))
    assert given_keypoints(record, black) is None
    assert given_keypoints({"prompt": "a robot", "pose": None}, black) is None
    with pytest.raises(UserError, match="does not say which pose"):
        given_keypoints({"pose": {"file": "a.json"}}, black)


def test_pose_error_is_none_for_the_given_pose_and_0_for_nobody():
    frames, target = np.zeros((2, 64, 64, 3), np.uint8), [person()[None], person(3)[None]]
    queue = iter(target)
    assert pose_error(frames, target, lambda image: next(queue)) == (1, 1)
    assert pose_error(frames, target, lambda image: np.zeros((0, 17, 3))) == (0, 0)
    assert pose_error(frames, [np.zeros((0, 17, 3))] * 2, lambda image: person()[None]) is None


def write_clips(folder: Path, form: str, pose: Path, count: int = 2) -> Path:
    store = open_store(form, folder, 0, 1)
    for number in range(count):
        frames = np.full((2, 64, 64, 3), 40 * number, np.uint8)
        frames[1] += 10
        record = record_of(pose, crc_of(pose, frames.shape), f"prompt {number}")
        store.add(
            f"{number:05d}", PipelineOutput(frames, np.zeros((2, 8, 8, 4), np.float32), None), 8.0, record
        )
    store.close()
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    pose = write_keypoints(tmp_path / "pose.json", [[person()], [person(2)]])
    return [write_clips(tmp_path / form, form, pose) for form in ("folder", "tar")]


def test_report_has_a_row_for_each_folder_and_clip(clips: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    done = run_script(EVALUATE, "--clips", *clips, "--measures", "flicker", "--out", out)
    assert done.status == 0, done.err
    assert (out / "scores.md").read_text() == done.out
    lines = done.out.splitlines()
    assert lines[0] == "| | clips | flicker |"
    assert [line.split(" | ")[:2] for line in lines[2:]] == [[f"| {path}", "2"] for path in clips]
    scores = json.loads((out / "scores.json").read_text())
    for path in clips:
        ci = scores[str(path)]["flicker"]
        assert ci["low"] <= ci["mean"] <= ci["high"]
        assert ci["mean"] == pytest.approx(10, abs=1)
    with (out / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["folder"], row["clip"], row["prompt"]) for row in rows] == [
        (str(path), f"{i:05d}", f"prompt {i}") for path in clips for i in range(2)
    ]
    assert {row["text_alignment"] for row in rows} == {""}
    with Image.open(out / "scores.png") as figure:
        assert min(figure.size) > 100


def test_clip_that_cannot_be_measured_is_named_and_left_out(clips: list[Path], tmp_path: Path):
    record = json.loads((clips[0] / "00001.json").read_text())
    (clips[0] / "00001.json").write_text(json.dumps({**record, "prompt": 3}))
    done = run_script(EVALUATE, "--clips", clips[0], "--measures", "flicker", "--out", tmp_path / "out")
    assert done.status == 2
    assert f"failed: {clips[0]}/00001.mp4: its record has no prompt" in done.err
    assert "1 clips could not be measured" in done.err
    assert f"| {clips[0]} | 1 | " in done.out


def test_mean_over_fewer_clips_says_so():
    rows = [("a", "p", ClipMeasures(flicker=1.0, pck=0.5)), ("b", "p", ClipMeasures(flicker=3.0))]
    table = list(clip_table({"x": rows}))
    assert table[0] == "| | clips | PCK@0.1 | flicker |"
    assert table[2] == "| x | 2 | 0.500 (0.500 to 0.500, 1 clips) | 2.00 (1.00 to 3.00) |"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--workers", "2"], "--workers needs --clips DIR"),
        (["--clips", "nowhere"], "nowhere: no such folder or tar of clips"),
        (["--clips", "{empty}"], "no clip of sample.py is here"),
        (["--clips", "{empty}", "--ablations"], "makes none: leave --ablations out"),
        (["--clips", "{empty}", "--num-clips", "3"], "makes none: leave --num-clips out"),
        (["--clips", "{empty}", "--workers", "0"], "--workers 0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, args: list[str], message: str):
    (tmp_path / "empty").mkdir()
    assert_mistake(run_script(EVALUATE, *(arg.format(empty=tmp_path / "empty") for arg in args)), message)


@pytest.mark.slow
def test_workers_give_the_same_measures(clips: list[Path], monkeypatch: pytest.MonkeyPatch):
    found = list_clips(clips[0])
    one, two = (
        [outcome for _, outcome in clip_folders.measure_clips(found, ("flicker",), None, None, workers)]
        for workers in (1, 2)
    )
    assert one == two
    assert all(isinstance(outcome, ClipMeasures) for outcome in one)


@pytest.mark.slow
def test_clips_of_the_bundled_model_are_measured(clip_folder: Path, tmp_path: Path):
    """sample.py --prompts writes what evaluate.py --clips reads; the weights of CLIP are random."""
    networks = pytest.importorskip("film_networks", reason="needs onnx")
    pytest.importorskip("rtmlib", reason="the extra [pose] is not installed")
    estimator = networks.save_rtmo(tmp_path / "rtmo.onnx", people=1)
    (tmp_path / "prompts.txt").write_text("A robot, on the beach\nA panda, on the moon\n")
    out, sizes = tmp_path / "clips", ["num_frames=2", "num_inference_steps=2"]
    done = run_script(SAMPLE, "--prompts", tmp_path / "prompts.txt", "--out", out, "--format", "tar", *sizes)
    assert done.status == 0, done.err
    args = ["--clip-model", clip_folder, "--estimator", estimator, "--out", tmp_path / "scores"]
    done = run_script(EVALUATE, "--clips", out, *args)
    assert done.status == 0, done.err
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())[str(out)]
    assert {name: scores[name]["clips"] for name in ClipMeasures._fields} == dict.fromkeys(
        ClipMeasures._fields, 2
    )
    model, params = load_clip(str(clip_folder))
    expected = [
        clip_scores(*model.embed(params, clip.record["prompt"], read_stored(clip)))
        for clip in list_clips(out)
    ]
    assert scores["text_alignment"]["mean"] == pytest.approx(np.mean([a for a, _ in expected]), abs=1e-3)


@pytest.mark.slow
def test_pose_of_a_film_that_follows_it_is_near(tmp_path: Path):
    """The clip is a film of discs at the joints of the pose; a network finds them."""
    networks = pytest.importorskip("film_networks", reason="needs onnx")
    pytest.importorskip("rtmlib", reason="the extra [pose] is not installed")
    side = 320
    keypoints = motion_keypoints("walk", Figure(0.8, 0.5, 0.93, width=1.2), 4, 89, side)
    pose = write_keypoints(tmp_path / "pose.json", [[x] for x in keypoints], side, side)
    frames = np.stack([networks.render(k[None], networks.colours(1), side, side) for k in keypoints])
    store = open_store("folder", tmp_path / "clips", 0, 1)
    record = record_of(pose, crc_of(pose, frames.shape))
    store.add("0", PipelineOutput(frames, np.zeros((4, 40, 40, 4), np.float32), None), 8.0, record)
    files = NetworkFiles(networks.save_rtmo(tmp_path / "rtmo.onnx", people=1), None)
    (measured,) = clip_folders.measure_clips(list_clips(tmp_path / "clips"), ("pose",), None, files, 1)
    assert isinstance(measured.outcome, ClipMeasures)
    assert measured.outcome.pck == 1
    assert measured.outcome.oks > 0.9
