"""Apache Beam in place of the pool: the same files, whatever the runner, and after a kill."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_prepare_data import encode_image, files, write_video

from fyp_jax.cli import prepare_data
from fyp_jax.data.ingest import beam_runner
from fyp_jax.data.ingest import ingest as ingest_module
from fyp_jax.data.ingest.find import find_items
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.data.ingest.items import Blob, Caption, Item
from fyp_jax.data.ingest.plan import plan_items, read_plan, write_plan
from fyp_jax.errors import UserError

ROOT = Path(__file__).parent.parent
IN_MEMORY = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
THREADS = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_threading"]
PROCESSES = ["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]

# Beam brings older versions of packages, and these have warnings of their own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam (the extra [beam]) is not installed"
)


def write_source(folder: Path, count: int) -> Path:
    """Videos with captions; every fifth is no video, and every seventh has no caption."""
    for i in range(count):
        file = write_video(folder / f"{i:03d}.mp4", seed=i)
        if i % 5 == 3:
            file.write_bytes(b"no video" * i)
        if i % 7 != 5:
            file.with_suffix(".txt").write_text(f"clip {i}")
    return folder


def command(source: Path, out: Path, options: list[str]) -> list[str]:
    script = [sys.executable, "scripts/prepare_data.py", "videos", "--source", str(source)]
    return [*script, "--out", str(out), *options]


def run(source: Path, out: Path, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Run prepare_data.py, with shards of 1 MB."""
    return subprocess.run(
        command(source, out, ["--shard-mb", "1", *options]), cwd=ROOT, text=True, capture_output=True
    )


def an_item(name: str, size: int) -> Item:
    return Item(name, Blob(name, 3, size, 7), (Caption(0, "a"), Caption(9, "ü\n")), keypoints="[]")


def test_plan_fills_each_shard_and_reads_back_equal(tmp_path: Path):
    problem = Item("bad", problem="no such file")
    items = [an_item("a", 5), an_item("b", 6), problem, an_item("c", 99), an_item("d", 1)]
    items.append(Item("e", None, (), Blob("s", 0, 4, 0), Blob("k", 1, 5, 0)))
    planned = list(plan_items(items, shard_bytes=10))
    assert [(one.shard, one.item.name, one.last) for one in planned] == [
        (0, "a", False),
        (0, "b", True),
        (1, "bad", False),
        (1, "c", True),
        (2, "d", False),
        (2, "e", True),
    ]
    assert write_plan(tmp_path, planned, done=[1]) == [0, 2]
    assert [item for shard in (0, 2) for item in read_plan(tmp_path, shard)] == items[:2] + items[4:]


def test_shard_that_two_workers_write_at_a_time_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_source(tmp_path / "in", 3)
    items = list(find_items("captioned_videos", source, None))
    plan, work = tmp_path / "plan", tmp_path / "work"
    work.mkdir()
    write_plan(plan, plan_items(items, shard_bytes=10**9), {})
    job = ingest_module._ShardJob("captioned_videos", str(work), str(plan), 0)
    ingest_module.write_planned_shard(job)
    expected = files(work)
    for file in work.iterdir():
        file.unlink()
    make_example, started = ingest_module.make_example, []

    def second_worker_in_between(kind: str, item: Item) -> object:
        if item == items[1] and not started:
            started.append(item)
            ingest_module.write_planned_shard(job)
        return make_example(kind, item)

    monkeypatch.setattr(ingest_module, "make_example", second_worker_in_between)
    ingest_module.write_planned_shard(job)
    assert started
    assert files(work) == expected


def test_runner_without_beam_and_options_of_nobody_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = write_source(tmp_path / "in", 1)
    for options, message in (
        (["--direct_num_workers", "2"], "options of Beam need --runner"),
        (["--runner", "DirectRunner", "--workers", "2"], "--workers is for processes of this machine"),
        (
            ["--out", "gs://bucket/records"],
            "gs://bucket/records is no path of this machine; mount",
        ),
    ):
        monkeypatch.setattr(sys, "argv", command(source, tmp_path / "out", options)[1:])
        with pytest.raises(SystemExit) as ended:
            prepare_data.main()
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"--runner needs Apache Beam .*pip install 'fyp_jax\[beam\]'"):
        ingest("captioned_videos", source, tmp_path / "out", beam_options=THREADS)
    assert not (tmp_path / "out").exists()


@needs_beam
def test_option_that_beam_does_not_know_is_refused():
    with pytest.raises(UserError, match="--direct_workers=2: neither this command nor Beam has such"):
        beam_runner.check_beam_options([*THREADS, "--direct_workers=2"])
    with pytest.raises(UserError, match="Beam's options: argument --direct_num_workers: invalid int"):
        beam_runner.check_beam_options(["--direct_num_workers=two"])


@needs_beam
def test_runner_that_beam_cannot_make_is_refused():
    for name in ("NoRunner", "no_package.Runner", "apache_beam.runners.NoRunner"):
        with pytest.raises(UserError, match=f"^--runner {name}: Beam cannot make this runner"):
            beam_runner.check_beam_options([f"--runner={name}"])
    with pytest.raises(UserError, match="^Beam's options: .*environment_config.*LOOPBACK"):
        beam_runner.check_beam_options(
            ["--runner=PortableRunner", "--environment_type=LOOPBACK", "--environment_config=image"]
        )


