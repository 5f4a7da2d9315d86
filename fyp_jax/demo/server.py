"""Serves a page: nothing but this machine, the sizes of uploads, and files that go when nobody needs them."""

import contextlib
import logging
import os
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fyp_jax.demo.service import ClipService
from fyp_jax.demo.sessions import MOST_SESSIONS, Sessions
from fyp_jax.errors import UserError

log = logging.getLogger(__name__)

SWEEP_S = 30.0
FORM_BYTES = 100_000
"""What the form around an upload may take."""
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
"""Browsers fetch nothing from other machines for this page, whatever gradio's files name."""


class Served(NamedTuple):
    """A page that is up."""

    url: str
    share_url: str | None
    sessions: Sessions


@contextlib.contextmanager
def serve(
    service: ClipService,
    about: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
) -> Iterator[Served]:
    """Serve the page of a service for as long as the block runs; afterwards all its files are gone.

    `about` is Markdown under the title. `share` makes a public address by gradio's servers. Raises UserError
    where the address cannot be used.
    """
    check_address(host, port)
    sessions = Sessions()
    before = tempfile.tempdir
    try:
        with _gradio_settings(sessions):
            # Gradio trips over a name that Starlette has since changed; it tells every user so.
            warnings.filterwarnings("ignore", message="'HTTP_422_UNPROCESSABLE_ENTITY' is deprecated")
            from fyp_jax.demo.page import Page  # gradio reads its settings when it is imported

            tempfile.tempdir = str(sessions.incoming)  # gradio puts uploads there while they come
            blocks = Page(service, sessions, about).build()
            blocks.queue(default_concurrency_limit=None, api_open=False)
            stop = threading.Event()
            sweeper = threading.Thread(target=_sweep, args=(sessions, stop), name="sweeper", daemon=True)
            sweeper.start()
            try:
                _, url, share_url = blocks.launch(**_launch_options(service, sessions, host, port, share))
                yield Served(url, share_url, sessions)
            finally:
                stop.set()
                blocks.close(verbose=False)
                service.queue.close()
    finally:
        tempfile.tempdir = before
        sessions.remove()


def check_address(host: str, port: int) -> None:
    """Raise UserError for an address that another program has, or that this machine does not have."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--host {host} --port {port}: {what}; give another --port") from error


def _launch_options(
    service: ClipService, sessions: Sessions, host: str, port: int, share: bool
) -> dict[str, Any]:
    from gradio import themes

    limit = service.limits.upload_mb * 1_000_000

    async def clip(request: Request) -> Response:
        file = sessions.find(request.path_params["token"], request.path_params["name"])
        if file is None or not file.is_file():
            return PlainTextResponse("there is no such file", 404)
        return FileResponse(file, headers={"cache-control": "private, no-store"})

    css = Path(str(resources.files("fyp_jax").joinpath("assets", "demo", "page.css"))).read_text()
    theme = themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="orange"
    )
    routes = [Route("/clips/{token}/{name}", clip)]
    return {
        "server_name": host,
        "server_port": port,
        "share": share,
        "quiet": True,
        "prevent_thread_lock": True,
        "max_file_size": limit,
        "enable_monitoring": False,
        "state_session_capacity": MOST_SESSIONS,
        "ssr_mode": False,
        "footer_links": [],
        "theme": theme,
        "css": css,
        "app_kwargs": {
            "routes": routes,
            "middleware": [Middleware(LocalOnly, most_bytes=limit + FORM_BYTES)],
            "docs_url": None,
            "redoc_url": None,
        },
    }


@contextlib.contextmanager
def _gradio_settings(sessions: Sessions) -> Iterator[None]:
    """Gradio reports nothing, and keeps its files with ours."""
    settings = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(sessions.uploads)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _sweep(sessions: Sessions, stop: threading.Event) -> None:
    while not stop.wait(SWEEP_S):
        try:
            sessions.sweep()
        except Exception:
            log.exception("old files could not be removed")


class LocalOnly:
    """Tells browsers to fetch nothing from elsewhere, and refuses requests that are too large."""

    def __init__(self, app: ASGIApp, most_bytes: int):
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = PlainTextResponse(f"This page takes {self.most_bytes // 1_000_000} MB at most.", 413)
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not length.isdigit() or int(length) > self.most_bytes:
            return await refusal(scope, receive, send)
        received, begun = 0, False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # Of a request that does not say its length.
            return message if received <= self.most_bytes else {"type": "http.disconnect"}

        async def with_policy(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = CONTENT_SECURITY_POLICY
                headers["referrer-policy"] = "no-referrer"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, counted, with_policy)
        except ClientDisconnect:  # in the middle of an upload
            if received > self.most_bytes and not begun:
                await refusal(scope, receive, send)
