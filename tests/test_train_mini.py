"""scripts/train_mini.sh with a `python` that trains nothing: order of its parts, resuming, accelerators."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cli_utils import ROOT, SCRIPTS
from fyp_jax.config import load_config
from fyp_jax.training.config import TrainConfig

PARTS = ["autoencoder", "autoencoder_whole", "image", "stage1_pose", "stage2_motion", "decoder"]
PYTHON = """#!/usr/bin/env bash
case "$*" in
*default_backend*) echo "$PLATFORM" ;;
*) echo "$*" ;;
esac
[[ -z "${STOP:-}" || "$*" != *"$STOP"* ]] || exit 143
case "$*" in
*train.py*) grep "^output_dir" "$3" | cut -d " " -f 2 | xargs mkdir -p ;;
*segmenter.py*) touch "${@: -1}" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The script and the configs, in a folder of their own."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "train_mini.sh", tmp_path / "scripts")
    shutil.copytree(ROOT / "configs" / "mini", tmp_path / "configs" / "mini")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON)
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def run(clone: Path, status: int = 0, platform: str = "cpu", stop: str = "") -> list[str]:
    """The lines that the script printed."""
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", clone / "scripts" / "train_mini.sh"],
        env={**os.environ, "PATH": path, "PLATFORM": platform, "STOP": stop},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.splitlines()


def trained(lines: list[str]) -> list[str]:
    return [Path(line.split()[2]).stem for line in lines if line.startswith("train.py")]


def test_train_mini_trains_all_parts_and_packages_them(clone: Path):
    lines = run(clone)
    assert trained(lines) == PARTS
    assert [line.split()[0] for line in lines[6:8]] == [
        "scripts/train_part_segmenter.py",
        "scripts/package_mini.py",
    ]
    assert not any("batch_size" in line for line in lines)
    report = lines[lines.index("minutes of each part:") + 1 : -1]
    assert sorted(line.split()[1] for line in report) == sorted([*PARTS, "part_segmenter"])
    assert lines[-1] == "python sample.py pretrained=runs/mini/model"


def test_train_mini_that_was_stopped_goes_on_with_the_part_that_was_not_done(clone: Path):
    assert trained(run(clone, status=143, stop="stage1_pose")) == PARTS[:4]
    assert trained(run(clone)) == PARTS[3:]
    assert trained(run(clone)) == []
    times = (clone / "runs" / "mini" / "times.txt").read_text().split()[::2]
    assert times.count("stage1_pose") == 2


def test_train_mini_on_a_gpu_takes_larger_batches_from_a_pool_of_scenes(clone: Path):
    options = {Path(line.split()[2]).stem: line.split()[3:] for line in run(clone, platform="gpu")[:6]}
    sizes = {name: int(words[0].removeprefix("data.batch_size=")) for name, words in options.items()}
    assert sizes == {
        "autoencoder": 16, "autoencoder_whole": 16, "image": 64, "stage1_pose": 64, "stage2_motion": 16,
        "decoder": 16,
    }  # fmt: skip
    for name, words in options.items():
        load_config(TrainConfig, ROOT / "configs" / "mini" / f"{name}.yaml", words).check()
        assert words[1].startswith("data.pool_size=")


def test_each_stage_starts_from_the_folder_of_one_before_it():
    configs = [yaml.safe_load((ROOT / "configs" / "mini" / f"{name}.yaml").read_text()) for name in PARTS]
    folders = [f"{config['output_dir']}/checkpoints" for config in configs]
    assert "init_checkpoint" not in configs[0]
    for i, config in enumerate(configs[1:], 1):
        assert config["init_checkpoint"] in folders[:i]
