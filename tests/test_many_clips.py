"""sample.py --prompts: which clips are made, by which process, and what is done when a run starts again."""

import dataclasses
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import tiny_models
from cli_utils import ROOT, SAMPLE, Run, assert_mistake, run_script
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.pipeline import many_clips
from fyp_jax.pipeline.clip_batches import ClipRequest
from fyp_jax.pipeline.clip_store import StoredClip, list_clips
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.output import PipelineOutput
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "a robot", "seed": 1},
    {"prompt": "a panda", "num_frames": 1, "pose": None},
    {"prompt": "a robot", "seed": 2, "guidance_scale": 3.0},
    {"prompt": "a man", "num_frames": 1, "pose": None, "seed": 5, "negative_prompt": "dark"},
    {"prompt": "a robot", "pose_start": 4},
]
TIMEOUT = 900


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.write_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> FollowYourPosePipeline:
    config = SampleConfig(
        pretrained=str(tiny), random_init=True, num_frames=2, height=64, width=64, num_inference_steps=1
    )
    return FollowYourPosePipeline.from_config(config)


def options(tiny: Path) -> list[str]:
    sizes = ["num_frames=2", "height=64", "width=64", "num_inference_steps=1", "guidance_scale=2"]
    return [f"pretrained={tiny}", "random_init=true", "noise_correlation=0", *sizes]


def write_prompts(folder: Path, prompts: Sequence[dict[str, Any]]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, prompts)))
    return file


