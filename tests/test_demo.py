"""The page without a browser: jobs in line, private files, limits, and the messages of the command line."""

import dataclasses
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import page_server
from cli_utils import SAMPLE, SCRIPTS, assert_mistake, run_script
from fyp_jax.cli import demo, edit, sample
from fyp_jax.config import load_config
from fyp_jax.demo import html
from fyp_jax.demo import jobs as jobs_module
from fyp_jax.demo.jobs import Job, JobQueue, State, Status
from fyp_jax.demo.limits import KEYPOINTS, VIDEOS, Limits
from fyp_jax.demo.service import ClipService, without_folder
from fyp_jax.demo.sessions import MOST_CLIPS, MOST_SHOWN, Session, Sessions
from fyp_jax.demo.values import CONFIGURED, POSE_SLOT, edit_values, sample_values
from fyp_jax.errors import UserError, error_line
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4
from fyp_jax.pipeline.edit_config import EditConfig

EVENTS_S = 10.0
DEMO = SCRIPTS / "demo.py"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + EVENTS_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    queue = JobQueue(most_waiting=3)
    yield queue
    queue.close()


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    sessions = Sessions(tmp_path)
    yield sessions
    sessions.remove()
    assert list(tmp_path.glob("fyp-demo-*")) == []


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, queue: JobQueue) -> ClipService:
    monkeypatch.setattr("fyp_jax.pipeline.files.warn_of_unused_tokens", lambda encoders, texts: None)
    return page_server.service(page_server.painter(), queue=queue)


def steps_until(event: threading.Event, ran: list[str] | None = None, name: str = "") -> Any:
    """Work that takes steps until the event comes."""

    def work(job: Job) -> str:
        if ran is not None:
            ran.append(name)
        job.start_count(1000)
        while not event.wait(0.002):
            job.update()
        return name

    return work


VALUES = page_server.VALUES
EDIT_VALUES: dict[str, Any] = {
    "video": "robot",
    "source": "A robot, on the beach",
    "prompt": "A panda, on the beach",
    "words": "robot, panda",
    "method": "p2p",
    "num_frames": 8,
    "video_stride": 1,
    "video_start": 0,
    "height": 128,
    "width": 128,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "seed": 0,
}


def test_jobs_run_one_at_a_time_in_the_order_in_which_they_came(queue: JobQueue):
    events, ran = [threading.Event() for _ in range(3)], []
    jobs = [queue.submit(str(i), steps_until(events[i], ran, str(i))) for i in range(3)]
    wait_for(lambda: ran == ["0"])
    assert [queue.status(job).ahead for job in jobs] == [0, 1, 2]
    for i in range(3):
        wait_for(lambda i=i: ran == [str(n) for n in range(i + 1)])
        events[i].set()
        wait_for(lambda i=i: jobs[i].ended)
    assert [job.result for job in jobs] == ["0", "1", "2"]


def test_job_that_runs_stops_at_its_next_step_when_it_is_cancelled(queue: JobQueue):
    ended = []
    job = queue.submit("a", steps_until(threading.Event()), lambda: ended.append("a"))
    wait_for(lambda: job.done > 2)
    queue.cancel(job)
    steps = job.done
    wait_for(lambda: job.ended)
    assert job.state is State.CANCELLED
    assert job.done <= steps + 2
    assert ended == ["a"]


def test_job_that_waits_never_runs_when_it_is_cancelled(queue: JobQueue):
    event, ran, ended = threading.Event(), [], []
    first = queue.submit("a", steps_until(event, ran, "a"))
    second = queue.submit("b", steps_until(event, ran, "b"), lambda: ended.append("b"))
    queue.cancel(second)
    assert second.state is State.CANCELLED
    assert ended == ["b"]
    event.set()
    wait_for(lambda: first.ended)
    assert ran == ["a"]
    assert queue.submit("b", lambda job: 1) is not None  # the page may try again


def test_job_that_nobody_watches_is_cancelled(queue: JobQueue, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs_module, "UNWATCHED_S", 0.1)
    watched, lost = (queue.submit(name, steps_until(threading.Event())) for name in "ab")
    for _ in range(20):
        assert queue.status(watched).state in (State.WAITING, State.RUNNING)
        time.sleep(0.01)
    queue.cancel(watched)
    wait_for(lambda: lost.ended)
    assert lost.state is State.CANCELLED


