"""Sampling gives back the clip that training has overfit, by the command in the README."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cli_utils import ROOT, SCRIPTS, run_script
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.training import loop
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import COLUMNS


@pytest.mark.release
def test_overfit_script_learns_one_clip(tmp_path: Path):
    """With half of the frames and steps that the script's config has."""
    options = ["data.num_frames=4", "num_train_steps=300", "log.log_interval=10"]
    command = [sys.executable, "scripts/overfit.py", "--out", str(tmp_path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = re.search(r"loss: from ([\d.]+) to ([\d.]+), a factor", done.stdout)
    assert report, done.stdout
    first, last = map(float, report.groups())
    assert last < first / 10
    with Image.open(tmp_path / "overfit.png") as grid:
        rows = np.asarray(grid, np.float32)
    clip, sample = rows[:128, :128], rows[132:260, :128]
    assert np.abs(clip - sample).mean() < 0.5 * np.abs(clip - clip.mean(axis=(0, 1))).mean()


def test_overfit_script_trains_on_the_clip_and_samples_with_its_caption(tmp_path: Path):
    """The cheap sibling: a training that writes losses alone, and a pipeline that gives a plain clip."""
    configs: list[TrainConfig] = []

    def train(config: TrainConfig) -> None:
        configs.append(config)
        rows = [",".join(["2.0"] * len(COLUMNS)), ",".join(["0.5"] * len(COLUMNS))]
        (tmp_path / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")

    def sample(prompt: str, pose: None, sampling: Any) -> Any:
        shape = (sampling.num_frames, sampling.height, sampling.width, 3)
        return SimpleNamespace(frames=np.full(shape, 77, np.uint8))

    pipeline = mock.Mock(side_effect=sample)
    with (
        mock.patch.object(loop, "train", train),
        mock.patch.object(FollowYourPosePipeline, "from_config", return_value=pipeline) as from_config,
    ):
        done = run_script(SCRIPTS / "overfit.py", "--out", tmp_path, "data.num_frames=3", "num_train_steps=2")
    assert done.status == 0, done.err
    assert "loss: from 2.000 to 0.5000, a factor of 4" in done.out
    (config,) = configs
    assert (config.num_train_steps, config.output_dir) == (2, str(tmp_path))
    assert Path(config.data.path).is_dir(), "the records of the clip"
    assert from_config.call_args.args[0].checkpoint == f"{tmp_path}/checkpoints"
    caption = pipeline.call_args.args[0]
    assert "robot" in caption
    assert caption in (tmp_path / "clip" / "metadata.csv").read_text()
    assert pipeline.call_args.args[2].guidance_scale == 1
    with Image.open(tmp_path / "overfit.png") as grid:
        rows = np.asarray(grid)
    assert rows.shape == (128 + 4 + 128, 3 * 132 - 4, 3)
    assert (rows[132:, :128] == 77).all(), "the sample, below the clip"
    assert rows[:128, :128].std() > 10
