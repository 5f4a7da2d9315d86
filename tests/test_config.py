"""Configs: strict YAML, overrides, help; and the values that make no clip."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from fyp_jax.config import config_lines, find_config, help_lines, load_config, save_config
from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SAMPLING_FIELDS, SamplingParams, sampling_params
from fyp_jax.pose.config import PoseConfig

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    file for name in ("sample", "paper_eval") for file in (ROOT / "configs").rglob(f"{name}.yaml")
)
BUNDLED_DEFAULTS = ROOT / "fyp_jax" / "assets" / "models" / "mini" / "sampling_params.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sample.yaml"
    path.write_text("prompt: [a robot]\nnum_inference_steps: 7\npose: {start: 3}\n")
    return path


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(file: Path):
    overrides = ["num_inference_steps=9", "pose.stride=2", "guidance_scale=3e0", "checkpoint=x"]
    config = load_config(SampleConfig, file, overrides)
    assert isinstance(config, SampleConfig)
    assert (config.num_inference_steps, config.guidance_scale) == (9, 3.0)
    assert (config.pose.start, config.pose.stride) == (3, 2)
    assert config.checkpoint == "x"
    assert config.prompt == ["a robot"]
    assert config.width == SampleConfig().width


def test_saved_config_loads_equal(file: Path, tmp_path: Path):
    config = load_config(SampleConfig, file, ["pose.path=é b.mp4", "negative_prompt='a: b'", "eta=0.5"])
    save_config(config, tmp_path / "again.yaml")
    assert load_config(SampleConfig, tmp_path / "again.yaml", []) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_project_config_loads_and_begins_with_its_command(path: Path):
    config = load_config(SampleConfig, path, [])
    assert config.height % 64 == 0
    first = path.read_text().splitlines()[0]
    assert first.startswith("# python sample.py")
    assert ("--config" in first) == (path.parent.name != "mini")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_inference_stepz=4", "unknown key num_inference_stepz; did you mean num_inference_steps"),
        ("pose.strid=4", r"unknown key pose\.strid; did you mean pose\.stride"),
        ("nothing.like.it=4", "unknown key nothing"),
        ("num_frames=many", "num_frames: .*many"),
        ("num_frames=2.5", "num_frames: .*2.5"),
        ("random_init=perhaps", "random_init: "),
        ("pose=3", "pose"),
        ("num_frames", "a.b=c"),
        ("num_frames=[", "num_frames="),
        ("prompt[0]=x", "prompt"),
    ],
)
def test_bad_override_is_refused(file: Path, override: str, message: str):
    with pytest.raises(UserError, match=message):
        load_config(SampleConfig, file, [override])


@pytest.mark.parametrize(
    "text", ["num_frames: [", "- 1\n- 2\n", "stepz: 3\n", "pose: {stridez: 3}\n", "just words", "\0"]
)
def test_bad_file_is_refused(tmp_path: Path, text: str):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(UserError, match="bad.yaml"):
        load_config(SampleConfig, bad, [])


def test_missing_file_is_refused_and_empty_file_gives_the_defaults(tmp_path: Path):
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
        ({"solver": "euler"}, "solver=euler is none of ddim, dpm[+][+]2m, unipc"),
        ({"solver": "unipc", "eta": 0.5}, "eta=0.5: only solver=ddim adds noise, not unipc"),
        ({"timestep_spacing": "karras"}, "timestep_spacing=karras: solver=ddim takes leading, trailing"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing=linspace: solver=ddim takes leading"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"noise_correlation": 1.5}, "noise_correlation=1.5 is not between 0 and 1"),
        ({"mesh": MeshConfig(data=4)}, "mesh.data=4"),
        ({"mesh": MeshConfig(data=1, fsdp=2)}, "mesh.fsdp=2"),
        ({"fps": 0.0}, "fps=0.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"checkpoint": "x", "random_init": True}, "checkpoint=x and random_init=true exclude each other"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"mesh": MeshConfig(data=1, frame=3)}, "num_frames=8 is not a multiple of mesh.frame=3"),
        ({"mesh": MeshConfig(data=1, frame=-2)}, "mesh.frame=-2"),
        ({"mesh": MeshConfig(data=-1, frame=-1)}, "mesh.data=-1 mesh.fsdp=1 mesh.frame=-1"),
        ({"decode_chunk_size": 0}, "decode_chunk_size=0"),
    ],
)
def test_value_that_makes_no_clip_is_refused(change: dict, message: str):
    config = SampleConfig(prompt=["a robot"])
    config.check()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **change).check()


@pytest.mark.parametrize("text", ["clip #2.mov", "0001", "yes", "a: b", "no", "${x}", "-", "'", "[a"])
def test_text_is_not_read_as_yaml(file: Path, tmp_path: Path, text: str):
    overrides = [f"pose.path={text}", f"negative_prompt={text}", f"checkpoint={text}"]
    config = load_config(SampleConfig, file, overrides)
    assert (config.pose.path, config.negative_prompt, config.checkpoint) == (text, text, text)
    config = dataclasses.replace(config, prompt=[text])
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(SampleConfig, tmp_path / "saved.yaml", []) == config
    assert load_config(SampleConfig, file, ["checkpoint=x", "checkpoint=null"]).checkpoint is None


def test_help_has_key_default_and_meaning_of_every_field():
    lines = list(help_lines(SampleConfig))
    composed = [PoseConfig, MeshConfig]
    fields = len(dataclasses.fields(SampleConfig)) - len(composed)
    assert len(lines) == fields + sum(len(dataclasses.fields(kind)) for kind in composed)
    assert any(line.split() == ["num_frames=8", "frames", "of", "the", "clip"] for line in lines)
    assert all(len(line.split(maxsplit=1)[1]) > 5 for line in lines)


def test_help_shows_the_defaults_that_a_config_has():
    """A config may have other defaults for a part than the part's own class: sampling takes mesh.data=1."""
    shown = [line.split()[0] for line in help_lines(SampleConfig)]
    for line in config_lines(SampleConfig()):
        assert line.split()[0] in shown


