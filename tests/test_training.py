"""The pose stage, then the motion stage; what ends a run early; and mistakes in the use of train.py."""

import dataclasses
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_loop import a_config, arrays, module_cache, train_on, world

import tiny_models
from fyp_jax import trees
from fyp_jax.checkpoints.inference import load_inference
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.cli import train
from fyp_jax.config import save_config
from fyp_jax.console import run_cli
from fyp_jax.data.datasets import TfdsRecordSource, open_records
from fyp_jax.data.loader import TooManyCorruptRecords
from fyp_jax.errors import UserError
from fyp_jax.training import loop
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import InitialState, initialize_weights
from fyp_jax.training.stages import STAGES

__all__ = ["module_cache", "world"]  # fixtures


class CorruptRecords:
    """Records of which some have only the first half of their video."""

    def __init__(self, records: TfdsRecordSource, corrupt: set[int]):
        self.records, self.corrupt = records, corrupt
        self.kind, self.fingerprint = records.kind, records.fingerprint

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        video = record["video"]
        return {**record, "video": video[: len(video) // 2]} if index in self.corrupt else record


def open_corrupt(corrupt: set[int]) -> Callable[[Any], Any]:
    return lambda path: CorruptRecords(open_records(path), corrupt)


def with_sigterm_in_the_first_call(make_step: Callable[..., Any]) -> Callable[..., Any]:
    """SIGTERM is sent before the first step is compiled and run."""

    def make(*arguments: Any, **options: Any) -> Any:
        step, calls = make_step(*arguments, **options), []

        def step_after_sigterm(*batch: Any) -> Any:
            if not calls:
                os.kill(os.getpid(), signal.SIGTERM)
            calls.append(batch)
            return step(*batch)

        return step_after_sigterm

    return make


class RecordingCheckpoints(TrainingCheckpoints):
    """Records the handler of SIGTERM while the last checkpoint is still being written."""

    sigterm: Any = None

    def __exit__(self, *arguments: Any) -> None:
        RecordingCheckpoints.sigterm = signal.getsignal(signal.SIGTERM)
        super().__exit__(*arguments)


def pose_config(world: Path, out: Path, **changes: Any) -> TrainConfig:
    config = a_config(world, out, stage="pose", random_init=False, pretrained=str(world / "weights"))
    data = dataclasses.replace(config.data, path=str(world / "records" / "pose_images"), num_frames=1)
    return dataclasses.replace(config, data=data, **changes)


@pytest.fixture(scope="module")
def pose_world(world: Path) -> Path:
    tiny_models.write_images(world, 5)
    tiny_models.write_weights(world / "pipeline", world / "weights")
    return world


@pytest.fixture(scope="module")
def pose_run(
    pose_world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, InitialState, list[str]]:
    """The pose stage, with SIGTERM in its first step: its folder, its initial state, and its messages."""
    out, messages, initial = tmp_path_factory.mktemp("pose"), [], []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loop.log.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "configured_step", with_sigterm_in_the_first_call(loop.configured_step))
        patch.setattr(loop, "TrainingCheckpoints", RecordingCheckpoints)
        patch.setattr(
            loop,
            "initialize_weights",
            lambda *arguments: initial.append(initialize_weights(*arguments)) or initial[0],
        )
        train_on(1, pose_config(pose_world, out, num_train_steps=9), patch)
    loop.log.removeHandler(handler)
    return out, initial[0], messages


@pytest.mark.slow
def test_sigterm_in_the_first_step_saves_and_ends_the_run(pose_run: tuple[Path, InitialState, list[str]]):
    """The stop signal reaches the run with the second step, so the checkpoint holds that step."""
    out, _, messages = pose_run
    assert messages == ["SIGTERM: saved step 2; run the same command to resume"]
    assert load_inference(out / "checkpoints")[2]["step"] == 2
    assert callable(RecordingCheckpoints.sigterm), "a second SIGTERM would have ended the write"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "after the run it is as before"


def test_pose_stage_trains_the_pose_encoder_alone_from_zero_maps(
    pose_run: tuple[Path, InitialState, list[str]],
):
    out, start, _ = pose_run
    encoder = start.models.pose_encoder
    assert encoder is not None
    params = {path.removeprefix("pose_encoder/"): x for path, x in start.trainable.items()}
    pose_images = tiny_models.batch("pose", 1, 1).pose_images
    maps = encoder.apply({"params": unflatten_dict(params, sep="/")}, jnp.asarray(pose_images))
    assert not any(np.any(x) for x in jax.tree.leaves(maps)), "training starts from the unchanged image model"
    after = arrays(out)
    changed = {
        path for path, x in after.items() if not np.array_equal(x, (start.trainable | start.frozen)[path])
    }
    assert changed
    assert all(path.startswith("pose_encoder/") for path in changed)


@pytest.mark.slow
def test_motion_stage_starts_from_the_prediction_of_the_pose_stage(
    pose_world: Path, pose_run: tuple[Path, InitialState, list[str]]
):
    """With `zero_init_temporal`; with the published initialisation of temporal attention it does not."""
    out, pose, _ = pose_run
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 1, 4, 4, 4)), np.array([7, 700]), rng.standard_normal((2, 77, 8))

    def predicted(start: InitialState) -> np.ndarray:
        flat = start.trainable | start.frozen
        unet = {path.removeprefix("unet/"): x for path, x in flat.items() if path.startswith("unet/")}
        apply = jax.jit(start.models.unet.apply)
        return np.asarray(apply({"params": unflatten_dict(unet, sep="/")}, *inputs))

    def motion(zero_init: bool) -> InitialState:
        config = pose_config(
            pose_world,
            out,
            stage="motion",
            init_checkpoint=f"{out}/checkpoints",
            zero_init_temporal=zero_init,
        )
        return initialize_weights(config, STAGES["motion"], None)

    theirs, scale = predicted(pose), np.abs(predicted(pose)).max()
    np.testing.assert_allclose(predicted(motion(True)), theirs, atol=1e-6 * scale)
    assert np.abs(predicted(motion(False)) - theirs).max() > 0.01 * scale


