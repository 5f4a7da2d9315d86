"""The page under 200 requests from 8 threads, among them broken, huge, cancelled and abandoned ones."""

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

pytest.importorskip("gradio", reason="the page needs the extra [demo]")
import httpx

import page_server
from fyp_jax.media.reading import read_frames
from page_client import Page, Server, running

THREADS, REQUESTS = 8, 200
KINDS = ("clip", "clip", "broken", "cut", "huge", "chunked", "cancelled", "abandoned")
PAGE_SERVER = Path(__file__).parent / "page_server.py"
SETTLED_S = 40.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running([PAGE_SERVER, "PORT", "0.01"], tmp_path_factory.mktemp("page")) as server:
        yield server


def memory(server: Server) -> int:
    """Resident memory of the server in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def check_clip(page: Page, prompt: str, folder: Path) -> None:
    """Make a clip, fetch all of its files, and see that it is the one of this prompt."""
    status, *_, result, gallery = page.run("sample-start", **{"sample-prompt": prompt})
    assert "Done." in status, status
    links = dict.fromkeys(re.findall(r'(/clips/[^"]+)"', result))
    files = {link.rpartition(".")[2]: page.http.get(link).raise_for_status().content for link in links}
    assert set(files) == {"mp4", "gif", "png", "json"}
    file = folder / f"{threading.get_ident()}.mp4"
    file.write_bytes(files["mp4"])
    frames = read_frames(file, range(2)).astype(int)
    assert np.abs(frames - page_server.colour(prompt)).max() <= 3, prompt
    assert f'"prompt": "{prompt}"' in files["json"].decode()
    assert set(re.findall(r'(/clips/[^"]+)"', gallery)) <= set(links)


def send_half_an_upload(url: str, length: int, sent: int) -> None:
    """Begin an upload and hang up in the middle of it."""
    address = urlsplit(url)
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="half.mp4"\r\n\r\n'
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        request = (
            f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n"
        )
        connection.sendall(request.encode() + head + b"0" * sent)
        time.sleep(0.05)


def chunks(megabytes: int) -> Iterator[bytes]:
    yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="long.mp4"\r\n\r\n'
    for _ in range(megabytes):
        yield bytes(1_000_000)


def do_request(server: Server, number: int, folder: Path) -> str:
    """One request of a kind that the number says, by a page of its own."""
    kind, page = KINDS[number % len(KINDS)], Page(server.url)
    with contextlib.closing(page.http):
        if kind == "clip":
            check_clip(page, f"prompt {number}", folder)
        elif kind == "broken":
            path = page.upload("broken.mp4", b"no film %d" % number).raise_for_status().json()[0]
            data = {"path": path, "meta": {"_type": "gradio.FileData"}}
            page.run("pose-upload", "upload", **{"pose-upload": data})
            status = page.run("sample-start", **{"sample-pose": "upload"})[0]
            assert "error: broken.mp4:" in status, status
        elif kind == "cut":
            send_half_an_upload(server.url, 1_000_000, 300_000)
        elif kind == "huge":
            assert page.upload("huge.mp4", bytes(60_000_000)).status_code == 413
        elif kind == "chunked":
            form = {"content-type": "multipart/form-data; boundary=x"}
            with contextlib.suppress(httpx.TransportError):  # the server hangs up
                answer = page.http.post("/gradio_api/upload", content=chunks(55), headers=form)
                assert answer.status_code >= 400
        else:
            page.start("sample-start", **{"sample-num-inference-steps": 100})
            if kind == "cancelled":
                time.sleep(0.3)
                page.start("sample-cancel")
    return kind


@pytest.mark.release
def test_page_under_load_mixes_no_clips_and_leaves_no_file(server: Server, tmp_path: Path):
    done, used = Counter(), []
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, REQUESTS, REQUESTS // 4):
            numbers = range(start, start + REQUESTS // 4)
            done.update(threads.map(lambda number: do_request(server, number, tmp_path), numbers))
            used.append(memory(server))
    assert done.total() == REQUESTS
    assert done["clip"] == REQUESTS // 4
    end = time.monotonic() + SETTLED_S
    while server.files() or server.pages():
        assert time.monotonic() < end, f"still there: {server.files()}"
        time.sleep(0.5)
    print(f"{dict(done)}; MB: {[round(x / 1e6) for x in used]}, then {memory(server) / 1e6:.0f}")  # noqa: T201
    assert memory(server) < 1.15 * used[0]
    with contextlib.closing(Page(server.url).http) as http:
        assert http.get("/").status_code == 200


@pytest.mark.slow
def test_two_pages_get_their_own_clips_and_a_job_can_be_cancelled(server: Server, tmp_path: Path):
    with ThreadPoolExecutor(THREADS) as threads:
        done = list(threads.map(lambda number: do_request(server, number, tmp_path), range(len(KINDS))))
    assert tuple(done) == KINDS
    page = Page(server.url)
    page.start("sample-start", **{"sample-num-inference-steps": 100})
    cancelled, last = False, ""
    for message in page.messages():
        last = str(message)
        if "step" in last and not cancelled:
            cancelled = True
            page.start("sample-cancel")
    assert cancelled
    assert "Cancelled." in last
