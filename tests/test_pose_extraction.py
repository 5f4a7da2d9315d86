"""Poses from a film: small ONNX networks find coloured joints in films of walking figures."""

import importlib.util
import json
import sys
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rtmlib", reason="the extra [pose] is not installed")
pytest.importorskip("onnx", reason="the tests of [pose] make their networks with onnx")

import film_networks as networks

import page_server
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.demo.jobs import Job, State
from fyp_jax.demo.sessions import Session
from fyp_jax.errors import UserError
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.film_poses import FilmOptions
from fyp_jax.pose.extraction import extract_poses, frame_ranges
from fyp_jax.pose.loading import load_pose
from fyp_jax.pose.networks import find_networks, load_networks
from fyp_jax.pose.reading import load_keypoints
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.kinematics import Figure
from keypoint_files import motion_keypoints

EXTRACT = SCRIPTS / "extract_poses.py"
SAMPLE = SCRIPTS.parent / "sample.py"
SIDE, FRAMES = 320, 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    networks.save_rtmpose(folder / "rtmpose.onnx")
    networks.save_yolox(folder / "yolox.onnx")
    networks.save_raw_yolox(folder / "raw_yolox.onnx")
    networks.save_rtmo(folder / "rtmo.onnx", people=1)
    networks.save_rtmo(folder / "rtmo2.onnx", people=2)
    return folder


def walk(frames: int = FRAMES, seed: int = 89, height: float = 0.8) -> np.ndarray:
    """Joints of a walking figure whose discs do not cover each other in the first 12 frames, [f 17 3]."""
    return motion_keypoints("walk", Figure(height, 0.5, 0.93, width=1.2), frames, seed, SIDE)


def write_film(file: Path, keypoints: np.ndarray, height: int = SIDE, width: int = SIDE) -> Path:
    """A film of people [f p 17 3]."""
    palette = networks.colours(keypoints.shape[1])
    write_mp4(file, np.stack([networks.render(k, palette, height, width) for k in keypoints]), 24)
    return file


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_film(tmp_path_factory.mktemp("films") / "walk.mp4", walk()[:, None])


def two_stage(models: Path) -> tuple[str, ...]:
    return "--detector", str(models / "yolox.onnx"), "--estimator", str(models / "rtmpose.onnx")


def worst(people: np.ndarray, expected: np.ndarray) -> float:
    """The largest distance of a joint from its place, in pixels."""
    return float(np.linalg.norm(people[..., :2] - expected[..., :2], axis=-1).max())


@pytest.mark.parametrize(
    ("detector", "estimator"),
    [("yolox.onnx", "rtmpose.onnx"), ("raw_yolox.onnx", "rtmpose.onnx"), (None, "rtmo.onnx")],
)
def test_joints_of_a_walking_figure_are_found_within_two_pixels(
    models: Path, film: Path, detector: str | None, estimator: str
):
    """The detectors also give a chair over all of the image, with a higher score, which is no person."""
    files = find_networks(detector and models / detector, models / estimator)
    poses = extract_poses(film, load_networks(files, threads=1))
    assert [len(people) for people in poses.people] == [1] * FRAMES
    assert worst(np.concatenate(poses.people), walk()) < 2
    assert (poses.width, poses.height, poses.fps) == (SIDE, SIDE, 24)
    assert np.concatenate(poses.people)[..., 2].min() > 0.5


def test_joints_of_a_wide_film_are_in_pixels_of_the_film(models: Path, tmp_path: Path):
    """The networks' own images are 320x320 and 288x384; this one is 480x320 and the figure off its middle."""
    keypoints = walk() + np.array([130, 0, 0])
    wide = write_film(tmp_path / "wide.mp4", keypoints[:4, None], SIDE, 480)
    for pair in ((models / "yolox.onnx", models / "rtmpose.onnx"), (None, models / "rtmo.onnx")):
        poses = extract_poses(wide, load_networks(find_networks(*pair), threads=1))
        assert (poses.width, poses.height) == (480, SIDE)
        assert worst(np.concatenate(poses.people), keypoints[:4]) < 2.5


def test_an_image_without_a_person_has_none(models: Path):
    """rtmlib would give the joints of the whole image, or one person of zeros."""
    grey = np.full((SIDE, SIDE, 3), networks.GREY, np.uint8)
    for pair in ((models / "yolox.onnx", models / "rtmpose.onnx"), (None, models / "rtmo.onnx")):
        assert load_networks(find_networks(*pair), threads=1)(grey).shape == (0, 17, 3)