@pytest.mark.slow
def test_motion_stage_after_pose_stage_skips_a_corrupt_record_and_keeps_the_pose_encoder(
    pose_world: Path,
    pose_run: tuple[Path, InitialState, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """The log names the record that is skipped."""
    config = a_config(pose_world, tmp_path, random_init=False, pretrained=str(pose_world / "weights"))
    data = dataclasses.replace(config.data, max_corrupt_fraction=0.2)
    config = dataclasses.replace(
        config, init_checkpoint=f"{pose_run[0]}/checkpoints", num_train_steps=3, data=data
    )
    monkeypatch.setattr(loop, "open_records", open_corrupt({2}))
    losses = train_on(1, config, monkeypatch)
    assert np.isfinite([float(x) for x in losses]).all()
    assert re.findall(r"(\d\.mp4): skipped, ", caplog.text) == ["2.mp4"]
    after, before = arrays(tmp_path), arrays(pose_run[0])
    for path in (path for path in before if path.startswith("pose_encoder/")):
        np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def test_too_many_corrupt_records_end_the_run(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "open_records", open_corrupt({0, 1, 2}))
    config = a_config(world, tmp_path)
    config.data.max_corrupt_fraction = 0.4
    with pytest.raises(
        TooManyCorruptRecords, match=r"3 of 5 records are corrupt.*allows 2: \d\.mp4: "
    ) as caught:
        train_on(1, config, monkeypatch)
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_stage_is_not_resumed(
    pose_world: Path, pose_run: tuple[Path, InitialState, list[str]], monkeypatch: pytest.MonkeyPatch
):
    config = a_config(pose_world, pose_run[0])
    with pytest.raises(
        trees.TreeMismatch, match="checkpoints: step 2 is of another run: .*missing .*unexpected"
    ):
        train_on(1, config, monkeypatch)


def keys(config: Any, prefix: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        found += keys(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return found


def test_help_lists_every_field_with_default_and_meaning(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out.partition("config fields")[2]
    fields = re.findall(r"^  ([a-z_.0-9]+)=.*? +\S", shown, re.MULTILINE)
    assert fields == keys(TrainConfig())
    assert re.search(r"^  optimizer.lr=3e-05 +learning rate$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path={world}/nowhere"], "{world}/nowhere: no such folder"),
        (["data.batch_size=6"], "data.batch_size=6 is not a multiple of 8"),
        (
            ["mesh.data=-1", "mesh.frame=4"],
            "data.num_frames=2 is not a multiple of mesh.frame=4",
        ),
        (["mesh.fsdp=3"], "does not fit the 8 devices"),
        (["mesh.process_id=1"], "mesh.process_id is given, but not mesh.coordinator and mesh.num_processes"),
        (["optimizer.lr=0"], "optimizer.lr=0.0 is out of range"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: "),
        (["optimiser.lr=1"], "unknown key optimiser"),
        (["stage=third"], "stage=third: the stages are pose, motion, one_shot, autoencoder, decoder, image"),
        (["stage=pose"], "holds captioned_videos, but the pose stage trains on pose_images"),
        (["num_train_steps=0"], "num_train_steps=0 must be at least 1"),
        (["checkpoint.save_interval=0"], "checkpoint.save_interval=0 must be at least 1"),
        (
            ["optimizer.grad_accumulation_steps=3"],
            "optimizer.grad_accumulation_steps=3 does not divide the 1 clips",
        ),
        (["init_checkpoint={world}/nowhere", "random_init=false"], "{world}/"),
        (["random_init=false"], "{world}/pipeline"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistake_in_train_ends_with_one_line_and_status_2(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
):
    config = a_config(world, tmp_path / "run")
    config.data.batch_size = 8
    save_config(config, tmp_path / "config.yaml")
    arguments = [override.format(world=world) for override in overrides]
    monkeypatch.setattr("sys.argv", ["train.py", "--config", str(tmp_path / "config.yaml"), *arguments])
    assert run_cli(train.main) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message.format(world=world) in errors[0]


@pytest.mark.release
def test_autoencoder_then_image_stage_train_their_own_models(
    pose_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A Stable Diffusion from nothing: each checkpoint holds all models that differ from `pretrained`."""
    no_weights = str(pose_world / "pipeline")
    reinit = ["vae", "text_encoder", "unet", "pose_encoder"]
    first, second = tmp_path / "autoencoder", tmp_path / "image"
    losses = train_on(
        1,
        pose_config(
            pose_world, first, stage="autoencoder", pretrained=no_weights, reinit=reinit, num_train_steps=8
        ),
        monkeypatch,
    )
    assert float(losses[-1]) < float(losses[0])
    _, made, _ = load_inference(first / "checkpoints")
    assert set(made) == {"unet", "pose_encoder", "vae", "text_encoder"}
    image = pose_config(
        pose_world, second, stage="image", pretrained=no_weights, init_checkpoint=f"{first}/checkpoints",
        num_train_steps=2, reinit=["text_encoder"],
    )  # fmt: skip
    train_on(1, image, monkeypatch)
    _, after, _ = load_inference(second / "checkpoints")
    before, after = flatten_dict(made, sep="/"), flatten_dict(after, sep="/")
    changed = {path for path, x in after.items() if not np.array_equal(x, before[path])}
    assert {path.split("/")[0] for path in changed} == {"unet", "text_encoder"}
    assert not any(np.any(x) for path, x in after.items() if "conv_temporal/up" in path), "not trained"
    # The next stage needs only the configs of the pipeline folder.
    start = initialize_weights(
        dataclasses.replace(image, stage="pose", init_checkpoint=f"{second}/checkpoints", reinit=[]),
        STAGES["pose"],
        None,
    )
    assert start.saved_models == ("unet", "pose_encoder", "vae", "text_encoder")
    np.testing.assert_array_equal(
        start.frozen["text_encoder/text_model/final_layer_norm/scale"],
        after["text_encoder/text_model/final_layer_norm/scale"],
    )


def test_checkpoint_lacks_the_weights_that_pretrained_has(pose_run: tuple[Path, InitialState, list[str]]):
    assert set(load_inference(pose_run[0] / "checkpoints")[1]) == {"unet", "pose_encoder"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reinit": ["unett"]}, "reinit=unett: the models are unet, pose_encoder, vae, text_encoder"),
        (
            {"reinit": ["unet"], "random_init": True},
            "reinit=unet and random_init=true exclude each other: leave one out",
        ),
    ],
)
def test_reinit_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        TrainConfig(**changes).check()
