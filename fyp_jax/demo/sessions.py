"""What each open page has on the server: a private folder with its uploads and its clips.

The folder goes when the page is closed or reloaded, or after an hour without a job. Other pages cannot name
its files: their addresses hold a random token.
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fyp_jax.demo.jobs import Job
from fyp_jax.errors import UserError

IDLE_S = 3600.0
STRAY_S = 120.0
"""Age at which an upload that no page has taken is removed, such as a broken one."""
MOST_CLIPS = 12
"""Clips that a page keeps; the oldest goes first."""
MOST_SHOWN = 4
"""Folders of one place of a page that stay; the oldest goes first."""
MOST_SESSIONS = 200


class Clip:
    """A clip of a page: its four files in a folder of its own, and the words under it."""

    def __init__(self, mp4: Path, title: str):
        self.title, self.folder = title, mp4.parent
        self.files = {suffix: mp4.with_suffix(f".{suffix}") for suffix in ("mp4", "gif", "png", "json")}


class Session:
    """One open page."""

    def __init__(self, key: str, root: Path):
        self.key, self.token = key, secrets.token_hex(16)
        self.folder = root / self.token
        self.folder.mkdir(mode=0o700)
        self.uploads: dict[str, Path] = {}
        """The file that the page has chosen, by the name of its input."""
        self._held: set[Path] = set()
        """Folders of the uploads that the job may read."""
        self._dropped: list[Path] = []
        """Those of them that the page has replaced."""
        self.clips: list[Clip] = []
        self.job: Job | None = None
        self.closed = False
        self.used = time.monotonic()
        self._served: dict[str, Path] = {}
        self._shown: dict[str, list[Path]] = {}
        self._lock = threading.RLock()

    def take_upload(self, slot: str, source: Path) -> Path:
        """Keep an uploaded file as the one of this input, in place of the one before it."""
        with self._open():
            self.drop_upload(slot)
            folder = self.folder / "uploads" / secrets.token_hex(4)
            folder.mkdir(parents=True)
            file = folder / source.name
            try:
                # The upload itself stays where it is for now: another page may have sent the same bytes,
                # which have one name.
                os.link(source, file)
            except OSError:
                shutil.copyfile(source, file)
            self.uploads[slot] = file
            return file

    def drop_upload(self, slot: str) -> None:
        """Remove the file of this input, if there is one: now, or when the job that may read it has ended."""
        with self._lock:
            file = self.uploads.pop(slot, None)
            if file is not None and file.parent in self._held:
                self._dropped.append(file.parent)
            elif file is not None:
                shutil.rmtree(file.parent, ignore_errors=True)

    def hold_uploads(self) -> None:
        """Keep the files that the inputs have now until the job that is about to start has ended."""
        with self._lock:
            self._held |= {file.parent for file in self.uploads.values()}

    def _remove_dropped(self) -> None:
        for folder in self._dropped:
            shutil.rmtree(folder, ignore_errors=True)
        self._dropped.clear()
        self._held.clear()

    def new_folder(self, slot: str) -> Path:
        """A folder for what the page shows in one place. Of those before it the last ones stay for a while:
        a browser may still fetch what is in them."""
        with self._open():
            folder = self.folder / "shown" / secrets.token_hex(4)
            folder.mkdir(parents=True)
            shown = self._shown.setdefault(slot, [])
            shown.append(folder)
            while len(shown) > MOST_SHOWN:
                old = shown.pop(0)
                self._forget(old)
                shutil.rmtree(old, ignore_errors=True)
            return folder

    def add_clip(self, mp4: Path, title: str) -> Clip:
        """Add a clip of a run to those that the page shows."""
        with self._open():
            clip = Clip(mp4, title)
            self.clips.append(clip)
            while len(self.clips) > MOST_CLIPS:
                folder = self.clips.pop(0).folder
                self._forget(folder)
                shutil.rmtree(folder, ignore_errors=True)
            return clip

    def serve(self, file: Path) -> str:
        """The address of a file of this session."""
        with self._open():
            for name, path in self._served.items():
                if path == file:
                    return f"/clips/{self.token}/{name}"
            name = f"{secrets.token_hex(4)}-{file.name}"
            self._served[name] = file
            return f"/clips/{self.token}/{name}"

    def served(self, name: str) -> Path | None:
        return self._served.get(name)

    def close(self) -> None:
        """Remove all files: now, or when the job that still runs has ended."""
        with self._lock:
            self.closed = True
            if self.job is None or self.job.ended:
                self.remove()
            else:
                self.job.cancelled = True

    def job_ended(self) -> None:
        """Note that the session's job has ended, which may have written after the session was closed."""
        with self._lock:
            self.used = time.monotonic()
            self._remove_dropped()
            if self.closed:
                self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _forget(self, folder: Path) -> None:
        self._served = {name: path for name, path in self._served.items() if path.parent != folder}

    @contextlib.contextmanager
    def _open(self) -> Iterator[None]:
        """No file is written in here once the session is closed."""
        with self._lock:
            self.used = time.monotonic()
            if self.closed:
                raise UserError("this page was closed or left alone for too long: reload it")
            yield


class Sessions:
    """All open pages, in a folder that nobody else may enter."""

    def __init__(self, parent: Path | None = None):
        self.root = Path(tempfile.mkdtemp(prefix="fyp-demo-", dir=parent))  # mode 0700
        self.pages, self.uploads, self.incoming = (
            self.root / name for name in ("pages", "uploads", "incoming")
        )
        for folder in (self.pages, self.uploads, self.incoming):
            folder.mkdir(mode=0o700)
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def get(self, key: str) -> Session:
        """The session of a page. Raises UserError where too many pages are open."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None or session.closed:
                if len(self._sessions) >= MOST_SESSIONS:
                    raise UserError(f"{MOST_SESSIONS} pages are open: try again later")
                session = self._sessions[key] = Session(key, self.pages)
            session.used = time.monotonic()
            return session

    def find(self, token: str, name: str) -> Path | None:
        """A file by the two parts of its address; None where there is no such file."""
        with self._lock:
            sessions = [session for session in self._sessions.values() if not session.closed]
        for session in sessions:
            if secrets.compare_digest(session.token.encode(), token.encode()):
                return session.served(name)
        return None

    def __len__(self) -> int:
        return len(self._sessions)

    def close(self, key: str) -> None:
        """Close the session of a page, if it has one."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def sweep(self, idle_s: float = IDLE_S, stray_s: float = STRAY_S) -> None:
        """Close sessions that nobody has used for some time, and remove uploads that no page has taken."""
        now = time.monotonic()
        with self._lock:
            idle = [
                key
                for key, session in self._sessions.items()
                if now - session.used > idle_s and (session.job is None or session.job.ended)
            ]
        for key in idle:
            self.close(key)
        old = time.time() - stray_s
        for folder in (self.uploads, self.incoming):
            for path in sorted(folder.rglob("*"), reverse=True):  # a folder comes after what is in it
                with contextlib.suppress(OSError):  # gone already, or not empty
                    if (
                        path.stat().st_ctime < old
                    ):  # a page that takes a file links to it, which sets its ctime
                        path.rmdir() if path.is_dir() else path.unlink()

    def remove(self) -> None:
        """Remove all files of all sessions."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.close()
        shutil.rmtree(self.root, ignore_errors=True)
