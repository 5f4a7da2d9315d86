"""The folder of a run, and the files of a clip."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.media.images import image_grid
from fyp_jax.pipeline.clip_store import SUFFIXES
from fyp_jax.pipeline.files import new_run_folder, write_clip
from fyp_jax.pipeline.output import PipelineOutput


def output(video: np.ndarray, pose_images: np.ndarray | None) -> PipelineOutput:
    return PipelineOutput(video, np.zeros((len(video), 2, 2, 4), np.float32), pose_images)


def test_each_run_has_the_next_free_folder(tmp_path: Path):
    assert [new_run_folder(tmp_path / "a" / "b").name for _ in range(3)] == ["0000", "0001", "0002"]
    (tmp_path / "a" / "b" / "0007").mkdir()
    (tmp_path / "a" / "b" / "notes").mkdir()
    assert new_run_folder(tmp_path / "a" / "b").name == "0008"


def test_folder_that_another_run_makes_at_the_same_time_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "0000").mkdir()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(()))  # as if it had not been there a moment ago
    assert new_run_folder(tmp_path).name == "0001"


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path):
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
def test_file_names_are_number_and_words_of_the_prompt(tmp_path: Path, prompt: str, name: str):
    video = np.zeros((2, 16, 16, 3), np.uint8)
    assert (
        write_clip(tmp_path, 3, prompt, output(video, video), 8.0, {"prompt": prompt})
        == tmp_path / f"{name}.mp4"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.{e}" for e in ("gif", "json", "mp4", "png")
    ]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record.pop("crc32") == {e: zlib.crc32((tmp_path / f"{name}{e}").read_bytes()) for e in SUFFIXES}
    assert record == {"prompt": prompt}


def test_grid_of_a_clip_has_skeletons_above_frames_if_there_are_any(tmp_path: Path):
    video = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), np.uint8)
    pose_images = np.full(video.shape, 51, np.uint8)

    def grid(pose_images: np.ndarray | None) -> np.ndarray:
        file = write_clip(tmp_path, 0, "x", output(video, pose_images), 8.0, {"pose": None})
        return np.asarray(Image.open(file.with_suffix(".png")))

    np.testing.assert_array_equal(grid(None), image_grid([video]))
    above, below = grid(pose_images)[:16], grid(pose_images)[-16:]
    assert (above[:, :32] == 51).all()
    np.testing.assert_array_equal(below, grid(None))
    assert json.loads((tmp_path / "00-x.json").read_text())["pose"] is None
