"""sample.py as a user runs it: the files that it writes, and one line for each mistake."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_models
from cli_utils import SAMPLE
from fyp_jax.cli.sample import main, parse
from fyp_jax.config import load_config
from fyp_jax.console import run_cli
from fyp_jax.errors import UserError
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4
from fyp_jax.pipeline.config import SampleConfig


def clip_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose cache holds little. From a full one, programs of the first run may soon go."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def default_run(
    tmp_path_factory: pytest.TempPathFactory, own_cache: dict[str, str]
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`python sample.py --out DIR`, in another working folder."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(SAMPLE), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, env=own_cache, check=False)
    return done, out


@pytest.mark.slow
def test_default_run_prints_its_clip_and_no_warning(default_run: tuple):
    done, out = default_run
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "0000" / "00-a-panda-on-the-beach.mp4")]
    assert "20/20" in done.stderr
    assert "Traceback" not in done.stderr
    assert "deprecat" not in done.stderr.lower()


@pytest.mark.slow
def test_run_writes_video_gif_grid_record_and_config(default_run: tuple):
    folder = default_run[1] / "0000"
    stem = "00-a-panda-on-the-beach"
    assert clip_files(folder) == sorted(
        ["config.yaml", *(f"{stem}.{e}" for e in ("gif", "json", "mp4", "png"))]
    )
    assert read_frames(folder / f"{stem}.mp4", range(8)).shape == (8, 128, 128, 3)
    with Image.open(folder / f"{stem}.gif") as gif:
        assert (gif.n_frames, gif.size) == (8, (128, 128))
    with Image.open(folder / f"{stem}.png") as grid:
        top = np.asarray(grid)[:128]
        assert (top.max(axis=2) > 0).mean() < 0.2  # skeletons on black, above
        assert grid.height > 2 * 128


SECOND_START = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not {"diffusers", "transformers", "torch"} & set(sys.modules)
"""


def programs_in(environment: dict[str, str]) -> set[str]:
    names = os.listdir(environment["JAX_COMPILATION_CACHE_DIR"])
    return {name for name in names if not name.endswith("-atime")}


@pytest.mark.slow
def test_second_run_from_the_config_gives_equal_files_and_compiles_nothing(
    default_run: tuple, own_cache: dict[str, str]
):
    """Compiled programs and the shapes of the models come from the cache of the first run."""
    _, out = default_run
    record = json.loads((out / "0000" / "00-a-panda-on-the-beach.json").read_text())
    assert record["prompt"] == "A panda, on the beach"
    assert record["seed"] == 0
    assert {"jax", "flax", "fyp_jax", "device"} <= set(record["versions"])
    assert set(record["weights"]["provenance"]) == {"motion", "pose"}
    assert record["config"]["num_inference_steps"] == 20
    args = [str(SAMPLE), "--config", str(out / "0000" / "config.yaml")]
    cached = programs_in(own_cache)
    assert len(cached) > 4
    again = subprocess.run(
        [sys.executable, "-c", SECOND_START, *args],
        capture_output=True,
        text=True,
        env=own_cache,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert programs_in(own_cache) == cached
    assert clip_files(out) == ["0000", "0001"]  # the first run is still there
    for name in ("00-a-panda-on-the-beach.mp4", "00-a-panda-on-the-beach.gif"):
        assert (out / "0000" / name).read_bytes() == (out / "0001" / name).read_bytes()


def test_words_after_prompt_may_be_overrides_and_flags():
    config = parse(
        ["--prompt", "a robot", "a panda, x=1", "num_inference_steps=3", "--seed", "4", "num_frames=2"]
    )
    assert config.prompt == ["a robot", "a panda, x=1"]
    assert (config.num_inference_steps, config.seed, config.num_frames) == (3, 4, 2)
    config = parse(
        ["num_frames=3", "--prompt", "a robot", "negative_prompt=dark, blurry", "--seed", "4", "height=64"]
    )
    assert (config.prompt, config.negative_prompt) == (["a robot"], "dark, blurry")
    assert (config.num_frames, config.seed, config.height) == (3, 4, 64)
    with pytest.raises(UserError, match="unknown key num_framse; did you mean num_frames"):
        parse(["--prompt", "a robot", "num_framse=3"])


def test_pose_of_null_is_no_pose():
    assert parse([]).pose.path == "dance"
    for args in (["pose.path=null"], ["--pose", "null"]):
        assert parse(args).pose.path is None
    assert parse(["--pose", "./null"]).pose.path == "./null"  # a file of this name


@pytest.mark.slow
def test_run_of_a_tiny_model_repeats_from_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache_folder: Path
):
    """The cheap sibling of the default runs above: in this process, two prompts, and weights at random."""
    model, runs = tiny_models.write_pipeline(tmp_path / "model"), tmp_path / "runs"
    options = ["num_frames=2", "num_inference_steps=2", f"pretrained={model}", "random_init=true"]
    first = [*options, "--out", str(runs), "--prompt", "a robot", "a panda"]
    programs = []
    for args in (first, ["--config", str(runs / "0000" / "config.yaml")]):
        monkeypatch.setattr(sys, "argv", ["sample.py", *args])
        main()
        out = capsys.readouterr().out
        assert "The weights are random" in out
        programs.append(
            {file.name for file in cache_folder.iterdir() if file.name.startswith("fyp_jax_sampling")}
        )
    assert str(runs / "0001" / "01-a-panda.mp4") in out
    assert len(programs[0]) == 1
    assert programs[1] == programs[0], "the second run compiles nothing"
    stems = ("00-a-robot", "01-a-panda")
    names = [f"{stem}.{suffix}" for stem in stems for suffix in ("gif", "json", "mp4", "png")]
    for run in ("0000", "0001"):
        assert clip_files(runs / run) == sorted(["config.yaml", *names])
    for name in names:
        one, other = ((runs / run / name).read_bytes() for run in ("0000", "0001"))
        assert one == other or name.endswith(".json")
    record = json.loads((runs / "0000" / "01-a-panda.json").read_text())
    assert record["prompt"] == "a panda"
    assert record["config"]["num_frames"] == 2
    assert Path(record["pose"]["file"]).name == "dance.json"
    assert record["weights"]["provenance"] == {"random": True}


