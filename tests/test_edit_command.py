"""scripts/edit.py as a user runs it, on a tiny model of random weights: ways to edit, and what is refused."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny_models
from cli_utils import SCRIPTS, Run, assert_mistake, run_script
from conftest import slow
from fyp_jax.cli.edit import parse
from fyp_jax.config import load_config, save_config
from fyp_jax.editing.inversion import Inversion
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.pipeline import pipeline as pipeline_module
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.editing import EditOutput, edit_poses
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

EDIT = SCRIPTS / "edit.py"
FRAMES, SIDE = 2, 64
SOURCE, TARGET = "a cat on grass", "a dog on grass"
WINDOWS = "cross_replace_steps: 1.0, self_replace_steps: 1.0"


def moving_square(red: int, height: int, width: int, frames: int = 4) -> np.ndarray:
    clip = np.zeros((frames, height, width, 3), np.uint8)
    for i in range(frames):
        clip[i, height // 4 : height // 2, 4 * i : 4 * i + width // 2] = (red, 255 - red, 128)
    return clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without weights, its config, two clips (one of them neither square nor even), and a pose."""
    folder = tmp_path_factory.mktemp("edit")
    tiny_models.write_pipeline(folder / "model")
    write_mp4(folder / "clip.mp4", moving_square(200, SIDE, SIDE), 8)
    write_mp4(folder / "other.mp4", moving_square(30, 86, 150), 8)
    for i in range(3):
        skeleton = np.zeros((SIDE, SIDE, 3), np.uint8)
        skeleton[10:50, 20 + 4 * i : 24 + 4 * i] = (255, 128, 0)
        write_png(folder / "pose" / f"{i}.png", skeleton)
    fields = {
        "pretrained": folder / "model",
        "random_init": "true",
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
        "edit": f"{{method: p2p, {WINDOWS}, self_level: 0, map_level: 0}}",
    }
    (folder / "edit.yaml").write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    return folder


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[EditOutput]:
    """What `pipeline.edit` gives in a test, in order; models are loaded once for all tests."""
    found, edit = [], FollowYourPosePipeline.edit

    def recorded(*args: Any, **options: Any) -> EditOutput:
        found.append(edit(*args, **options))
        return found[-1]

    monkeypatch.setattr(FollowYourPosePipeline, "edit", recorded)
    monkeypatch.setattr(pipeline_module, "load_components", _loaded)
    return found


load_components = pipeline_module.load_components


def _loaded(config: EditConfig, use_cache: bool = False) -> Any:
    return _components(config.pretrained)


@functools.cache
def _components(pretrained: str) -> Any:
    return load_components(EditConfig(pretrained=pretrained, random_init=True))


def edit(folder: Path, out: Path, *args: object, video: str | None = "clip.mp4") -> Run:
    clip = [] if video is None else ["--video", folder / video]
    common = ["--config", folder / "edit.yaml", "--out", out, "--source", SOURCE, "--prompt", TARGET]
    return run_script(EDIT, *common, *clip, *args)


def only_run(out: Path) -> tuple[dict[str, Any], np.ndarray, tuple[int, int]]:
    """The record of a run's first edit, its frames, and the size of its sheet: width, height."""
    (folder,) = out.iterdir()
    assert {path.suffix for path in folder.iterdir()} >= {".mp4", ".gif", ".png", ".json", ".yaml"}
    record = json.loads(next(folder.glob("00-*.json")).read_text())
    frames = read_frames(next(folder.glob("00-*.mp4")), range(FRAMES))
    with Image.open(next(folder.glob("00-*.png"))) as sheet:
        return record, frames, sheet.size


def rows_of(size: tuple[int, int]) -> int:
    return round(size[1] / SIDE)