@needs_beam
def test_few_items_by_beam_in_threads_make_the_files_of_the_pool(tmp_path: Path):
    source = write_source(tmp_path / "in", 12)
    size = {"shard_bytes": 20_000}
    ours = ingest("captioned_videos", source, tmp_path / "beam", beam_options=THREADS, **size)
    theirs = ingest("captioned_videos", source, tmp_path / "pool", **size)
    assert theirs.shards > 2
    assert len(theirs.rejected) == 3
    assert (ours.records, ours.shards, ours.rejected) == (theirs.records, theirs.shards, theirs.rejected)
    assert files(tmp_path / "beam") == files(tmp_path / "pool")


def test_pool_resumes_what_beam_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_source(tmp_path / "in", 12)
    size = {"shard_bytes": 20_000}
    ingest("captioned_videos", source, tmp_path / "whole", **size)

    def only_some(function, elements, options, again):
        for element in elements[1::2]:
            function(element)
        raise KeyboardInterrupt

    monkeypatch.setattr("fyp_jax.data.ingest.ingest.check_beam_options", lambda options: None)
    monkeypatch.setattr("fyp_jax.data.ingest.ingest.run_in_beam", only_some)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        ingest("captioned_videos", source, out, beam_options=THREADS, **size)
    before = {file.name: file.stat().st_mtime_ns for file in out.rglob("*array_record*")}
    report = ingest("captioned_videos", source, out, **size)
    assert files(out) == files(tmp_path / "whole")
    assert before
    assert all((report.folder / name).stat().st_mtime_ns == time for name, time in before.items())
    assert [path.name for path in report.folder.parent.iterdir()] == ["1.0.0"]


@needs_beam
def test_images_with_poses_by_beam_make_the_files_of_the_pool(tmp_path: Path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(4):
        (source / f"{i}.png").write_bytes(encode_image(seed=i))
        (source / f"{i}.skeleton.png").write_bytes(encode_image(seed=i) if i != 2 else b"")
        (source / f"{i}.txt").write_text("a person")
    ours = ingest("pose_images", source, tmp_path / "beam", beam_options=THREADS)
    assert len(ours.rejected) == 1
    ingest("pose_images", source, tmp_path / "pool")
    assert files(tmp_path / "beam") == files(tmp_path / "pool")


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A source of 200 items, what one process makes of it, and what the command prints of that."""
    folder = tmp_path_factory.mktemp("two_hundred")
    source = write_source(folder / "in", 200)
    for file in source.glob("*.mp4"):  # shards of some ten items
        with open(file, "ab") as video:
            video.write(np.random.default_rng(0).bytes(40_000))
    one = run(source, folder / "out", ["--workers", "1"])
    assert one.returncode == 0, one.stderr
    return source, folder / "out", one.stdout


def kill_when_a_shard_is_complete(source: Path, out: Path, options: list[str]) -> dict[str, int]:
    """Start the command, kill all its processes, and return the shards that it left, with their times."""
    process = subprocess.Popen(
        command(source, out, ["--shard-mb", "1", *options]),
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def complete_shards() -> list[str]:
        """Names of shards: those that Beam's workers marked, and those in the log of the pool."""
        marked = [file.name[:5] for file in out.glob("*/*.incomplete/*.complete.json")]
        logged = [line for log in out.glob("*/*.progress.jsonl") for line in log.read_text().splitlines()[1:]]
        return [*marked, *(f"{json.loads(line)['index']:05d}" for line in logged)]

    while process.poll() is None and not complete_shards():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "captioned_videos" / "1.0.0").exists()
    files = (file for shard in complete_shards() for file in out.rglob(f"*array_record-{shard}"))
    return {file.name: file.stat().st_mtime_ns for file in files}


@pytest.mark.release
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--workers", "2"], id="pool"),
        pytest.param(IN_MEMORY, id="in_memory", marks=needs_beam),
        pytest.param(THREADS, id="threads", marks=needs_beam),
        pytest.param(PROCESSES, id="processes", marks=needs_beam),
    ],
)
def test_200_items_make_the_files_of_one_process_also_after_a_kill(
    tmp_path: Path, two_hundred: tuple[Path, Path, str], options: list[str]
):
    source, expected, printed = two_hundred
    whole = run(source, tmp_path / "whole", options)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.replace(str(tmp_path / "whole"), str(expected)) == printed
    assert files(tmp_path / "whole") == files(expected)
    out = tmp_path / "killed"
    before = kill_when_a_shard_is_complete(source, out, options)
    assert before
    again = run(source, out, options)
    assert again.returncode == 0, again.stderr
    assert files(out) == files(expected)
    after = {file.name: file.stat().st_mtime_ns for file in out.rglob("*array_record-*")}
    assert before.items() <= after.items(), "a complete shard was written again"