def crossing() -> np.ndarray:
    """Two people who walk past each other in 24 frames, [f 2 17 3]; the second one is smaller."""
    steps = walk(2 * FRAMES), walk(2 * FRAMES, seed=1, height=0.66)
    shift = np.linspace(-75, 75, 2 * FRAMES)[:, None]
    people = np.stack(steps, axis=1)
    people[:, 0, :, 0] += shift
    people[:, 1, :, 0] -= shift
    return people


def test_two_people_who_cross_keep_who_they_are(models: Path, tmp_path: Path):
    """The order of the network's people changes as they cross, and one hides the other."""
    expected = crossing()
    file = write_film(tmp_path / "crossing.mp4", expected)
    run = run_script(EXTRACT, file, "--out", tmp_path / "poses", "--estimator", models / "rtmo2.onnx")
    assert run.status == 0, run.err
    assert "24 of 24 frames have a person (100%)" in run.out
    content = json.loads((tmp_path / "poses" / "crossing.json").read_text())
    assert content["fps"] == 24
    frames = load_keypoints(tmp_path / "poses" / "crossing.json").frames
    assert sorted({number for numbers in content["tracks"] for number in numbers}) == [0, 1]
    both = 0
    for people, numbers, truth in zip(frames, content["tracks"], expected, strict=True):
        both += len(numbers) == 2
        for person, number in zip(people, numbers, strict=True):
            own, other = (np.abs(person - truth[i])[:, :2].mean() for i in (number, 1 - number))
            assert own < other
    assert both >= 14
    for frame in (0, -1):
        assert np.abs(frames[frame] - expected[frame])[..., :2].mean() < 2


def test_people_1_keeps_the_larger_one(models: Path, tmp_path: Path):
    file = write_film(tmp_path / "two.mp4", crossing()[:3])
    rtmo = ("--estimator", models / "rtmo2.onnx")
    assert run_script(EXTRACT, file, "--out", tmp_path, "--people", 1, *rtmo, "--overwrite").status == 2
    assert run_script(EXTRACT, file, "--out", tmp_path / "one", "--people", 1, *rtmo).status == 0
    frames = load_keypoints(tmp_path / "one" / "two.json").frames
    assert [len(people) for people in frames] == [1, 1, 1]
    assert worst(np.concatenate(frames), crossing()[:3, 0]) < 2


def test_gaps_are_filled_and_frames_without_a_person_listed(models: Path, tmp_path: Path):
    keypoints = np.repeat(walk()[:1], 20, axis=0)[:, None]
    keypoints[2:6, ..., 2] = keypoints[8:15, ..., 2] = 0  # 4 frames are filled, 7 are not
    file = write_film(tmp_path / "gaps.mp4", keypoints)
    run = run_script(EXTRACT, file, "--out", tmp_path / "out", *two_stage(models), "--smooth")
    assert run.status == 0, run.err
    assert "13 of 20 frames have a person (65%); none in frames 8-14" in run.out
    frames = load_keypoints(tmp_path / "out" / "gaps.json").frames
    assert [index for index, people in enumerate(frames) if not len(people)] == list(range(8, 15))
    assert worst(np.concatenate(frames), walk()[0]) < 2


def test_the_skeleton_video_shows_the_keypoint_file(models: Path, film: Path, tmp_path: Path):
    run = run_script(EXTRACT, film, "--out", tmp_path, *two_stage(models))
    assert run.status == 0, run.err
    drawn = read_frames(tmp_path / "walk.mp4", range(FRAMES)).astype(int)[:4]
    people = load_keypoints(tmp_path / "walk.json").frames[:4]
    expected = np.stack([draw_skeleton(one, SIDE, SIDE) for one in people])
    assert np.abs(drawn - expected).mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["walk.json", "walk.mp4"]


def sample_words(models: Path, film: Path, out: Path) -> tuple[object, ...]:
    words = ("--pose-from", film, *two_stage(models), "--out", out, "--prompt", "a robot")
    return (*words, "num_inference_steps=1", "num_frames=2", "pose.stride=3")


