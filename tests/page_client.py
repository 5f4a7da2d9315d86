"""The page as a process of its own, and a client that speaks to it as browsers do, without one."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

START_S = 180.0


class Server(NamedTuple):
    """A page that is up."""

    url: str
    process: subprocess.Popen[str]
    temporary: Path
    """The folder in which it keeps its files."""

    def files(self) -> list[Path]:
        """All files that the server has of its pages."""
        return [path for path in self.temporary.rglob("*") if path.is_file()]

    def pages(self) -> list[Path]:
        """The folders of the pages that are open."""
        return list(self.temporary.glob("fyp-demo-*/pages/*"))


@contextlib.contextmanager
def running(command: list[object], folder: Path) -> Iterator[Server]:
    """Run a command, in which PORT becomes a free port, until its page is up and the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [str(port) if word == "PORT" else str(word) for word in command]
    folder.mkdir(exist_ok=True)
    log = folder / "log.txt"
    temporary = folder / "tmp"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=subprocess.STDOUT, text=True, env=environment
        )
    try:
        end = time.monotonic() + START_S
        while "Open http" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, f"not up after {START_S} s: {log.read_text()}"
            time.sleep(0.1)
        yield Server(f"http://127.0.0.1:{port}", process, temporary)
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
        assert "Warning" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(60)


class Page:
    """One open page, by HTTP."""

    def __init__(self, url: str):
        self.url, self.session = url, secrets.token_hex(6)
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        config = self.http.get("/config").json()
        names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
        self._values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self._names = names
        self._events = {
            (names.get(target), kind): event
            for event in config["dependencies"]
            for target, kind in event["targets"]
        }

    def start(self, name: str, kind: str = "click", **changes: Any) -> None:
        """Trigger an event of a component, with the page's values but for the changes."""
        event = self._events[name, kind]
        inputs = [changes.get(self._names[part] or "", self._values.get(part)) for part in event["inputs"]]
        body = {"data": inputs, "fn_index": event["id"], "session_hash": self.session}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server sends to this page, until all of its events have ended."""
        query = {"session_hash": self.session}
        with self.http.stream("GET", "/gradio_api/queue/data", params=query) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def run(self, name: str, kind: str = "click", **changes: Any) -> list[Any]:
        """Trigger an event, and give the last values that it has sent for each of its outputs."""
        self.start(name, kind, **changes)
        for message in self.messages():
            if message["msg"] == "process_completed":
                assert message["success"], message
                return message["output"]["data"]
        raise AssertionError("the stream ended before the event")

    def upload(self, name: str, content: bytes) -> httpx.Response:
        return self.http.post("/gradio_api/upload", files={"files": (name, content)})
