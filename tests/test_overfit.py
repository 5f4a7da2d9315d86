"""Sampling gives back the clip that training has overfit, by the command in the README."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
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
    clip, sample = rows[:64, :64], rows[68:132, :64]
    assert np.abs(clip - sample).mean() < 0.5 * np.abs(clip - clip.mean(axis=(0, 1))).mean()