def test_page_with_a_job_and_a_full_line_are_refused(queue: JobQueue):
    event = threading.Event()
    first = queue.submit("a", steps_until(event))
    wait_for(lambda: first.state is State.RUNNING)
    with pytest.raises(UserError, match="this page has a job already"):
        queue.submit("a", lambda job: None)
    for i in range(3):
        queue.submit(str(i), lambda job: None)
    with pytest.raises(UserError, match="3 jobs are waiting: try again"):
        queue.submit("late", lambda job: None)
    event.set()


def test_failed_job_gives_one_line_and_the_next_job_runs(queue: JobQueue, caplog: pytest.LogCaptureFixture):
    def mistake(job: Job) -> None:
        raise UserError("a\nlong \x1b[31mline")

    def bug(job: Job) -> None:
        raise ZeroDivisionError("by 0\nmore")

    jobs = [queue.submit(str(i), work) for i, work in enumerate((mistake, bug, lambda job: 7))]
    wait_for(lambda: all(job.ended for job in jobs))
    assert [job.state for job in jobs] == [State.FAILED, State.FAILED, State.DONE]
    assert jobs[0].error == r"a long \x1b[31mline"
    assert jobs[1].error == "ZeroDivisionError on the server, whose log says more: by 0"
    assert jobs[2].result == 7
    assert "ZeroDivisionError" in caplog.text


def test_warnings_of_a_run_go_to_its_job_alone(queue: JobQueue):
    log = logging.getLogger("fyp_jax.somewhere")
    event = threading.Event()

    def work(job: Job) -> None:
        log.warning("the prompt is longer than %d tokens", 77)
        event.wait(EVENTS_S)

    job = queue.submit("a", work)
    wait_for(lambda: bool(job.notes))
    log.warning("of another thread")
    event.set()
    wait_for(lambda: job.ended)
    assert job.notes == ["the prompt is longer than 77 tokens"]