class Fake:
    """In place of pipeline and sampler: clips that depend on all that was asked, and a list of batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pipeline: FollowYourPosePipeline):
        self.batches: list[tuple[int, list[str]]] = []
        monkeypatch.setattr(FollowYourPosePipeline, "from_config", lambda config: pipeline)
        monkeypatch.setattr(many_clips, "BatchSampler", self.sampler)

    def sampler(self, pipeline: Any, devices: Sequence[Any]) -> Any:
        def sample(requests: Sequence[ClipRequest], clips_per_device: int) -> list[PipelineOutput]:
            self.batches.append(
                (len(devices) * clips_per_device, [f"{x.prompt} {x.sampling.seed}" for x in requests])
            )
            return [self.clip(request) for request in requests]

        return sample

    def clip(self, request: ClipRequest) -> PipelineOutput:
        number = request.sampling.seed * 10 % 256
        frames = np.full((request.sampling.num_frames, 64, 64, 3), number, np.uint8)
        latents = np.full((len(frames), 8, 8, 4), np.nan if request.prompt == "nan" else 0, np.float32)
        return PipelineOutput(frames, latents, request.pose_images)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, pipeline: FollowYourPosePipeline) -> Fake:
    return Fake(monkeypatch, pipeline)


def sample(tiny: Path, prompts: Path, out: Path, *args: str) -> Run:
    return run_script(SAMPLE, "--prompts", prompts, "--out", out, *args, *options(tiny))


def names(out: Path) -> list[str]:
    return [clip.name for clip in list_clips(out)]


def test_clips_of_one_shape_are_made_together(tiny: Path, tmp_path: Path, fake: Fake):
    file = write_prompts(tmp_path, PROMPTS)
    assert sample(tiny, file, tmp_path / "out", "mesh.data=2").status == 0
    assert fake.batches == [
        (2, ["a robot 1", "a robot 2"]),
        (2, ["a robot 0"]),
        (2, ["a panda 0", "a man 5"]),
    ]
    fake.batches.clear()
    args = ("mesh.data=-1", "--per-device-batch-size", "4")
    assert sample(tiny, file, tmp_path / "other", *args).status == 0
    assert [size for size, _ in fake.batches] == [8, 8], "no more clips a device than there are"
    assert names(tmp_path / "out") == names(tmp_path / "other") == [f"{i:05d}" for i in range(5)]


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_second_start_makes_what_is_missing(tiny: Path, tmp_path: Path, fake: Fake, form: str):
    out = tmp_path / "out"
    assert sample(tiny, write_prompts(tmp_path, PROMPTS[:3]), out, "--format", form).status == 0
    fake.batches.clear()
    file = write_prompts(tmp_path, PROMPTS)
    if form == "folder":
        (out / "00001.png").write_bytes(b"cut off")
    assert sample(tiny, file, out, "--format", form).status == 0
    made = [text for _, batch in fake.batches for text in batch]
    assert made == [*(["a robot 0", "a panda 0"] if form == "folder" else ["a robot 0"]), "a man 5"]
    fake.batches.clear()
    assert sample(tiny, file, out, "--format", form, "mesh.data=4").status == 0
    assert fake.batches == []
    assert names(out) == [f"{i:05d}" for i in range(5)]


def test_changed_clip_is_refused_and_the_others_are_made(tiny: Path, tmp_path: Path, fake: Fake):
    out = tmp_path / "out"
    assert sample(tiny, write_prompts(tmp_path, PROMPTS[:3]), out).status == 0
    changed = [PROMPTS[0], {**PROMPTS[1], "seed": 3}, {**PROMPTS[2], "pose_start": 1}, *PROMPTS[3:]]
    fake.batches.clear()
    file = write_prompts(tmp_path, changed)
    done = sample(tiny, file, out)
    assert done.status == 2
    assert f"failed: {file}:2: {out}/00001: is there with seed=0, not 3; --overwrite makes it" in done.err
    assert f"{file}:3: {out}/00002: is there with pose=" in done.err
    assert "error: 2 of 5 clips failed, see above: 00002, 00001" in done.err
    assert [text for _, batch in fake.batches for text in batch] == ["a robot 0", "a man 5"]
    fake.batches.clear()
    assert sample(tiny, file, out, "--overwrite").status == 0
    assert [text for _, batch in fake.batches for text in batch] == ["a robot 2", "a panda 3"]
    assert sample(tiny, file, out).status == 0


def test_clip_that_fails_does_not_stop_the_others(tiny: Path, tmp_path: Path, fake: Fake):
    bad = [
        {"prompt": "a robot", "pose": "nowhere.json"},
        {"prompt": "nan"},
        {"prompt": "a robot", "num_inference_steps": 5000},
    ]
    file = write_prompts(tmp_path, [*bad, *PROMPTS])
    done = sample(tiny, file, tmp_path / "out")
    assert done.status == 2
    for line, message in ((1, "nowhere.json: no such file"), (2, "latents are not finite"), (3, "5000")):
        text = next(text for text in done.err.splitlines() if f"failed: {file}:{line}: " in text)
        assert message in text
    assert "error: 3 of 8 clips failed" in done.err.splitlines()[-1]
    assert names(tmp_path / "out") == [f"{i:05d}" for i in range(3, 8)]


def test_clips_of_other_weights_are_not_mixed(
    tiny: Path, tmp_path: Path, fake: Fake, pipeline: FollowYourPosePipeline, monkeypatch: pytest.MonkeyPatch
):
    file, out = write_prompts(tmp_path, PROMPTS[:2]), tmp_path / "out"
    assert sample(tiny, file, out).status == 0
    monkeypatch.setitem(pipeline.weights, "crc32", 5)
    done = sample(tiny, file, out)
    assert done.status == 2
    assert f"error: {out}: its clips are of other weights; give another --out" in done.err
    fake.batches.clear()
    assert sample(tiny, file, out, "--overwrite").status == 0
    assert len(fake.batches) == 2


@pytest.mark.parametrize("field", ["schedule", "window", "tokens"])
def test_clips_of_equal_weights_that_are_read_otherwise_are_not_mixed(
    tiny: Path,
    tmp_path: Path,
    fake: Fake,
    pipeline: FollowYourPosePipeline,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
):
    """Another prediction type, window or tokenizer makes another clip of the same weights."""
    file, out = write_prompts(tmp_path, PROMPTS[:1]), tmp_path / "out"
    assert sample(tiny, file, out).status == 0
    encoders = pipeline.programs.encoders
    padding = encoders.spec.padding - 1
    changes: dict[str, Any] = {
        "schedule": {"schedule": ScheduleConfig(prediction_type="v_prediction")},
        "window": {"trained_frames": 5},
        "tokens": {"encoders": dataclasses.replace(encoders, padding=padding)},
    }
    programs = dataclasses.replace(pipeline.programs, **changes[field])
    Fake(monkeypatch, dataclasses.replace(pipeline, programs=programs))
    done = sample(tiny, file, out)
    assert done.status == 2
    assert f"{out}/00000: is there with {field}=" in done.err


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_make_all_clips_and_none_twice(
    tiny: Path,
    tmp_path: Path,
    fake: Fake,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    file = write_prompts(tmp_path, [*PROMPTS, *({"prompt": "more", "seed": 10 + i} for i in range(4))])
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        done = sample(tiny, file, tmp_path / "out", "--format", "tar", "mesh.data=-1")
        assert done.status == 0, done.err
    made = [text for _, batch in fake.batches for text in batch]
    assert len(made) == len(set(made)) == 9
    assert names(tmp_path / "out") == [f"{i:05d}" for i in range(9)]
    assert len(list((tmp_path / "out").glob("*.tar"))) == processes


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", "a robot", "--out", "x"], "--prompt and --prompts exclude each other"),
        (["--pose-from", "a.mp4", "--out", "x"], "--pose-from and --prompts exclude each other"),
        ([], "--prompts needs --out DIR"),
        (["--out", "x", "--per-device-batch-size", "0"], "--per-device-batch-size 0 must be at least 1"),
        (["--out", "x", "mesh.frame=2"], "with --prompts each device makes whole clips"),
        (["--out", "x", "mesh.data=0"], "with --prompts each device makes whole clips"),
        (["--out", "x", "mesh.data=9"], "mesh.data=9 needs 9 devices in each process; here are 8"),
        (["--out", "x", "invert=waving"], "invert=waving: is for single clips"),
    ],
)
def test_options_that_do_not_go_with_prompts_are_refused(tmp_path: Path, args: list[str], message: str):
    file = write_prompts(tmp_path, PROMPTS)
    assert_mistake(run_script(SAMPLE, "--prompts", file, *args), message)


def test_options_of_prompts_need_a_file():
    assert_mistake(run_script(SAMPLE, "--format", "tar"), "--format needs --prompts FILE")


def mixed_prompts(count: int) -> list[dict[str, Any]]:
    """Prompts of four shapes, each with a seed, a guidance scale and a pose of its own."""
    shapes: list[dict[str, Any]] = [{}, {"num_frames": 3, "window": 2}, {"pose": None}, {"solver": "unipc"}]
    return [
        {"prompt": f"clip {i}", "num_frames": 1, "seed": i, "guidance_scale": 1 + i % 3, "pose_start": i % 5}
        | shapes[i % 4]
        for i in range(count)
    ]


def start(tiny: Path, file: Path, out: Path, devices: int, *args: str) -> subprocess.Popen[str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(SAMPLE), "--prompts", str(file), "--out", str(out), *args, *options(tiny)]
    return subprocess.Popen(
        [*command, "mesh.data=-1"],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    try:
        for process in processes:
            stderr = process.communicate(timeout=TIMEOUT)[1]
            assert process.returncode == 0, stderr[-3000:]
    finally:
        for process in processes:
            process.kill()


def two_processes() -> list[list[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = [f"mesh.coordinator=127.0.0.1:{port}", "mesh.num_processes=2"]
    return [[*cluster, f"mesh.process_id={i}"] for i in range(2)]


def image_grid(clip: StoredClip) -> np.ndarray:
    """Frames of a clip without loss: a level more in one pixel changes whole blocks of an mp4."""
    file = clip.mp4.file
    if file.suffix == ".tar":
        with tarfile.open(file) as tar:
            return np.asarray(Image.open(io.BytesIO(tar.extractfile(f"{clip.name}.png").read()))).astype(int)
    return np.asarray(Image.open(file.with_suffix(".png"))).astype(int)


def assert_same_but_rounding(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """A few pixels may differ by one of 255 levels, where 1e-5 more or less is rounded."""
    assert np.abs(ours - theirs).max() <= 1, name
    assert (ours != theirs).mean() < 0.001, name


def assert_same_clips(out: Path, other: Path, count: int) -> None:
    ours, theirs = list_clips(out), list_clips(other)
    assert (
        [clip.name for clip in ours] == [clip.name for clip in theirs] == [f"{i:05d}" for i in range(count)]
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.record["made_of"] == b.record["made_of"]
        assert_same_but_rounding(image_grid(a), image_grid(b), a.name)


def kill_when_some_are_done(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while len(list(out.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_two_processes_give_the_clips_of_the_pipeline(
    tiny: Path, tmp_path: Path, pipeline: FollowYourPosePipeline
):
    prompts = [x | {"num_frames": 1, "pose": None} for x in mixed_prompts(4) if "solver" not in x]
    file, out = write_prompts(tmp_path, prompts), tmp_path / "out"
    finish(*(start(tiny, file, out, 1, "--format", "tar", *args) for args in two_processes()))
    assert len(list(out.glob("*.tar"))) == 2
    for clip, asked in zip(list_clips(out), prompts, strict=True):
        changes = {name: asked[name] for name in ("seed", "num_frames")}
        changes["guidance_scale"] = float(asked["guidance_scale"])
        alone = pipeline(asked["prompt"], None, **changes)
        alone.save(tmp_path / "alone.png")
        expected = np.asarray(Image.open(tmp_path / "alone.png")).astype(int)
        assert_same_but_rounding(image_grid(clip), expected, clip.name)


@pytest.mark.release
def test_64_clips_on_8_devices_in_one_and_two_processes_equal_those_made_alone(tiny: Path, tmp_path: Path):
    count = 64
    prompts = mixed_prompts(count)
    file = write_prompts(tmp_path, prompts)
    one, two, alone = tmp_path / "one", tmp_path / "two", tmp_path / "alone"
    kill_when_some_are_done(one, killed := start(tiny, file, one, 8, "--per-device-batch-size", "2"))
    assert killed.returncode == -signal.SIGKILL
    shutil.copytree(one, two)  # two processes go on from what one has left
    finish(start(tiny, file, one, 8, "--per-device-batch-size", "2"))
    finish(*(start(tiny, file, two, 4, *args) for args in two_processes()))
    finish(start(tiny, file, alone, 1))
    assert_same_clips(one, alone, count)
    assert_same_clips(two, alone, count)