def test_help_lists_fields_with_the_values_that_the_command_uses(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for key in ("pose.stride=5", "guidance_scale=3.0", "height=128", "negative_prompt="):
        assert key in text


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 50)
    (tmp_path / "empty.mov").touch()
    (tmp_path / "folder").mkdir()
    write_mp4(tmp_path / "short.mp4", np.zeros((12, 64, 64, 3), np.uint8), 30)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pose", "{files}/nowhere.mov"], "nowhere.mov: no such file"),
        (["--pose", "{files}/text.mp4"], "text.mp4: is "),
        (["--pose", "{files}/empty.mov"], "empty.mov: is empty"),
        (["--pose", "{files}/folder"], "no image in this folder"),
        (["--pose", "{files}/short.mp4"], "needs 36; what fits: stride=1 at most for num_frames=8, or"),
        (["--pose", "nosuchclip"], "nosuchclip: no such file or folder, and no bundled pose clip .*dance"),
        (["--config", "{files}/nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["num_frame=3"], "unknown key num_frame; did you mean num_frames"),
        (["--prompt", "A robot", "stride=1"], r"unknown key stride; did you mean pose\.stride\?"),
        (["num_frames=three"], "num_frames=three: num_frames: .*'three'"),
        (["height=100"], "height=100 is not a multiple of 64"),
        (["--prompt", ""], "prompt is empty"),
        (["--seed", "x"], "seed"),
        (["num_frames=0"], "num_frames=0 must be at least 1"),
        (["pose.start=-1"], "start=-1"),
        (["pose.path=null", "num_frames=0"], "num_frames=0 must be at least 1"),
        (["pose.path=null", "pose.stride=0"], "stride=0"),
        (["num_inference_steps=1001"], "num_inference_steps=1001 is not between"),
        (["pretrained=sd14"], "sd14: has no trained pose encoder .*import_pytorch"),
        (["checkpoint={files}/folder", "random_init=true"], "random_init=true exclude each other"),
        (["--seed", "99999999999999999999"], "seed=9+ is not between"),
        (["checkpoint={files}/folder"], "no checkpoint in it"),
        (["pretrained=nosuchmodel"], "nosuchmodel: no such folder, and no bundled model .*mini, sd14"),
        (["pretrained=some/model"], "offline, run `hf download some/model`"),
        (["output_dir={files}/short.mp4/x"], "no folder can be made here"),
        (["mesh.frame=3"], "num_frames=8 is not a multiple of mesh.frame=3"),
        (["mesh.data=2", "mesh.frame=8"], "mesh.data=2 mesh.frame=8 needs 16 devices; there are 8"),
        (["aot_path={files}/text.mp4"], "text.mp4: holds no programs"),
    ],
)  # fmt: skip
def test_mistake_is_one_line_and_status_2(
    files: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    args = [argument.format(files=files) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["sample.py", f"output_dir={files}/runs", *args])
    assert run_cli(main) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (files / "runs").exists()  # nothing is left behind


def test_exit_status_says_how_a_command_ended(capsys: pytest.CaptureFixture[str]):
    def fail(error: BaseException) -> Callable[[], None]:
        def main() -> None:
            raise error

        return main

    assert run_cli(lambda: None) == 0
    assert run_cli(fail(UserError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert run_cli(fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_cli(fail(ZeroDivisionError()))


def test_config_flag_reads_a_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("prompt: [x]\nnum_inference_steps: 3\n")
    assert parse(["--config", str(tmp_path / "mine.yaml")]) == load_config(
        SampleConfig, tmp_path / "mine.yaml", []
    )