def test_time_left_is_that_of_the_steps_after_the_first(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(jobs_module.time, "monotonic", lambda: now)
    job = Job("a", lambda job: None, lambda: None)
    job.start_count(10)
    for seconds in (30.0, 32.0, 34.0):  # the first step compiles
        assert job.seconds_left() is None or job.done > 1
        now, job.watched = seconds, seconds
        job.update()
    assert job.seconds_left() == 7 * 2.0
    text = html.progress(Status(State.RUNNING, 0, "inversion", 3, 10, job.seconds_left()))
    assert "inversion: step 3 of 10, about 14 s left" in text


def test_folders_are_private(sessions: Sessions):
    session = sessions.get("a")
    for folder in (sessions.root, sessions.pages, sessions.uploads, sessions.incoming, session.folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def upload(sessions: Sessions, content: str, name: str = "pose.json") -> Path:
    """A file where gradio puts an upload: equal bytes have one path."""
    folder = sessions.uploads / content
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def test_uploads_of_two_pages_with_equal_bytes_live_on_their_own(sessions: Sessions):
    first, second = sessions.get("a"), sessions.get("b")
    files = [session.take_upload(POSE_SLOT, upload(sessions, "same")) for session in (first, second)]
    sessions.close("a")
    assert not files[0].exists()
    assert files[1].read_text() == "same"
    replaced = second.take_upload(POSE_SLOT, upload(sessions, "other"))
    assert not files[1].exists()
    assert second.uploads == {POSE_SLOT: replaced}


def test_page_that_closes_while_its_job_runs_leaves_no_file(sessions: Sessions, queue: JobQueue):
    session, begun = sessions.get("a"), threading.Event()
    session.take_upload(POSE_SLOT, upload(sessions, "mine"))

    def work(job: Job) -> None:
        begun.set()
        while True:
            late = session.folder / "0000"  # a run makes its folder, whatever happened meanwhile
            late.mkdir(parents=True, exist_ok=True)
            (late / "clip.mp4").touch()
            job.update()

    session.job = queue.submit("a", work, session.job_ended)
    begun.wait(EVENTS_S)
    sessions.close("a")
    wait_for(lambda: not session.folder.exists())
    time.sleep(0.02)
    assert list(sessions.pages.iterdir()) == []
    with pytest.raises(UserError, match="reload it"):
        session.new_folder("preview")


def test_files_of_a_page_have_addresses_of_their_own_and_nothing_else_is_served(sessions: Sessions):
    sessions_of = {key: sessions.get(key) for key in "ab"}
    addresses = {}
    for key, session in sessions_of.items():
        file = session.new_folder("preview") / "x.gif"
        file.write_text(key)
        (file.parent / "secret").write_text(key)
        addresses[key] = session.serve(file)
    (_, _, token_a, name_a), (_, _, token_b, name_b) = (address.split("/") for address in addresses.values())
    found = sessions.find(token_a, name_a)
    assert found is not None
    assert found.read_text() == "a"
    for token, name in ((token_a, name_b), (token_b, name_a), ("", name_a), (token_a, "x.gif")):
        assert sessions.find(token, name) is None
    for name in ("secret", "../uploads", "preview/secret"):
        assert sessions.find(token_a, name) is None
    for _ in range(MOST_SHOWN - 1):  # a browser may still fetch the picture that was there before
        sessions_of["a"].new_folder("preview")
    assert sessions.find(token_a, name_a) is not None
    sessions_of["a"].new_folder("preview")
    assert sessions.find(token_a, name_a) is None
    assert not found.parent.exists()


def test_page_keeps_its_newest_clips(sessions: Sessions):
    session = sessions.get("a")
    for i in range(MOST_CLIPS + 2):
        folder = session.folder / f"{i:04d}"
        folder.mkdir()
        (folder / "clip.mp4").write_text("x")
        session.serve(session.add_clip(folder / "clip.mp4", str(i)).files["mp4"])
    assert [clip.title for clip in session.clips] == [str(i) for i in range(2, MOST_CLIPS + 2)]
    assert sorted(path.name for path in session.folder.iterdir())[0] == "0002"


def test_sweep_removes_what_nobody_uses_and_nothing_else(sessions: Sessions, queue: JobQueue):
    event = threading.Event()
    idle, busy = sessions.get("idle"), sessions.get("busy")
    busy.job = queue.submit("busy", steps_until(event), busy.job_ended)
    taken = busy.take_upload(POSE_SLOT, upload(sessions, "taken"))
    for path in (upload(sessions, "stray"), sessions.incoming / "broken"):
        path.touch()
    time.sleep(0.05)
    fresh = upload(sessions, "fresh")
    sessions.sweep(idle_s=0.01, stray_s=0.04)
    assert not idle.folder.exists()
    assert taken.exists()
    assert [path for path in sessions.uploads.rglob("*") if path.is_file()] == [fresh]
    assert list(sessions.incoming.iterdir()) == []
    event.set()


def test_uploads_over_the_limits_are_refused_by_their_name(tmp_path: Path):
    frames = np.zeros((30, 16, 32, 3), np.uint8)
    write_mp4(tmp_path / "film.mp4", frames, 10)
    film, limits = tmp_path / "film.mp4", Limits()
    limits.check_upload(film, VIDEOS)
    for other, said in (
        (limits._replace(film_seconds=2), "is 3 s long; this page takes 2 s at most"),
        (limits._replace(film_side=31), "has 32x16 pixels; this page takes 31 on a side"),
        (limits._replace(upload_mb=0), "this page takes 0 MB at most"),
    ):
        with pytest.raises(UserError, match=said):
            other.check_upload(film, VIDEOS)
    (tmp_path / "pose.json").write_text("{}")
    limits.check_upload(tmp_path / "pose.json", KEYPOINTS)
    with pytest.raises(UserError, match="is none of .mp4"):
        limits.check_upload(tmp_path / "pose.json", VIDEOS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 65}, ["height=65"]),
        ({"num_frames": 2.5}, ["num_frames=2.5"]),
        ({"num_frames": 0}, ["num_frames=0"]),
        ({"pose.start": -1}, ["pose.start=-1"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale=nan"]),
        ({"seed": 2**32}, [f"seed={2**32}"]),
        ({"prompt": " "}, ["--prompt", " "]),
        ({"pose.stride": 500}, ["pose.stride=500"]),
    ],
)
def test_mistake_on_the_page_gets_the_line_of_the_command_line(
    sessions: Sessions, service: ClipService, changes: dict[str, Any], words: list[str]
):
    job = None
    try:
        job = service.sample(sessions.get("a"), VALUES | changes)
        wait_for(lambda: job.ended)
        shown = job.error
    except UserError as error:
        shown = error_line(error)
    run = run_script(SAMPLE, "height=64", "width=64", "num_frames=2", *words)
    assert_mistake(run)
    assert run.err == f"error: {shown}\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pose.start": 9001, "num_frames": 1}, "needs frame 9001; this page reads frames up to 9000"),
        ({"num_frames": 97}, "num_frames=97: this page takes 96 at most"),
        ({"num_inference_steps": 101}, "this page takes 100 at most"),
        ({"width": 1088}, "width=1088: this page takes 1024 at most"),
        ({"seed": None}, "seed has no number: give one"),
        ({"seed": "0 pose.path=/etc/passwd"}, "seed has no number: give one"),
        ({"pose": "../../etc/passwd"}, "no such choice"),
        ({"pose": "upload"}, "there is no file yet: upload a skeleton video or keypoints first"),
        ({"pose": "film"}, "there is no file yet: upload a film first"),
    ],
)
def test_what_only_a_page_can_ask_is_refused(
    sessions: Sessions, service: ClipService, changes: dict[str, Any], said: str
):
    with pytest.raises(UserError, match=re.escape(said)):
        service.sample(sessions.get("a"), VALUES | changes)