@pytest.mark.parametrize("name", ["mini/sample.yaml", "configs/mini/sample.yaml"])
def test_project_config_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    assert find_config(name).samefile(ROOT / "configs" / "mini" / "sample.yaml")
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("seed: 3\n")
    assert load_config(SampleConfig, name, []).seed == 3, "a file of the folder comes first"


def test_missing_config_message_names_those_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="mini/sampel.yaml: no such config file; .*mini/sample.yaml.*sd14/"):
        find_config("mini/sampel.yaml")


def test_defaults_of_the_bundled_model_equal_its_config():
    """`FollowYourPosePipeline.from_pretrained("mini")` and `python sample.py` sample alike."""
    config = load_config(SampleConfig, ROOT / "configs" / "mini" / "sample.yaml", [])
    own = json.loads(BUNDLED_DEFAULTS.read_text())
    size = {"height": config.height, "width": config.width}  # which is the UNet's sample_size
    assert SamplingParams(**own, **size) == sampling_params(config)


def test_sampling_params_are_the_sampling_fields_of_a_config():
    changed = {"num_frames": 24, "noise_correlation": 0.5, "pose_guidance": True, "seed": 3}
    config = SampleConfig(prompt=["a robot"], **changed)
    params = sampling_params(config, seed=4)
    assert dataclasses.asdict(params) == dataclasses.asdict(SamplingParams(**changed | {"seed": 4}))
    assert set(SAMPLING_FIELDS) == {item.name for item in dataclasses.fields(SamplingParams)}


@pytest.mark.parametrize("key", ["output_dir", "prompt", "num_frames"])
def test_interpolation_in_a_config_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str):
    """What the environment holds reaches no value, and so no file that is written."""
    monkeypatch.setenv("FYP_SECRET", "17")
    text = "${oc.env:FYP_SECRET}"
    value = [text] if key == "prompt" else text
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({key: value}))
    (tmp_path / "empty.yaml").write_text("{}")
    for file, overrides in (("a.yaml", []), ("empty.yaml", [f"{key}={json.dumps(value)}"])):
        if key == "num_frames":
            with pytest.raises(UserError, match="num_frames"):
                load_config(SampleConfig, tmp_path / file, overrides)
            continue
        config = load_config(SampleConfig, tmp_path / file, overrides)
        assert "17" not in str(getattr(config, key))
        save_config(config, tmp_path / "b.yaml")
        assert load_config(SampleConfig, tmp_path / "b.yaml", []) == config


def test_prompt_that_is_not_utf8_is_refused_in_one_line():
    prompt = b"a robot \xff".decode(errors="surrogateescape")
    with pytest.raises(UserError, match=r"prompt 'a robot .udcff': is not valid UTF-8"):
        SampleConfig(prompt=[prompt]).check()