def test_pose_from_gives_the_sampler_a_keypoint_file(
    models: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    configs: list[SampleConfig] = []

    def sample_to_files(config: SampleConfig) -> list[Path]:
        configs.append(config)
        return []

    monkeypatch.setattr("fyp_jax.pipeline.files.sample_to_files", sample_to_files)
    words = sample_words(models, film, tmp_path)
    run = run_script(SAMPLE, *words)
    assert run.status == 0, run.err
    assert "9 of 9 frames have a person (100%)" in run.out  # 4 frames that are needed, 5 that may fill a gap
    (file,) = (tmp_path / "poses").iterdir()
    assert configs[0].pose.path == str(file)
    assert worst(np.concatenate(load_keypoints(file).frames), walk()[:9]) < 2
    poses = load_pose(file, num_frames=2, stride=3, start=0, height=64, width=64)
    assert (poses.max(axis=-1) > 60).mean() > 0.02
    written = file.stat().st_mtime_ns
    assert run_script(SAMPLE, *words).status == 0  # takes the file that is there
    assert file.stat().st_mtime_ns == written
    assert run_script(SAMPLE, *words, "pose.start=1").status == 0  # other frames, another file
    assert file.stat().st_mtime_ns == written
    assert len({config.pose.path for config in configs}) == 2


@pytest.mark.slow
def test_a_clip_is_sampled_with_the_poses_of_a_film(models: Path, film: Path, tmp_path: Path):
    """Film, detector, estimator, tracking, keypoint file, and the bundled model, from the command line."""
    run = run_script(SAMPLE, *sample_words(models, film, tmp_path))
    assert run.status == 0, run.err
    (file,) = (tmp_path / "poses").iterdir()
    record = json.loads((tmp_path / "0000" / "00-a-robot.json").read_text())
    assert record["pose"]["file"] == str(file)
    assert read_frames(tmp_path / "0000" / "00-a-robot.mp4", range(2)).shape == (2, 128, 128, 3)


@pytest.mark.slow
def test_the_page_shows_the_poses_of_a_film_and_makes_a_clip_of_them(
    models: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fyp_jax.pipeline.files.warn_of_unused_tokens", lambda encoders, texts: None)
    options = FilmOptions(detector=models / "yolox.onnx", estimator=models / "rtmpose.onnx")
    service, session = page_server.service(page_server.painter(), film=options), Session("a", tmp_path)
    service.take_upload(session, "pose", film)
    values = page_server.VALUES | {"pose": "film", "pose.stride": 3}
    shown = service.film_preview(session, values)
    ended(shown)
    assert (shown.done, shown.total) == (9, 9)  # 4 frames that are needed, 5 that may fill a gap
    assert shown.notes == [f"{session.uploads['pose']}: 9 of 9 frames have a person (100%)"]
    (file,) = (session.folder / "poses").iterdir()
    poses = load_pose(file, num_frames=2, stride=3, start=0, height=64, width=64)
    preview = read_frames(shown.result.gif, range(2)).astype(int)
    assert np.abs(preview - poses).mean() < 2
    clip = service.sample(session, values)
    ended(clip)
    assert json.loads(clip.result.files["json"].read_text())["pose"]["file"] == file.name
    service.queue.close()


def ended(job: Job) -> None:
    end = time.monotonic() + 60
    while not job.ended and time.monotonic() < end:
        time.sleep(0.01)
    assert job.state is State.DONE, job.error


def test_a_clip_in_whose_frames_nobody_is_is_refused(models: Path, tmp_path: Path):
    keypoints = walk()[:, None].copy()
    keypoints[:4, ..., 2] = 0
    file = write_film(tmp_path / "late.mp4", keypoints)
    words = ("--pose-from", file, *two_stage(models), "--out", tmp_path / "runs", "num_frames=2")
    run = run_script(SAMPLE, *words, "pose.stride=2")
    assert run.status == 2
    assert "none of the frames 0, 2 has a person; change pose.start" in run.err.splitlines()[-1]


def test_a_film_without_people_is_refused(models: Path, tmp_path: Path):
    write_mp4(tmp_path / "grey.mp4", np.full((3, 64, 64, 3), networks.GREY, np.uint8), 24)
    run = run_script(EXTRACT, tmp_path / "grey.mp4", "--out", tmp_path / "out", *two_stage(models))
    assert run.status == 2
    assert run.err.splitlines()[-1].endswith("grey.mp4: no person was found in its 3 frames")
    assert not (tmp_path / "out").exists()


def check_broken_films(models: Path, film: Path, tmp_path: Path, *words: object) -> None:
    (tmp_path / "text.mp4").write_text("no film")
    cut = tmp_path / "second.mp4"
    write_film(cut, walk()[:3, None])
    films = (tmp_path / "text.mp4", film, tmp_path / "gone.mp4", cut)
    run = run_script(EXTRACT, *films, "--out", tmp_path / "out", *two_stage(models), *words)
    assert run.status == 2
    last = run.err.splitlines()[-1]
    assert last.startswith("error: 2 of 4 films failed")
    assert str(tmp_path / "text.mp4") in last
    assert str(tmp_path / "gone.mp4") in last
    assert f"failed: {tmp_path / 'gone.mp4'}: no such file" in run.err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["second.json", "second.mp4", "walk.json", "walk.mp4"]


def test_a_broken_film_is_named_and_the_others_are_extracted(models: Path, film: Path, tmp_path: Path):
    check_broken_films(models, film, tmp_path)


@pytest.mark.slow
def test_films_in_parallel_processes_are_extracted_alike(models: Path, film: Path, tmp_path: Path):
    check_broken_films(models, film, tmp_path, "--workers", 2)
    (tmp_path / "alone").mkdir()
    assert run_script(EXTRACT, film, "--out", tmp_path / "alone", *two_stage(models)).status == 0
    assert (tmp_path / "alone/walk.json").read_bytes() == (tmp_path / "out/walk.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_films_on_beam_are_extracted_alike(models: Path, film: Path, tmp_path: Path):
    check_broken_films(models, film, tmp_path, "--runner", "DirectRunner", "--direct_num_workers", 2)
    (tmp_path / "alone").mkdir()
    assert run_script(EXTRACT, film, "--out", tmp_path / "alone", *two_stage(models)).status == 0
    assert (tmp_path / "alone/walk.json").read_bytes() == (tmp_path / "out/walk.json").read_bytes()


def test_a_film_is_never_replaced(models: Path, film: Path, tmp_path: Path):
    before = film.read_bytes()
    run = run_script(EXTRACT, film, "--out", film.parent, "--overwrite", *two_stage(models))
    assert_mistake(run, "is the film itself", "another --out")
    assert film.read_bytes() == before
    run = run_script(EXTRACT, film, Path("other/walk.mov"), "--out", tmp_path, *two_stage(models))
    assert_mistake(run, "have the same name")
    (tmp_path / "walk.json").write_text("mine")
    assert_mistake(run_script(EXTRACT, film, "--out", tmp_path, *two_stage(models)), "--overwrite")
    assert (tmp_path / "walk.json").read_text() == "mine"


def test_networks_that_do_not_fit_are_named(models: Path, tmp_path: Path):
    text = tmp_path / "text.onnx"
    text.write_text("version https://git-lfs.github.com/spec/v1")
    hands = networks.save_rtmpose(tmp_path / "hands.onnx", joints=21)
    coarse = networks.save_rtmpose(tmp_path / "coarse.onnx", bins=1)
    yolox, rtmpose, rtmo = (models / f"{name}.onnx" for name in ("yolox", "rtmpose", "rtmo"))
    for detector, estimator, said in (
        (None, yolox, "is a detector"),
        (rtmpose, rtmpose, "is no detector"),
        (yolox, rtmo, "needs no detector"),
        (yolox, tmp_path / "gone.onnx", "no such file"),
        (yolox, text, "no network that ONNX Runtime can load"),
        (yolox, hands, "finds 21 joints"),
        (yolox, coarse, "two for each pixel"),
    ):
        with pytest.raises(UserError, match=said):
            find_networks(detector, estimator)


def test_a_network_of_halpe_joints_gives_the_17_of_coco(models: Path, film: Path, tmp_path: Path):
    halpe = networks.save_rtmpose(tmp_path / "halpe26.onnx", joints=26)
    poses = extract_poses(
        film, load_networks(find_networks(models / "yolox.onnx", halpe), threads=1), num_frames=1
    )
    assert worst(poses.people[0], walk()[:1]) < 2


def test_without_the_extra_one_line_says_what_to_install(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    for run in (
        run_script(EXTRACT, film, "--out", tmp_path),
        run_script(SAMPLE, "--pose-from", film, "--out", tmp_path),
    ):
        assert_mistake(run, "rtmlib", "pip install -e '.[pose]'")


def test_without_the_network_one_line_says_which_files_to_give(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreachable(*_: object, **__: object):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("rtmlib.tools.file.urlopen", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    run = run_script(EXTRACT, film, "--out", tmp_path)
    assert run.status == 2
    last = run.err.splitlines()[-1]
    assert last.startswith("error: https://")
    assert "--detector YOLOX.onnx --estimator RTMPOSE.onnx" in last
    assert "Traceback" not in run.err


def test_options_that_need_or_exclude_pose_from_are_told(film: Path):
    assert_mistake(run_script(SAMPLE, "--people", 2), "--people needs --pose-from")
    assert_mistake(run_script(SAMPLE, "--pose-from", film, "--pose", "dance"), "exclude each other")
    assert_mistake(run_script(SAMPLE, "--pose-from", film, "--people", 0), "at least 1")
    assert_mistake(run_script(SAMPLE, "--pose-from", film.parent / "gone.mp4"), "gone.mp4: no such film")


def test_frames_are_told_as_ranges():
    assert frame_ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"
    assert frame_ranges([]) == ""
    assert frame_ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14 and 12 more ranges"
