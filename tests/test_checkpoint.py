"""Checkpoints that are damaged, incomplete or of another run are refused in one line; the latest complete one
is used."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import tiny_models
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, save_inference
from fyp_jax.checkpoints.manager import CheckpointError, resolve_step
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.models.random_params import random_params
from fyp_jax.training.config import OptimizerConfig
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.trees import TreeMismatch

TRAIN = {"trainable": {"w": jnp.arange(6000.0)}, "step": jnp.asarray(0)}


def write(folder: Path, *steps: int) -> Path:
    inference = random_params(inference_shapes(tiny_models.UNET), seed=0)
    with TrainingCheckpoints(folder, max_to_keep=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(
                step,
                train={**TRAIN, "step": jnp.asarray(step)},
                inference=inference,
                data={"step": step},
                config={"unet": tiny_models.UNET.to_json(), "provenance": {}},
                loss=1.0,
            )
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoints"), 1, 2)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def restore(folder: Path, train: Any = TRAIN) -> Any:
    with TrainingCheckpoints(folder, max_to_keep=2) as checkpoints:
        return checkpoints.restore(train)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def test_restore_gives_the_latest_step(folder: Path):
    restored = restore(folder)
    assert (restored.step, int(restored.train["step"]), restored.data) == (2, 2, {"step": 2})
    np.testing.assert_array_equal(restored.train["trainable"]["w"], TRAIN["trainable"]["w"])


def test_restore_without_checkpoints_gives_none(tmp_path: Path):
    assert restore(tmp_path / "new") is None


@pytest.mark.parametrize("state", ["complete", "empty", "incomplete"])
def test_step_that_was_not_renamed_is_ignored(folder: Path, state: str):
    """Orbax writes a step under another name and renames it when it is complete."""
    leftover = folder / "3.orbax-checkpoint-tmp-7"
    if state == "empty":
        leftover.mkdir()
    elif state == "complete":
        shutil.copytree(folder / "2", leftover)
    else:
        shutil.copytree(folder / "2" / "train", leftover / "train.orbax-checkpoint-tmp-8")
    assert load_inference(folder)[2]["step"] == 2
    assert restore(folder).step == 2


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no train": lambda step: shutil.rmtree(step / "train"),
    "no arrays": lambda step: shutil.rmtree(step / "train" / "d"),
    "arrays cut": lambda step: [cut(path) for path in files(step / "train" / "d")],
    "no names": lambda step: (step / "train" / "_METADATA").unlink(),
    "names cut": lambda step: cut(step / "train" / "_METADATA"),
    "no data": lambda step: shutil.rmtree(step / "data"),
    "data cut": lambda step: [cut(path) for path in files(step / "data")],
    "empty": lambda step: [path.unlink() for path in files(step)],
    "all cut": lambda step: [cut(path) for path in files(step)],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_restore_of_damaged_step_raises_its_name_in_one_line(folder: Path, damage: str):
    DAMAGE[damage](folder / "2")
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}: step 2 ") as caught:
        restore(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({**TRAIN, "average": {"w": jnp.arange(3.0)}}, r"1 missing \(average/w\)$"),
        ({"step": jnp.asarray(0)}, r"1 unexpected \(trainable/w\)$"),
        (
            {**TRAIN, "trainable": {"w": jnp.arange(3.0)}},
            r"1 wrong shape \(trainable/w is \(6000,\) but should",
        ),
    ],
    ids=["more", "less", "another shape"],
)
def test_restore_with_other_arrays_lists_the_differences(folder: Path, other: Any, says: str):
    with pytest.raises(TreeMismatch, match=f"^{re.escape(str(folder))}: step 2 is of another run: {says}"):
        restore(folder, other)


def test_restore_of_weights_alone_says_how_to_use_them(tmp_path: Path):
    save_inference(
        tmp_path, 7, tiny_models.UNET, random_params(inference_shapes(tiny_models.UNET), seed=0), {}
    )
    with pytest.raises(
        CheckpointError,
        match=f"step 7 holds no training state .* set init_checkpoint={re.escape(str(tmp_path))}",
    ):
        restore(tmp_path)


def test_optimizer_state_is_restored_with_its_structure(tmp_path: Path):
    """The state has tuples, named and unnamed, some of them empty; Orbax saves these as lists and dicts."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    train = {"trainable": TRAIN["trainable"], "opt_state": optimizer.init(TRAIN["trainable"])}
    with TrainingCheckpoints(tmp_path, max_to_keep=1) as checkpoints:
        checkpoints.save(1, train=train, inference={"x": jnp.zeros(1)}, data={}, config={}, loss=0.0)
    restored = restore(tmp_path, train)
    assert jax.tree.structure(restored.train) == jax.tree.structure(train)


# ---- which step a name means


@pytest.mark.parametrize(
    ("name", "step", "found"),
    [
        ("run/checkpoints", None, 20),
        ("run/checkpoints", 5, 5),
        ("run", None, 20),
        ("run", 5, 5),
        ("run/checkpoints/5", None, 5),
        ("run/checkpoints/5/", 5, 5),
    ],
)
def test_step_is_found_from_a_run_its_checkpoints_or_one_step(
    tmp_path: Path, name: str, step: int | None, found: int
):
    """The run's folder also has logs and samples, whose numbers are no steps."""
    for folder in ("checkpoints/5/inference", "checkpoints/20/inference", "samples/400", "0001"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    assert resolve_step(f"{tmp_path}/{name}", step) == (epath.Path(tmp_path / "run" / "checkpoints"), found)


@pytest.mark.parametrize("name", ["run/checkpoints", "run"])
def test_step_that_is_not_there_lists_those_that_are(tmp_path: Path, name: str):
    for step in (5, 20, 100):
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=rf"^{tmp_path}/{name}: has no step 7 \(there are: 100, 20, 5\)$"
    ):
        resolve_step(tmp_path / name, 7)


@pytest.mark.parametrize(
    ("made", "name", "step", "message"),
    [
        ("5/inference", "5", 20, "is step 5, not step 20"),
        ("best/inference", "best", None, "name the folder by its step number"),
        ("runs/0000", "runs", None, "no checkpoint in it"),
        ("runs/checkpoints", "runs", None, "no checkpoint in it"),
        ("pipe/model_index.json", "pipe", None, "is a pipeline folder: give it as pretrained=FOLDER"),
        ("ck/pytorch_model.bin", "ck", None, "holds PyTorch weights: scripts/import_pytorch.py makes"),
        ("ds/global_step9/mp_rank_00", "ds", None, "is a checkpoint of DeepSpeed; .* zero_to_fp32.py"),
    ],
)
def test_folder_that_means_no_step_is_refused(
    tmp_path: Path, made: str, name: str, step: int | None, message: str
):
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=message):
        resolve_step(tmp_path / name, step)


def test_file_as_a_checkpoint_is_named(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no such folder \(it is a file; .*pretrained=FILE"):
        resolve_step(tmp_path / "model.safetensors")


def test_weights_of_one_step_are_read_from_every_form(written: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(written, run / "checkpoints")
    for name, step in ((run, 1), (run / "checkpoints", 1), (run / "checkpoints" / "1", None)):
        assert load_inference(name, step=step)[2]["step"] == 1
