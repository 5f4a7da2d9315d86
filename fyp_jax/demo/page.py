"""The page itself, in gradio: inputs, buttons, and what they show."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from fyp_jax.demo import html
from fyp_jax.demo.inputs import EditInputs, SampleInputs
from fyp_jax.demo.jobs import Job, State
from fyp_jax.demo.service import ClipService, Preview, without_folder
from fyp_jax.demo.sessions import Clip, Session, Sessions
from fyp_jax.demo.values import CLIP_SLOT, FILM, NO_POSE, POSE_SLOT
from fyp_jax.errors import UserError, error_line

TITLE = "Follow Your Pose"
POLL_S = 0.2
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
"""Options of all events: the page shows progress by itself, and jobs have a queue of their own."""
PREVIEWS: dict[str, Any] = {**PRIVATE, "concurrency_limit": 2, "concurrency_id": "previews"}

IDLE = gr.update(interactive=True), gr.update(visible=False)
BUSY = gr.update(interactive=False), gr.update(visible=True)
"""States of the button that starts a job, and of the one that cancels it."""


class Page:
    """Builds the page, and connects its buttons with the service."""

    def __init__(self, service: ClipService, sessions: Sessions, about: str):
        """`about` is Markdown under the title: which model this is, and what it can draw."""
        self.service, self.sessions, self.about = service, sessions, about

    def build(self) -> gr.Blocks:
        """The page, which `server.serve` serves."""
        with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
            gr.Markdown(f"# {TITLE}\n{self.about}")
            with gr.Tabs():
                with gr.Tab("New clip"), gr.Row():
                    self._sample_tab()
                with gr.Tab("Edit a clip"), gr.Row():
                    self._edit_tab()
            gr.Markdown("## Clips of this page")
            self.gallery = gr.HTML(html.gallery(()), elem_id="gallery")
            gr.Markdown("Uploads and clips are removed from the server when this page is closed or reloaded.")
            self._connect(blocks)
        return blocks

    def _sample_tab(self) -> None:
        with gr.Column():
            self.sample = SampleInputs.build(self.service)
        with gr.Column():
            self.sample_view = _View.build("Make the clip", "Show the skeletons", "sample")

    def _edit_tab(self) -> None:
        with gr.Column():
            self.edit = EditInputs.build(self.service)
        with gr.Column():
            self.edit_view = _View.build("Edit the clip", "Show the clip", "edit")

    def _connect(self, blocks: gr.Blocks) -> None:
        for inputs, view, slot, start, preview in (
            (self.sample, self.sample_view, POSE_SLOT, self.service.sample, self._pose_preview),
            (self.edit, self.edit_view, CLIP_SLOT, self.service.edit, self._clip_preview),
        ):
            components = list(inputs.components.values())
            names = list(inputs.components)
            results = [view.status, view.start, view.cancel, view.result, self.gallery]
            view.start.click(self._job(names, start), components, results, **PRIVATE)
            view.cancel.click(self._cancel, None, None, queue=False, **PRIVATE)
            shown = [view.preview, view.status, view.start, view.cancel]
            at_once, on_request = self._preview(names, preview, False), self._preview(names, preview, True)
            view.show.click(on_request, components, shown, **PREVIEWS)
            view_again = {"fn": at_once, "inputs": components, "outputs": shown, **PREVIEWS}
            blocks.load(**view_again)
            for component in inputs.shape_preview:
                event = component.change if isinstance(component, gr.Radio) else component.blur
                event(**view_again)
            upload = inputs.upload
            taken = upload.upload(self._upload(slot), [upload], [upload, view.preview], **PRIVATE)
            taken.success(**view_again)
            upload.clear(self._drop(slot), None, [view.preview], **PRIVATE)
        blocks.unload(self._closed)

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(request.session_hash or "")

    def _closed(self, request: gr.Request) -> None:
        self.sessions.close(request.session_hash or "")

    def _cancel(self, request: gr.Request) -> None:
        self.service.cancel(self._session(request))

    def _line(self, error: UserError) -> str:
        """The line of an error, without the server's folders."""
        return html.error(without_folder(error_line(error), self.sessions.root))

    def _job(self, names: Sequence[str], start: Callable[[Session, Mapping[str, Any]], Job]) -> Any:
        async def events(request: gr.Request, *values: Any) -> AsyncIterator[tuple]:
            """Status, the two buttons, result and gallery, each time that they change."""
            session, same = None, (gr.skip(), gr.skip())
            try:
                session = self._session(request)
                job = await asyncio.to_thread(start, session, dict(zip(names, values, strict=True)))
            except UserError as error:
                yield self._line(error), *IDLE, *same
                return
            async for status in self._watch(job):
                yield status, *BUSY, *same
            shown = same
            if isinstance(job.result, Clip):
                clips = {id(clip): _shown(session, clip) for clip in session.clips}
                shown = html.result(clips[id(job.result)]), html.gallery(clips.values())
            yield self._end(job), *IDLE, *shown

        return events

    def _preview(self, names: Sequence[str], make: Callable[..., Any], on_request: bool) -> Any:
        async def events(request: gr.Request, *values: Any) -> AsyncIterator[tuple]:
            """Preview, status and the two buttons, each time that they change."""
            skip = gr.skip()
            try:
                session, fields = self._session(request), dict(zip(names, values, strict=True))
                made = await asyncio.to_thread(make, session, fields, on_request)
                if isinstance(made, Job):
                    async for status in self._watch(made):
                        yield skip, status, *BUSY
                    yield skip, self._end(made), *IDLE
                    made = made.result
                if isinstance(made, Preview):
                    urls = session.serve(made.gif), session.serve(made.png)
                    made = html.preview(*urls, made.num_frames)
                yield made or skip, skip, skip, skip
            except UserError as error:
                yield self._line(error), skip, skip, skip

        return events

    async def _watch(self, job: Job) -> AsyncIterator[str]:
        """The progress of a job each time that it changes. A job whose watcher goes away is cancelled."""
        last = None
        try:
            while not job.ended:
                text = html.progress(self.service.queue.status(job))
                if text != last:
                    yield text
                last = text
                await asyncio.sleep(POLL_S)
        finally:
            if not job.ended:
                self.service.queue.cancel(job)

    def _end(self, job: Job) -> str:
        root = self.sessions.root
        if job.state is State.CANCELLED:
            return html.cancelled()
        if job.state is State.FAILED:
            return html.error(without_folder(job.error, root))
        return html.done(without_folder(note, root) for note in job.notes)

    def _pose_preview(self, session: Session, values: Mapping[str, Any], on_request: bool) -> Any:
        if values["pose"] == NO_POSE:
            return html.no_preview("No pose: the clip is made from the text alone.")
        if values["pose"] != FILM:
            return self.service.pose_preview(session, values)
        if on_request:
            return self.service.film_preview(session, values)
        return html.no_preview("The skeletons of a film are found when you ask for them, or for the clip.")

    def _clip_preview(self, session: Session, values: Mapping[str, Any], on_request: bool) -> Any:
        return self.service.clip_preview(session, values)

    def _upload(self, slot: str) -> Any:
        def take(request: gr.Request, file: str | None) -> tuple[Any, Any]:
            try:
                session = self._session(request)
                session.drop_upload(slot)
                if file is not None:
                    self.service.take_upload(session, slot, Path(file))
            except UserError as error:
                return None, self._line(error)
            return gr.skip(), gr.skip()

        return take

    def _drop(self, slot: str) -> Any:
        def drop(request: gr.Request) -> str:
            with contextlib.suppress(UserError):
                self._session(request).drop_upload(slot)
            return html.no_preview("There is no file yet.")

        return drop


class _View:
    """The right-hand side of a tab: preview, buttons, progress and result."""

    def __init__(
        self, show: gr.Button, preview: gr.HTML, buttons: Sequence[gr.Button], boxes: Sequence[gr.HTML]
    ):
        self.show, self.preview = show, preview
        self.start, self.cancel = buttons
        self.status, self.result = boxes

    @classmethod
    def build(cls, start: str, show: str, name: str) -> "_View":
        preview = gr.HTML(html.no_preview("The preview will be here."), elem_id=f"{name}-preview")
        show_button = gr.Button(show, size="sm", elem_id=f"{name}-show")
        with gr.Row():
            start_button = gr.Button(start, variant="primary", elem_id=f"{name}-start")
            cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id=f"{name}-cancel")
        status = gr.HTML("", elem_id=f"{name}-status")
        result = gr.HTML("", elem_id=f"{name}-result")
        return cls(show_button, preview, (start_button, cancel), (status, result))


def _shown(session: Session, clip: Clip) -> html.Shown:
    return html.Shown(clip.title, {suffix: session.serve(file) for suffix, file in clip.files.items()})
