"""Folders of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.media.images import image_grid
from fyp_jax.pipeline.files import new_run_folder, write_clip


def test_each_run_has_a_folder_of_its_own(tmp_path: Path):
    assert [new_run_folder(tmp_path / "a" / "b").name for _ in range(3)] == ["0000", "0001", "0002"]
    (tmp_path / "a" / "b" / "0007").mkdir()
    (tmp_path / "a" / "b" / "notes").mkdir()
    assert new_run_folder(tmp_path / "a" / "b").name == "0008"


def test_a_folder_that_another_run_takes_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "0000").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # as if it had not been there a moment ago
    assert new_run_folder(tmp_path).name == "0001"


def test_no_folder_to_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/runs: no folder"):
        new_run_folder(tmp_path / "file" / "runs")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A robot, on the beach!", "03-a-robot-on-the-beach"),
        ("ロボット", "03"),
        ("../../etc/passwd", "03-etc-passwd"),
        ("x" * 200, "03-" + "x" * 48),
    ],
)
def test_names_of_files(tmp_path: Path, prompt: str, name: str):
    video, poses = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16, 3), np.float32)
    assert write_clip(tmp_path, 3, prompt, video, poses, 8, {"prompt": prompt}) == tmp_path / f"{name}.mp4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{e}" for e in ("gif", "json", "mp4", "png")
    ]
    assert json.loads((tmp_path / f"{name}.json").read_text()) == {"prompt": prompt}


def test_the_sheet_of_a_clip_without_poses_is_its_frames(tmp_path: Path):
    video = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), np.uint8)
    poses = np.full(video.shape, 0.2, np.float32)  # 51 of 255

    def sheet(poses: np.ndarray | None) -> np.ndarray:
        file = write_clip(tmp_path, 0, "x", video, poses, 8, {"pose": None})
        return np.asarray(Image.open(file.with_suffix(".png")))

    np.testing.assert_array_equal(sheet(None), image_grid([video]))
    above, below = sheet(poses)[:16], sheet(poses)[-16:]
    assert (above[:, :32] == 51).all()
    np.testing.assert_array_equal(below, sheet(None))
    assert json.loads((tmp_path / "00-x.json").read_text()) == {"pose": None}
