"""Strict YAML and overrides."""

import dataclasses
from pathlib import Path

import pytest

from fyp_jax.config import SampleConfig, help_lines, load_config, save_config
from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("sample.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sample.yaml"
    path.write_text("prompt: [a robot]\nsteps: 7\npose: {frames: 3}\n")
    return path


def test_file_then_overrides(file: Path):
    config = load_config(SampleConfig, file, ["steps=9", "pose.stride=2", "guidance=3e0", "checkpoint=x"])
    assert isinstance(config, SampleConfig)
    assert (config.steps, config.pose.frames, config.pose.stride, config.guidance) == (9, 3, 2, 3.0)
    assert config.checkpoint == "x"
    assert config.prompt == ["a robot"]
    assert config.width == SampleConfig().width


def test_what_is_saved_loads_again(file: Path, tmp_path: Path):
    config = load_config(SampleConfig, file, ["pose.path=é b.mp4", "negative_prompt='a: b'", "eta=0.5"])
    save_config(config, tmp_path / "again.yaml")
    assert load_config(SampleConfig, tmp_path / "again.yaml", []) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_our_configs_open_and_begin_with_their_command(path: Path):
    config = load_config(SampleConfig, path, [])
    assert config.height % 64 == 0
    first = path.read_text().splitlines()[0]
    assert first.startswith("# python sample.py")
    assert ("--config" in first) == (path.parent.name != "mini")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=4", "unknown key stepz; did you mean steps"),
        ("pose.frame=4", r"unknown key pose\.frame; did you mean pose\.frames"),
        ("nothing.like.it=4", "unknown key nothing"),
        ("steps=many", "steps: .*many"),
        ("steps=2.5", "steps: .*2.5"),
        ("random_init=perhaps", "random_init: "),
        ("pose=3", "pose"),
        ("steps", "a.b=c"),
        ("steps=[", "steps="),
        ("prompt[0]=x", "prompt"),
    ],
)
def test_bad_overrides(file: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config(SampleConfig, file, [override])


@pytest.mark.parametrize(
    "text", ["steps: [", "- 1\n- 2\n", "stepz: 3\n", "pose: {framez: 3}\n", "just words", "\0"]
)
def test_bad_files(tmp_path: Path, text: str):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(UserError, match="bad.yaml"):
        load_config(SampleConfig, bad, [])


def test_missing_file_and_empty_file(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere.yaml: no such config"):
        load_config(SampleConfig, tmp_path / "nowhere.yaml", [])
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(SampleConfig, tmp_path / "empty.yaml", []) == SampleConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 100}, "height=100 is not a multiple of 64; 128 is the nearest"),
        ({"width": 0}, "width=0"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": ["a", "  "]}, "prompt is empty"),
        ({"dtype": "float16"}, "dtype=float16"),
        ({"eta": 2.0}, "eta=2.0"),
        ({"guidance": float("nan")}, "guidance=nan"),
        ({"noise_correlation": 1.5}, "noise_correlation=1.5 is not between 0 and 1"),
        ({"mesh": MeshConfig(data=4)}, "mesh.data=4"),
        ({"mesh": MeshConfig(data=1, fsdp=2)}, "mesh.fsdp=2"),
        ({"fps": 0.0}, "fps=0.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"checkpoint": "x", "random_init": True}, "random_init=false"),
        ({"steps": 0}, "steps=0"),
        ({"decode_chunk_size": 0}, "decode_chunk_size=0"),
    ],
)
def test_values_that_make_no_clip(change: dict, message: str):
    config = SampleConfig(prompt=["a robot"])
    config.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change).check()


@pytest.mark.parametrize("text", ["clip #2.mov", "0001", "yes", "a: b", "no", "${x}", "-", "'", "[a"])
def test_text_is_taken_as_it_stands(file: Path, tmp_path: Path, text: str):
    overrides = [f"pose.path={text}", f"negative_prompt={text}", f"checkpoint={text}"]
    config = load_config(SampleConfig, file, overrides)
    assert (config.pose.path, config.negative_prompt, config.checkpoint) == (text, text, text)
    config = dataclasses.replace(config, prompt=[text])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(SampleConfig, tmp_path / "saved.yaml", []) == config
    assert load_config(SampleConfig, file, ["checkpoint=x", "checkpoint=null"]).checkpoint is None


def test_every_field_is_described():
    lines = list(help_lines(SampleConfig))
    assert len(lines) == len(dataclasses.fields(SampleConfig)) - 2 + 4 + 6  # those of pose and of mesh
    assert any(line.split() == ["pose.frames=8", "how", "many", "frames", "to", "take"] for line in lines)
    assert all(len(line.split(maxsplit=1)[1]) > 5 for line in lines)