@pytest.mark.slow
def test_generated_source_and_edit_follow_the_pose_that_is_given_once(
    folder: Path, tmp_path: Path, outputs: list[EditOutput]
):
    pose = ["--pose", folder / "pose", "pose.stride=1"]
    run = edit(folder, tmp_path / "posed", "--method", "generate", *pose, video=None)
    assert run.status == 0, run.err
    record, frames, sheet = only_run(tmp_path / "posed")
    assert record["pose"]["file"] == str(folder / "pose")
    assert (record["prompt"], record["source"]) == (TARGET, SOURCE)
    assert record["config"]["edit"]["method"] == "generate"
    assert frames.shape == (FRAMES, SIDE, SIDE, 3)
    assert rows_of(sheet) == 2  # source and edit
    assert edit(folder, tmp_path / "free", "--method", "generate", video=None).status == 0
    posed, free = outputs
    for name in ("source", "frames"):
        difference = np.abs(getattr(posed, name).astype(int) - getattr(free, name))
        assert difference.max() > 2, f"the pose has no effect on the {name}"
    assert np.abs(posed.source.astype(int) - posed.frames).max() > 2


@pytest.mark.slow
def test_second_edit_takes_the_inversion_of_the_first(
    folder: Path, tmp_path: Path, outputs: list[EditOutput], monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "clip.npz"
    assert edit(folder, tmp_path / "first", f"inversion={file}").status == 0
    saved = Inversion.load(file)
    assert (saved.prompt, saved.latents.shape) == (SOURCE, (3, FRAMES, 8, 8, 4))
    monkeypatch.setattr(FollowYourPosePipeline, "invert", None)
    assert edit(folder, tmp_path / "second", f"inversion={file}").status == 0
    assert edit(folder, tmp_path / "third", f"inversion={file}", video=None).status == 0
    (_, first), (_, second), (_, third) = (outputs[i : i + 2] for i in (0, 2, 4))
    assert np.array_equal(first.latents, second.latents)
    assert np.array_equal(first.latents, third.latents)
    record, _, sheet = only_run(tmp_path / "third")
    assert record["config"]["inversion"] == str(file)
    assert rows_of(sheet) == 3  # source, reconstruction, edit

    for change, message in (
        (["--source", "a bird on grass"], "was made with source='a cat on grass', not 'a bird on grass'"),
        (["num_inference_steps=3"], "was made for num_inference_steps=2, not 3; invert the clip again"),
        (["num_frames=3"], "[2, 8, 8, 4], but this model's are [3, 8, 8, 4] for num_frames=3"),
        (["source_pose.path=" + str(folder / "pose"), "source_pose.stride=1"], "was made for pose=None, not"),
    ):
        assert_mistake(edit(folder, tmp_path / "no", f"inversion={file}", *change, video=None), message)
    other = "is the inversion of another clip than"
    assert_mistake(edit(folder, tmp_path / "no", f"inversion={file}", video="other.mp4"), other)
    assert_mistake(edit(folder, tmp_path / "no", f"inversion={file}", "video_start=1"), other)
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_background_is_kept_and_words_are_emphasised(folder: Path, tmp_path: Path, outputs: list[EditOutput]):
    file = f"inversion={tmp_path / 'clip.npz'}"
    assert edit(folder, tmp_path / "plain", file).status == 0
    assert edit(folder, tmp_path / "loud", file, "--emphasise", "dog=20").status == 0
    words = ["--keep-background", "cat", "dog"]
    everywhere = ["edit.blend_threshold=1", "edit.blend_start=0"]
    assert edit(folder, tmp_path / "kept", file, *words, *everywhere).status == 0
    (_, plain), (_, loud), (_, kept) = (outputs[i : i + 2] for i in (0, 2, 4))
    assert np.abs(plain.latents - loud.latents).max() > 1e-3
    source = Inversion.load(tmp_path / "clip.npz").latents[0]
    assert np.array_equal(kept.latents, source)
    assert np.abs(plain.latents - source).max() > 1e-3
    assert np.array_equal(kept.frames, kept.source)
    assert kept.mask is not None
    assert not kept.mask.any()
    record, _, sheet = only_run(tmp_path / "kept")
    assert record["config"]["edit"]["blend_words"] == ["cat", "dog"]
    assert rows_of(sheet) == 4  # source, reconstruction, edit, mask


@pytest.mark.slow
def test_each_of_two_prompts_has_words_of_its_own(folder: Path, tmp_path: Path, outputs: list[EditOutput]):
    file = f"inversion={tmp_path / 'clip.npz'}"
    both = [
        "--prompt",
        "a bird on grass",
        "--keep-background",
        "cat",
        "dog",
        "bird",
        "edit.blend_threshold=0.5",
    ]
    assert edit(folder, tmp_path / "both", file, *both, "--emphasise", "bird=3").status == 0
    alone = ["--keep-background", "cat", "dog", "edit.blend_threshold=0.5"]
    assert edit(folder, tmp_path / "alone", file, *alone).status == 0
    (_, first, second), (_, same) = outputs[:3], outputs[3:]
    assert np.array_equal(first.latents, same.latents)
    assert np.abs(first.latents - second.latents).max() > 1e-3
    (run,) = (tmp_path / "both").iterdir()
    assert [path.name for path in sorted(run.glob("*.mp4"))] == [
        "00-a-dog-on-grass.mp4",
        "01-a-bird-on-grass.mp4",
    ]


@pytest.mark.slow
def test_clip_that_is_neither_square_nor_even_is_edited_by_fatezeros_rules(
    folder: Path, tmp_path: Path, outputs: list[EditOutput]
):
    options = ["width=128", "edit.method=fatezero", "--keep-background", "cat", "dog", "edit.blend_start=0"]
    run = edit(folder, tmp_path / "wide", *options, "edit.blend_end=1", video="other.mp4")
    assert run.status == 0, run.err
    assert outputs[-1].frames.shape == (FRAMES, SIDE, 2 * SIDE, 3)
    assert outputs[-1].mask is not None
    assert outputs[-1].mask.shape == (FRAMES, 8, 16)


@pytest.mark.release
def test_null_text_brings_the_source_back_where_guidance_loses_it(
    folder: Path, tmp_path: Path, outputs: list[EditOutput]
):
    """The first output is the reconstruction. The pose is given, and the unconditional row has none."""
    pose = [f"source_pose.path={folder / 'pose'}", "source_pose.stride=1", "pose_guidance=true"]
    options = [f"inversion={tmp_path / 'clip.npz'}", *pose, "guidance_scale=4"]
    nothing = ["edit.cross_replace_steps=0", "edit.self_replace_steps=0"]
    for name, null_text in (("plain", "false"), ("fitted", "true")):
        run = edit(folder, tmp_path / name, *options, *nothing, f"edit.null_text={null_text}")
        assert run.status == 0, run.err
    source = Inversion.load(tmp_path / "clip.npz").latents[0]
    plain, fitted = (np.abs(outputs[i].latents - source).mean() for i in (0, 2))
    assert fitted < 0.95 * plain
    record, _, _ = only_run(tmp_path / "fitted")
    assert record["config"]["edit"]["null_text"] is True
    assert record["source_pose"]["file"] == str(folder / "pose")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["invert=clip.mp4"], "invert=clip.mp4: an edit inverts its clip itself; give --video FILE"),
        (["--method", "generate", "inversion=a.npz"], "edit.method=generate has no clip; leave it out"),
        (
            ["--method", "generate", "edit.blend_self_attention=true", "edit.blend_words=[cat]"],
            "blend_self_attention=true needs a clip",
        ),
        (["--method", "generate", "edit.null_text=true"], "null_text=true is for method=p2p"),
        (["--video", "{folder}/clip.mp4", "num_frames=9"], "has 4 frames, but num_frames=9"),
        (["--video", "{folder}/clip.mp4", "video_start=3"], "has 4 frames, but num_frames=2"),
        (["--video", "{folder}/clip.mp4", "height=100"], "height=100 is not a multiple of 64"),
        (["--video", "{folder}/edit.yaml"], "edit.yaml"),
        (["--method", "generate", "--pose", "{folder}/pose", "pose.stride=5"], "3 frames"),
        (["--method", "generate", "edit.blend_latents=true"], "blend_latents=true needs blend_words"),
        slow(["inversion={folder}/edit.yaml"], "is no inversion that this package saved"),
        slow(["inversion={folder}/missing.npz"], "no such file, and there is no video to make it from"),
        slow(["--video", "{folder}/clip.mp4", "--emphasise", "zebra=2"], "equalizer: 'zebra' is not a word"),
        slow(["--video", "{folder}/clip.mp4", "--keep-background", "zebra"], "'zebra' is not a word"),
        slow(["--video", "{folder}/clip.mp4", "edit.word_replace_steps=[dog=0.1]"], "has no step of num_inf"),
        slow(["--video", "{folder}/clip.mp4", "edit.map_level=7", "--keep-background", "a"], "levels 0 to 1"),
        slow(["--video", "{folder}/clip.mp4", "--prompt", "a", "edit.controller=replace"], "has 4 and 'a'"),
        slow(["--video", "{folder}/clip.mp4", "--prompt", "a" * 80], "more than 77: shorten it"),
    ],
)  # fmt: skip
def test_mistake_ends_with_one_line_and_leaves_no_folder(
    folder: Path, tmp_path: Path, outputs: list[EditOutput], args: list[str], message: str
):
    given = [text.format(folder=folder) for text in args]
    assert_mistake(edit(folder, tmp_path / "runs", *given, video=None), message)
    assert not (tmp_path / "runs").exists()
    assert outputs == []


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ([], "robot"),
        (["seed=3", "--prompt", "A panda, in the park"], "robot"),
        (["--video", "clip.mp4"], None),
        (["--video", "waving"], None),
        (["--video", "clip.mp4", "source_pose.path=dance"], "dance"),
        (["--method", "generate"], "robot"),
        (["--method", "generate", "--pose", "dance"], None),
    ],
)
def test_pose_of_the_configs_clip_is_not_that_of_another_clip(args: list[str], path: str | None):
    assert parse(args).source_pose.path == path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["robot", "panda"]),
        (["--prompt", "A panda, in the park"], ["robot", "panda"]),
        (["--prompt", "A man, on the beach"], ["robot"]),
        (["--prompt", "A panda, on the beach", "A man, on the beach"], ["robot"]),
        (["--source", "a man skiing", "--prompt", "a panda skiing"], []),
        (["--source", "a man skiing", "--prompt", "a panda skiing", "--keep-background", "man"], ["man"]),
        (["--source", "a man skiing", "edit.blend_words=[robot]"], ["robot"]),
    ],
)
def test_blend_words_of_the_configs_prompts_are_not_those_of_others(args: list[str], words: list[str]):
    config = parse(args)
    assert config.edit.blend_words == words
    assert config.edit.blend_latents == bool(words)


def test_run_is_repeated_by_its_config(tmp_path: Path):
    """Of another folder, too: a config that is given says itself which pose and which words it has."""
    config = load_config(EditConfig, "configs/mini/edit.yaml", ["source_pose.path=dance", "video=waving"])
    save_config(config, tmp_path / "config.yaml")
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config


def test_pose_that_is_given_once_steers_a_generated_source_but_not_an_inverted_one():
    source, target = np.zeros((1, 64, 64, 3), np.uint8), np.ones((1, 64, 64, 3), np.uint8)
    assert edit_poses((None, target), generated=True) == (target, target)
    assert edit_poses((None, target), generated=False) == (None, target)
    for generated in (True, False):
        assert edit_poses((source, target), generated) == (source, target)
        assert edit_poses((source, None), generated) == (source, source)
        assert edit_poses((None, None), generated) == (None, None)