@given(
    num_frames=st.integers(1, 96),
    stride=st.integers(1, 50),
    guidance=st.floats(-50, 50),
    seed=st.integers(0, 2**32 - 1),
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip),
)
@settings(max_examples=5, deadline=None)
def test_values_of_the_page_reach_the_config_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    num_frames: int,
    stride: int,
    guidance: float,
    seed: int,
    prompt: str,
):
    session = Session("a", tmp_path_factory.mktemp("pages"))
    values = {**VALUES, "prompt": prompt, "num_frames": float(num_frames), "pose.stride": stride}
    values |= {"guidance_scale": guidance, "seed": seed, "negative_prompt": prompt}
    base = sample.parse(["height=64", "width=64"])
    config, film = sample_values(base, values, session, Limits())
    assert film is None
    assert (config.num_frames, config.pose.stride, config.seed) == (num_frames, stride, seed)
    assert (config.guidance_scale, config.prompt, config.negative_prompt) == (guidance, [prompt], prompt)
    own = {"num_frames": num_frames, "seed": seed, "guidance_scale": guidance, "prompt": [prompt]}
    own |= {"negative_prompt": prompt, "output_dir": str(session.folder), "num_inference_steps": 3}
    pose = dataclasses.replace(base.pose, stride=stride)
    assert config == dataclasses.replace(base, **own, pose=pose)


def test_edit_tab_as_it_opens_is_the_edit_of_the_command_line(sessions: Sessions):
    session, base = sessions.get("a"), load_config(EditConfig, "configs/mini/edit.yaml", [])
    config = edit_values(base, EDIT_VALUES, session, Limits())
    assert dataclasses.replace(config, output_dir="runs") == edit.parse([])
    other = edit_values(base, EDIT_VALUES | {"words": "A robot, A panda"}, session, Limits())
    expected = edit.parse(["--keep-background", "A robot", "A panda"])
    assert dataclasses.replace(other, output_dir="runs") == expected
    none = edit_values(base, EDIT_VALUES | {"words": ""}, session, Limits())
    assert none.edit.blend_words == []
    assert not none.edit.blend_latents


def test_edit_of_a_page_follows_the_poses_of_its_frames_and_shares_no_inversion(sessions: Sessions):
    base = load_config(EditConfig, "configs/mini/edit.yaml", ["inversion=/srv/clip.npz"])
    values = EDIT_VALUES | {"num_frames": 3, "video_stride": 2, "video_start": 1}
    config = edit_values(base, values, sessions.get("a"), Limits())
    assert (config.source_pose.stride, config.source_pose.start) == (2, 1)
    assert config.inversion is None


