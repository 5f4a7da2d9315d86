"""The page in a real browser, driven as a person would: Chromium by Playwright, and the bundled model."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from cli_utils import SAMPLE, SCRIPTS, run_script
from fyp_jax.media.reading import read_frames
from fyp_jax.pose.loading import load_pose
from page_client import Page, Server, running

pytest.importorskip("gradio", reason="the page needs the extra [demo]")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)"),
]
STEPS, FRAMES = 60, 2
"""The same for all tests: another number of either would compile again. 60 steps take a second or two."""
WAIT_MS = 180_000.0
"""The first clip compiles."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running([SCRIPTS / "demo.py", "--port", "PORT"], tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    sync_api.expect.set_options(timeout=WAIT_MS)
    with sync_api.sync_playwright() as playwright:
        # As root Chromium has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A person with a browser window. Every request that it makes goes to this machine."""

    def __init__(self, browser: sync_api.Browser, url: str, width: int = 1280):
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.requests, self.problems = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(url)
        self.expect("#sample-preview img").to_have_count(2)

    def _console(self, message: sync_api.ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def expect(self, selector: str) -> sync_api.LocatorAssertions:
        return sync_api.expect(self.page.locator(selector))

    def fill(self, name: str, value: object, tab: str = "sample") -> None:
        self.page.locator(f"#{tab}-{name}").locator("input, textarea").fill(str(value))

    def choose(self, name: str, label: str) -> None:
        self.page.locator(f"#{name}").get_by_label(label).check()

    def fill_in(self, prompt: str, tab: str = "sample", **numbers: int) -> None:
        """Fill in the form."""
        self.fill("prompt", prompt, tab)
        for name, value in {"num_frames": FRAMES, "num_inference_steps": STEPS, **numbers}.items():
            self.fill(name.replace("_", "-"), value, tab)

    def ask_for_clip(self, prompt: str, tab: str = "sample", **numbers: int) -> None:
        """Fill in the form, and press the button."""
        self.fill_in(prompt, tab, **numbers)
        self.page.click(f"#{tab}-start")

    def says(self, text: str, tab: str = "sample") -> None:
        self.expect(f"#{tab}-status").to_contain_text(text)

    def download(self, link: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.locator("#sample-result").get_by_role("link", name=link, exact=True).click()
        return Path(download.value.path()).read_bytes()

    def leave(self) -> None:
        self.context.close()
        elsewhere = [url for url in self.requests if urlsplit(url).hostname not in ("127.0.0.1", None)]
        assert elsewhere == []
        # The page gives up its open requests when it is closed.
        assert [problem for problem in self.problems if not problem.startswith("AbortError")] == []


@pytest.fixture
def visitor(browser: sync_api.Browser, server: Server) -> Iterator[Visitor]:
    visitor = Visitor(browser, server.url)
    yield visitor
    visitor.leave()


def test_person_makes_a_clip_sees_it_and_takes_it_away(visitor: Visitor, server: Server, tmp_path: Path):
    sync_api.expect(visitor.page).to_have_title("Follow Your Pose")
    visitor.choose("sample-pose", "dance")
    visitor.ask_for_clip("A panda, on the moon", seed=3)
    visitor.expect("#sample-start").to_be_disabled()
    visitor.says(f"of {STEPS}")
    visitor.says("left")
    visitor.says("Done.")
    visitor.expect("#sample-start").to_be_enabled()
    visitor.page.wait_for_function("document.querySelector('#sample-result video').readyState >= 2")
    shown = visitor.page.locator("#sample-result video")
    assert shown.evaluate("video => [video.videoWidth, video.videoHeight]") == [128, 128]
    video = tmp_path / "clip.mp4"
    video.write_bytes(visitor.download("Video"))
    assert read_frames(video, range(FRAMES)).std() > 10
    record = json.loads(visitor.download("Record"))
    assert (record["prompt"], record["seed"]) == ("A panda, on the moon", 3)
    assert record["config"]["num_inference_steps"] == STEPS
    assert record["pose"]["file"].endswith("dance.json")
    assert visitor.download("GIF").startswith(b"GIF89a")
    assert visitor.download("Grid of frames").startswith(b"\x89PNG")
    visitor.expect("#gallery li").to_have_count(1)
    visitor.ask_for_clip("A robot, on the beach", seed=3)
    visitor.expect("#gallery li").to_have_count(2)
    visitor.expect("#gallery li >> nth=0").to_contain_text("A robot, on the beach")


def test_mistake_gets_the_line_of_the_command_line(visitor: Visitor):
    visitor.fill("width", 72)
    visitor.ask_for_clip("A panda, on the moon")
    run = run_script(SAMPLE, "width=72")
    assert run.status == 2
    visitor.says(run.err.strip())
    visitor.expect("#sample-result video").to_have_count(0)
    visitor.fill("width", 128)
    visitor.ask_for_clip("")
    visitor.says("error: the prompt is empty")
    visitor.expect("#sample-start").to_be_enabled()


def test_cancelled_job_stops_and_the_next_one_runs(visitor: Visitor, server: Server):
    visitor.ask_for_clip("A panda, on the moon")
    visitor.says(f"of {STEPS}")
    visitor.page.click("#sample-cancel")
    visitor.says("Cancelled.")
    visitor.expect("#sample-cancel").to_be_hidden()
    visitor.expect("#sample-result video").to_have_count(0)
    visitor.ask_for_clip("A hulk, on the sea")
    visitor.says("Done.")
    visitor.expect("#sample-result figcaption").to_contain_text("A hulk, on the sea")


def test_two_people_at_once_wait_in_line_and_get_their_own_clips(
    browser: sync_api.Browser, server: Server, tmp_path: Path
):
    people = [Visitor(browser, server.url) for _ in range(2)]
    prompts = ["A robot, on the beach", "A panda, in the forest"]
    for person, prompt in zip(people, prompts, strict=True):
        person.fill_in(prompt)
    for person in people:
        person.page.click("#sample-start")
    people[1].says("1 job is before yours.")
    for person, prompt in zip(people, prompts, strict=True):
        person.says("Done.")
        assert json.loads(person.download("Record"))["prompt"] == prompt
        person.expect("#gallery li").to_have_count(1)
        person.expect("#gallery li").to_contain_text(prompt)
    for person in people:
        person.leave()


def test_upload_is_shown_as_skeletons_and_removed_when_the_page_is_closed(
    browser: sync_api.Browser, server: Server, tmp_path: Path
):
    visitor = Visitor(browser, server.url)
    visitor.choose("sample-pose", "Skeleton video or keypoints")
    dance = SCRIPTS.parent / "fyp_jax" / "assets" / "poses" / "dance.json"
    (tmp_path / "mine.json").write_bytes(dance.read_bytes())
    visitor.fill("num-frames", 3)
    visitor.page.locator("#pose-upload input[type=file]").set_input_files(tmp_path / "mine.json")
    grid = visitor.expect("#sample-preview img.fyp-grid")
    grid.to_have_attribute("alt", "3 frames side by side")
    gif = visitor.page.locator("#sample-preview img").first.get_attribute("src")
    (tmp_path / "shown.gif").write_bytes(visitor.context.request.get(server.url + str(gif)).body())
    shown = read_frames(tmp_path / "shown.gif", range(3)).astype(int)
    expected = load_pose(dance, num_frames=3, stride=5, start=0, height=128, width=128)
    assert np.abs(shown - expected).mean() < 2
    (tmp_path / "text.mp4").write_text("no film")
    visitor.page.get_by_label("Clear").click()
    visitor.page.locator("#pose-upload input[type=file]").set_input_files(tmp_path / "text.mp4")
    visitor.expect("#sample-preview").to_contain_text("error: text.mp4: ")
    visitor.expect("#sample-preview").not_to_contain_text("/")
    assert server.pages()
    visitor.leave()
    other = Visitor(browser, server.url)  # closing is seen soon, but not at once
    other.page.wait_for_timeout(500)
    for _ in range(100):
        if len(server.pages()) <= 1:
            break
        other.page.wait_for_timeout(100)
    assert len(server.pages()) <= 1
    mine = [file for file in server.files() if file.name in ("text.mp4", "mine.json")]
    assert not [file for file in mine if "pages" in file.parts]  # what gradio has of it goes in two minutes
    other.leave()


def open_edit_tab(visitor: Visitor) -> None:
    visitor.page.get_by_role("tab", name="Edit a clip").click()
    visitor.expect("#edit-preview img.fyp-grid").to_be_visible()


def test_second_tab_shows_the_clip_and_the_line_of_a_mistake(visitor: Visitor):
    open_edit_tab(visitor)
    visitor.ask_for_clip("A panda, on the beach", "edit", num_inference_steps=2)
    visitor.says("error: self_replace_steps=0.3 from 0.0 has no step of num_inference_steps=2", "edit")


@pytest.mark.release
def test_real_clip_is_edited_on_the_second_tab(visitor: Visitor):
    """Compiles inversion, reconstruction and edit, which takes minutes on a slow machine."""
    open_edit_tab(visitor)
    visitor.ask_for_clip("A panda, on the beach", "edit", num_inference_steps=4)
    visitor.says("inversion", "edit")
    visitor.expect("#edit-status").to_contain_text("Done.", timeout=2 * WAIT_MS)
    visitor.expect("#edit-result video").to_be_visible()
    visitor.expect("#edit-result figcaption").to_contain_text("A robot, on the beach → A panda, on the beach")
    visitor.expect("#gallery li").to_have_count(1)


def test_page_fits_wide_and_narrow_windows(visitor: Visitor):
    for width in (1280, 390):
        visitor.page.set_viewport_size({"width": width, "height": 844})
        visitor.page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
        for button in ("#sample-start", "#sample-show"):
            box = visitor.page.locator(button).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width


def test_served_page_names_no_script_style_or_font_of_another_machine(server: Server):
    with contextlib.closing(Page(server.url).http) as http:
        answer, theme = http.get("/"), http.get("/theme.css").text
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    sources = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']([^\"']+)", answer.text)
    assert sources
    assert {urlsplit(source).hostname for source in sources} <= {None, "127.0.0.1"}
    assert not re.search(r"(@import|url\(['\"]?https?:)", theme)
