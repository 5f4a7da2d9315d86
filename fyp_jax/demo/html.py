"""Pieces of the page: progress, messages, clips. All texts are escaped."""

import html
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fyp_jax.demo.jobs import State, Status

DOWNLOADS = {"mp4": "Video", "gif": "GIF", "png": "Grid of frames", "json": "Record"}


class Shown(NamedTuple):
    """A clip with the addresses of its files by suffix."""

    title: str
    urls: Mapping[str, str]


def progress(status: Status) -> str:
    """How far a job is, and about how long it will still take."""
    if status.state is State.WAITING:
        jobs = "1 job is" if status.ahead == 1 else f"{status.ahead} jobs are"
        return _box("waiting", f"{jobs} before yours." if status.ahead else "Starting.")
    what = f"{status.what}: " if status.what else ""
    if not status.total:
        return _box("running", f"{what}preparing")
    text = f"{what}step {status.done} of {status.total}"
    if status.done >= status.total:
        text += ", writing the files"
    elif status.done == 0:
        text += " (the first clip of a size also compiles)"
    elif status.seconds_left is not None:
        text += f", about {duration(status.seconds_left)} left"
    bar = f'<progress max="{status.total}" value="{status.done}" aria-label="progress"></progress>'
    return _box("running", text, bar)


def duration(seconds: float | int) -> str:
    """A rounded time, such as "4 s" or "2 min"."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def error(message: str) -> str:
    """The one line of an error."""
    return f'<div class="fyp-status fyp-error" role="alert">error: {html.escape(message)}</div>'


def cancelled() -> str:
    return _box("cancelled", "Cancelled.")


def done(notes: Iterable[str] = ()) -> str:
    """The end of a job, with the warnings of its run."""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return _box("done", "Done.", f"<ul>{items}</ul>" if items else "")


def result(clip: Shown) -> str:
    """The clip as a video that repeats, and links that save its files."""
    mp4 = html.escape(clip.urls["mp4"])
    links = "".join(
        f'<a href="{html.escape(clip.urls[suffix])}" download>{name}</a>'
        for suffix, name in DOWNLOADS.items()
    )
    title = html.escape(clip.title)
    return (
        f'<figure class="fyp-clip"><video src="{mp4}" controls autoplay loop muted playsinline></video>'
        f'<figcaption>{title}</figcaption><nav class="fyp-links" aria-label="files of the clip">{links}</nav>'
        "</figure>"
    )


def gallery(clips: Iterable[Shown]) -> str:
    """All clips of the page, the newest first."""
    items = "".join(
        f'<li><a href="{html.escape(clip.urls["mp4"])}" target="_blank"><img src='
        f'"{html.escape(clip.urls["gif"])}" alt="{html.escape(clip.title)}"></a>'
        f"<span>{html.escape(clip.title)}</span></li>"
        for clip in reversed(list(clips))
    )
    return f'<ul class="fyp-gallery">{items}</ul>' if items else _box("empty", "Your clips will be here.")


def preview(gif: str, png: str, num_frames: int) -> str:
    """Frames before anything is sampled: moving, and side by side."""
    return (
        f'<figure class="fyp-preview"><img src="{html.escape(gif)}" alt="the frames in motion">'
        f'<img class="fyp-grid" src="{html.escape(png)}" alt="{num_frames} frames side by side"></figure>'
    )


def no_preview(text: str) -> str:
    return _box("empty", text)


def _box(kind: str, text: str, more: str = "") -> str:
    return f'<div class="fyp-status fyp-{kind}" role="status">{html.escape(text)}{more}</div>'
