"""That training learns what sampling gives back, by the command that the README names."""

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
    """Half of the script's own frames and steps."""
    options = ["data.num_frames=4", "num_train_steps=300", "log.log_interval=10"]
    command = [sys.executable, "scripts/overfit.py", "--out", str(tmp_path), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = re.search(r"loss: from ([\d.]+) to ([\d.]+), a factor", done.stdout)
    assert said, done.stdout
    first, last = map(float, said.groups())
    assert last < first / 10
    with Image.open(tmp_path / "overfit.png") as sheet:
        rows = np.asarray(sheet, np.float32)
    clip, sample = rows[:64, :64], rows[68:132, :64]
    assert np.abs(clip - sample).mean() < 0.5 * np.abs(clip - clip.mean(axis=(0, 1))).mean()
