"""sample.py as a user meets it: files that come out, and one line for each mistake."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
from fyp_jax.config import SampleConfig, load_config
from fyp_jax.errors import UserError, run_cli
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4

ROOT = Path(__file__).parent.parent


def clip_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`python sample.py` but for its folder, from another working folder."""
    out = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(ROOT / "sample.py"), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=out, check=False), out


def test_default_run(default_run: tuple):
    done, out = default_run
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / "0000" / "00-a-robot-on-the-beach.mp4")]
    assert "20/20" in done.stderr
    assert "Traceback" not in done.stderr
    assert "deprecat" not in done.stderr.lower()


def test_files_of_a_run(default_run: tuple):
    folder = default_run[1] / "0000"
    stem = "00-a-robot-on-the-beach"
    assert clip_files(folder) == sorted(
        ["config.yaml", *(f"{stem}.{e}" for e in ("gif", "json", "mp4", "png"))]
    )
    assert read_frames(folder / f"{stem}.mp4", range(8)).shape == (8, 64, 64, 3)
    with Image.open(folder / f"{stem}.gif") as gif:
        assert (gif.n_frames, gif.size) == (8, (64, 64))
    with Image.open(folder / f"{stem}.png") as sheet:
        top = np.asarray(sheet)[:64]
        assert (top.max(axis=2) > 0).mean() < 0.2  # skeletons on black, above
        assert sheet.height > 128


SECOND_START = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert not {"diffusers", "transformers", "torch"} & set(sys.modules)
"""


def test_the_record_makes_it_again_and_nothing_is_made_twice(default_run: tuple, program_cache: Path):
    """Programs, and what else has to be known of the models, are there from the first start."""
    _, out = default_run
    record = json.loads((out / "0000" / "00-a-robot-on-the-beach.json").read_text())
    assert record["prompt"] == "A robot, on the beach"
    assert record["seed"] == 0
    assert {"jax", "flax", "fyp_jax", "device"} <= set(record["versions"])
    assert set(record["weights"]["provenance"]) == {"motion", "pose"}
    assert record["config"]["steps"] == 20
    words = [str(ROOT / "sample.py"), "--config", str(out / "0000" / "config.yaml")]
    kept = {file.name for file in program_cache.iterdir() if not file.name.endswith("-atime")}
    assert len(kept) > 4
    again = subprocess.run(
        [sys.executable, "-c", SECOND_START, *words], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert {file.name for file in program_cache.iterdir() if not file.name.endswith("-atime")} == kept
    assert clip_files(out) == ["0000", "0001"]  # the first run is still there
    for name in ("00-a-robot-on-the-beach.mp4", "00-a-robot-on-the-beach.gif"):
        assert (out / "0000" / name).read_bytes() == (out / "0001" / name).read_bytes()


def test_words_behind_prompt():
    config = sample.parse(["--prompt", "a robot", "a panda, x=1", "steps=3", "--seed", "4", "pose.frames=2"])
    assert config.prompt == ["a robot", "a panda, x=1"]
    assert (config.steps, config.seed, config.pose.frames) == (3, 4, 2)
    config = sample.parse(
        ["steps=3", "--prompt", "a robot", "negative_prompt=dark, blurry", "--seed", "4", "height=64"]
    )
    assert (config.prompt, config.negative_prompt) == (["a robot"], "dark, blurry")
    assert (config.steps, config.seed, config.height) == (3, 4, 64)
    with pytest.raises(UserError, match="stpes"):
        sample.parse(["--prompt", "a robot", "stpes=3"])


def test_a_pose_of_null_is_none_of_all():
    assert sample.parse([]).pose.path == "dance"
    for words in (["pose.path=null"], ["--pose", "null"]):
        assert sample.parse(words).pose.path is None
    assert sample.parse(["--pose", "./null"]).pose.path == "./null"  # a file of this name


@pytest.mark.slow
def test_a_run_without_a_pose_makes_itself_again(tmp_path: Path):
    first = [
        "pose.path=null",
        "pose.frames=2",
        "steps=2",
        "--out",
        str(tmp_path),
        "--prompt",
        "a robot",
        "a panda",
    ]
    for words in (first, ["--config", str(tmp_path / "0000" / "config.yaml")]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "sample.py"), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert clip_files(tmp_path) == ["0000", "0001"]
    for name in ("00-a-robot.mp4", "01-a-panda.gif"):
        assert (tmp_path / "0000" / name).read_bytes() == (tmp_path / "0001" / name).read_bytes()
    assert json.loads((tmp_path / "0000" / "01-a-panda.json").read_text())["pose"] is None


def test_help_lists_every_field(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        sample.parse(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for key in ("pose.stride=5", "guidance=12.5", "decode_chunk_size=4", "negative_prompt="):
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
        (["stepz=3"], "unknown key stepz; did you mean steps"),
        (["steps=three"], "steps=three: steps: .*'three'"),
        (["height=100"], "height=100 is not a multiple of 64"),
        (["--prompt", ""], "prompt is empty"),
        (["--seed", "x"], "seed"),
        (["pose.frames=0"], "frames is 0"),
        (["pose.start=-1"], "start=-1"),
        (["pose.path=null", "pose.frames=0"], "frames is 0"),
        (["steps=1001"], "steps=1001 is not between"),
        (["pretrained=sd14"], "no trained weights"),
        (["checkpoint={files}/folder", "random_init=true"], "add random_init=false"),
        (["--seed", "99999999999999999999"], "seed=9+ is not between"),
        (["checkpoint={files}/folder"], "no checkpoint in it"),
        (["pretrained=nosuchmodel"], "nosuchmodel: no such folder, and no bundled model .*mini, sd14"),
        (["pretrained=some/model"], "offline, download it elsewhere"),
        (["out={files}/short.mp4/x"], "no folder can be made here"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_status_2(
    files: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    words = [word.format(files=files) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["sample.py", f"out={files}/runs", *words])
    assert run_cli(sample.main) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert not (files / "runs").exists()  # nothing is left behind


def test_exit_status(capsys: pytest.CaptureFixture[str]):
    def fail(error: BaseException) -> Callable[[], None]:
        def main() -> None:
            raise error

        return main

    assert run_cli(lambda: None) == 0
    assert run_cli(fail(UserError("two\n  lines"))) == 2
    assert capsys.readouterr().err == "error: two lines\n"
    assert run_cli(fail(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        run_cli(fail(ZeroDivisionError()))


def test_config_flag_reads_a_file(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("prompt: [x]\nsteps: 3\n")
    assert sample.parse(["--config", str(tmp_path / "mine.yaml")]) == load_config(
        SampleConfig, tmp_path / "mine.yaml", []
    )
