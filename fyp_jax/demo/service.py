"""What the buttons of a page do: previews of poses, clips and edits, made by one loaded pipeline."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.demo.jobs import Job, JobQueue
from fyp_jax.demo.limits import KEYPOINTS, VIDEOS, Limits
from fyp_jax.demo.sessions import Clip, Session
from fyp_jax.demo.values import CLIP_SLOT, POSE_SLOT, PosedConfig, edit_values, sample_values
from fyp_jax.media.images import Frames, image_grid
from fyp_jax.media.writing import write_gif, write_png
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.edit_files import EditingRun, read_edit_source, read_edited_clip
from fyp_jax.pipeline.files import SampleRun
from fyp_jax.pipeline.film_poses import FilmOptions, frames_needed, with_poses_of_film
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pose.loading import load_configured_pose

SUFFIXES = {POSE_SLOT: (*VIDEOS, *KEYPOINTS), CLIP_SLOT: VIDEOS}
"""Kinds of files that an input takes."""


class Preview(NamedTuple):
    """Frames before anything is sampled: as a GIF that moves, and all of them in a picture."""

    gif: Path
    png: Path
    num_frames: int


class ClipService:
    """Makes the jobs of a page, for the queue that runs them."""

    def __init__(
        self,
        pipeline: FollowYourPosePipeline,
        sample: SampleConfig,
        edit: EditConfig,
        film: FilmOptions | None = None,
        limits: Limits | None = None,
        queue: JobQueue | None = None,
    ):
        """`sample` and `edit` are the configs from which the inputs start. `film` says how poses are found in
        films; without it films are not offered."""
        self.pipeline, self.sample_config, self.edit_config = pipeline, sample, edit
        self.film, self.limits, self.queue = film, limits or Limits(), queue or JobQueue()

    def take_upload(self, session: Session, slot: str, file: Path) -> Path:
        """Keep an upload for this input of the page. Raises UserError for a file that it does not take."""
        self.limits.check_upload(file, SUFFIXES[slot])
        return session.take_upload(slot, file)

    def pose_preview(self, session: Session, values: Mapping[str, Any]) -> Preview | None:
        """The skeletons that a clip would follow; None for no pose. Raises UserError."""
        posed = self._posed({**values, "prompt": "preview"}, session)
        return self._preview(session, POSE_SLOT, self._poses(posed, None)[1], posed.config.fps)

    def clip_preview(self, session: Session, values: Mapping[str, Any]) -> Preview | None:
        """The frames that an edit would change. Raises UserError."""
        config = edit_values(
            self.edit_config, {**values, "source": "preview", "prompt": "preview"}, session, self.limits
        )
        return self._preview(session, CLIP_SLOT, read_edited_clip(config), config.fps)

    def film_preview(self, session: Session, values: Mapping[str, Any]) -> Job:
        """A job that finds the poses of a film, with a `Preview` as its result. Raises UserError."""
        posed = self._posed({**values, "prompt": "preview"}, session)

        def work(job: Job) -> Preview | None:
            return self._preview(session, POSE_SLOT, self._poses(posed, job)[1], posed.config.fps)

        return self._submit(session, work)

    def sample(self, session: Session, values: Mapping[str, Any]) -> Job:
        """A job that makes a clip, with a `Clip` as its result. Raises UserError."""
        posed = self._posed(values, session)

        def work(job: Job) -> Clip:
            config, poses = self._poses(posed, job)
            run = SampleRun.prepare(config, self.pipeline, poses)
            return self._write(session, run, f"{config.prompt[0]} (seed {config.seed})", job)

        return self._submit(session, work)

    def edit(self, session: Session, values: Mapping[str, Any]) -> Job:
        """A job that edits a clip, with a `Clip` as its result. Raises UserError."""
        config = edit_values(self.edit_config, values, session, self.limits)

        def work(job: Job) -> Clip:
            run = EditingRun.prepare(config, self.pipeline, read_edit_source(config))
            return self._write(session, run, f"{config.source} → {config.prompt[0]}", job)

        return self._submit(session, work)

    def cancel(self, session: Session) -> None:
        """Cancel the session's job, if it has one."""
        if session.job is not None:
            self.queue.cancel(session.job)

    def _posed(self, values: Mapping[str, Any], session: Session) -> PosedConfig:
        return sample_values(self.sample_config, values, session, self.limits)

    def _submit(self, session: Session, work: Callable[[Job], Any]) -> Job:
        session.hold_uploads()
        job = self.queue.submit(session.key, work, session.job_ended)
        session.job = job
        return job

    def _poses(self, posed: PosedConfig, job: Job | None) -> tuple[SampleConfig, Frames | None]:
        config = posed.config
        if posed.film is not None and self.film is not None and job is not None:
            job.start_count(frames_needed(config), "looking for people")
            config = with_poses_of_film(config, posed.film, self.film, job.update, job.notes.append)
        poses = load_configured_pose(config.pose, config.num_frames, config.height, config.width)
        return config, poses

    def _write(self, session: Session, run: SampleRun | EditingRun, title: str, job: Job) -> Clip:
        job.start_count(run.total)
        try:
            (mp4,) = run.clips(job)
        except BaseException:  # cancelled, mostly
            if run.folder is not None:
                shutil.rmtree(run.folder, ignore_errors=True)
            raise
        record = mp4.with_suffix(".json")
        record.write_text(without_folder(record.read_text(), session.folder))
        return session.add_clip(mp4, title)

    def _preview(self, session: Session, slot: str, frames: Frames | None, fps: float) -> Preview | None:
        if frames is None:
            return None
        folder = session.new_folder(slot)
        gif, png = folder / "preview.gif", folder / "preview.png"
        write_gif(gif, frames, fps)
        write_png(png, image_grid([frames]))
        return Preview(gif, png, len(frames))


def without_folder(text: str, folder: Path) -> str:
    """A text in which the files of a private folder have their names alone."""

    def name(found: re.Match[str]) -> str:
        path = Path(found[0])
        return "." if path == folder else path.name

    return re.sub(re.escape(str(folder)) + r"(/[^\s/:\"']*)*", name, text)