def test_pose_of_the_commands_config_is_a_choice_of_the_page(sessions: Sessions, tmp_path: Path):
    base = sample.parse([f"pose.path={tmp_path}/walk.json", "pose.size=64x48"])
    config, _ = sample_values(base, VALUES | {"pose": CONFIGURED}, sessions.get("a"), Limits())
    assert (config.pose.path, config.pose.size) == (f"{tmp_path}/walk.json", "64x48")
    config, _ = sample_values(base, VALUES, sessions.get("a"), Limits())
    assert (config.pose.path, config.pose.size) == ("dance", None), "the size is that of the config's pose"


def test_upload_that_is_replaced_stays_for_the_job_that_waits(sessions: Sessions, queue: JobQueue):
    session, event = sessions.get("a"), threading.Event()
    first = session.take_upload(POSE_SLOT, upload(sessions, "first"))
    session.hold_uploads()
    session.job = job = queue.submit("a", steps_until(event), session.job_ended)
    unread = session.take_upload(POSE_SLOT, upload(sessions, "unread"))
    second = session.take_upload(POSE_SLOT, upload(sessions, "second"))
    assert first.exists(), "the job may still read it"
    assert not unread.exists(), "the job began before it"
    event.set()
    wait_for(lambda: job.ended and not first.exists())
    assert session.uploads == {POSE_SLOT: second}
    assert second.exists()


def test_clip_of_a_page_is_written_into_its_folder_and_names_no_folder_of_the_server(
    sessions: Sessions, service: ClipService
):
    session = sessions.get("a")
    job = service.sample(session, VALUES)
    wait_for(lambda: job.ended)
    assert job.state is State.DONE, job.error
    (clip,) = session.clips
    assert (job.done, job.total) == (3, 3)
    assert all(session.folder in file.parents for file in clip.files.values())
    frames = read_frames(clip.files["mp4"], range(2))
    assert np.abs(frames.astype(int) - page_server.colour("a robot")).max() <= 3
    record = clip.files["json"].read_text()
    assert '"prompt": "a robot"' in record
    assert str(sessions.root) not in record
    assert session.token not in record


def test_preview_shows_the_skeletons_that_the_clip_follows(sessions: Sessions, service: ClipService):
    session = sessions.get("a")
    preview = service.pose_preview(session, VALUES | {"num_frames": 3, "prompt": ""})
    assert preview is not None
    gif = read_frames(preview.gif, range(3))
    again = service.pose_preview(session, VALUES | {"num_frames": 3, "pose.start": 5})
    assert again is not None
    assert preview.gif.exists(), "a browser may still fetch it"
    shifted = read_frames(again.gif, range(3))
    assert np.array_equal(gif[1:], shifted[:2])
    assert not np.array_equal(gif, shifted)


def test_texts_of_users_are_escaped():
    nasty = "<script>alert(1)</script>\"'"
    urls = dict.fromkeys(html.DOWNLOADS, '/clips/a/"b.mp4')
    clip = html.Shown(nasty, urls)
    status = Status(State.RUNNING, 0, nasty, 1, 3, None)
    for text in (html.error(nasty), html.done([nasty]), html.result(clip), html.gallery([clip])):
        assert "<script>" not in text
        assert '/"b' not in text
    assert "<script>" not in html.progress(status)


def test_folders_of_the_server_are_cut_from_messages():
    root = Path("/tmp/fyp-demo-x")
    text = "/tmp/fyp-demo-x/pages/ab12/uploads/3f/my film.mp4: has 3 frames; see /tmp/fyp-demo-x"
    assert without_folder(text, root) == "my film.mp4: has 3 frames; see ."


def test_page_needs_its_extra_and_a_free_port(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert_mistake(run_script(DEMO), "the page needs the extra [demo]: pip install 'fyp_jax[demo]'")
    for words, said in (
        (["--port", "0"], "--port 0 is not between"),
        (["--people", "0"], "--people 0 must be at least 1"),
        (["heigth=64"], "did you mean height?"),
    ):
        assert_mistake(run_script(DEMO, *words), said)


def test_page_serves_this_machine_alone_unless_told():
    command = demo.parse([])
    assert (command.args.host, command.args.share) == ("127.0.0.1", False)
    assert command.edit.video == "robot"
    assert demo.parse(["--pipeline", "sd14", "--checkpoint", "c"]).edit.video is None
    assert demo.parse(["--pipeline", "sd14"]).sample.pretrained == "sd14"
    assert os.environ.get("GRADIO_TEMP_DIR") is None
