"""What a run of scripts/edit.py leaves behind: as sample.py's, with a sheet of source, reconstruction and
edit."""

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fyp_jax.config import save_config
from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.plan import make_plan
from fyp_jax.editing.prompt_options import options_of_prompt
from fyp_jax.errors import UserError, printable
from fyp_jax.media.clips import bundled_clip, find_clip, read_clip
from fyp_jax.media.images import frames_crc32, image_grid
from fyp_jax.media.writing import write_png
from fyp_jax.models.pose_encoder import DOWNSCALE
from fyp_jax.parallel.cluster import initialize
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.editing import EditOutput, check_inversion, tokenize_prompt
from fyp_jax.pipeline.files import Bar, new_run_folder, write_clip
from fyp_jax.pipeline.output import Frames
from fyp_jax.pipeline.params import sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.styles import warn_of_unused_tokens
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.loading import load_configured_pose, pose_record
from fyp_jax.versions import versions

log = logging.getLogger(__name__)


def edit_to_files(config: EditConfig) -> Iterator[Path]:
    """Make the edits of a config, one for each prompt, in a new folder below `config.output_dir`.

    Yields the mp4 of each edit when its files are written. Raises UserError as its parts do; what can be
    checked is checked before the first step.
    """
    initialize(config.mesh)
    if jax.process_count() > 1:
        raise UserError("an edit runs in one process: start it on one host, with the devices of that host")
    source = read_edit_source(config)
    run = EditingRun.prepare(config, FollowYourPosePipeline.from_config(config), source)
    with tqdm(total=run.total, unit="step") as bar, logging_redirect_tqdm():
        yield from run.clips(bar)


class EditSource(NamedTuple):
    """What an edit is made of, read from the files of its config."""

    clip: Frames | None
    poses: tuple[Frames | None, Frames | None]
    """The pose of the clip, and the one that the edit follows."""


def read_edit_source(config: EditConfig) -> EditSource:
    """Read the clip and the poses of a config. Raises UserError."""
    size = config.num_frames, config.height, config.width
    first = load_configured_pose(_with_bundled(config.source_pose), *size)
    return EditSource(read_edited_clip(config), (first, load_configured_pose(config.pose, *size)))


def _with_bundled(pose: PoseConfig) -> PoseConfig:
    """The pose with the file of a bundled clip's keypoints, where it names that clip."""
    bundled = None if pose.path is None else bundled_clip(pose.path, ".json")
    return pose if bundled is None else dataclasses.replace(pose, path=str(bundled))


class EditingRun(NamedTuple):
    """The edits of a config that are about to be made, by a pipeline that is loaded."""

    config: EditConfig
    pipeline: FollowYourPosePipeline
    source: EditSource
    inversion: Inversion | None
    """The inversion of the clip, where a file had it."""
    record: dict[str, Any]
    folder: Path

    @classmethod
    def prepare(
        cls, config: EditConfig, pipeline: FollowYourPosePipeline, source: EditSource
    ) -> "EditingRun":
        """Check the config against the pipeline, and make the run's folder with config.yaml.

        Nothing is edited yet, and a mistake leaves no folder. Raises UserError.
        """
        config = _with_whole_paths(config)
        pipeline.programs.check(sampling_params(config), whole=True)
        _check_prompts(config, pipeline)
        inversion = None
        if config.inversion is not None and Path(config.inversion).exists():
            inversion = _read_inversion(config, pipeline, source)
        elif source.clip is None and config.edit.method != "generate":
            raise UserError(f"{config.inversion}: no such file, and there is no video to make it from")
        warn_of_unused_tokens(
            pipeline.programs.encoders, [config.source, *config.prompt, config.negative_prompt]
        )
        _warn_of_other_frames(config, pipeline.weights)
        folder = new_run_folder(Path(config.output_dir))
        save_config(config, folder / "config.yaml")
        record = {
            "source_pose": pose_record(_with_bundled(config.source_pose), source.poses[0]),
            "pose": pose_record(config.pose, source.poses[1]),
            "weights": pipeline.weights,
            "versions": versions(),
            "config": dataclasses.asdict(config),
        }
        return cls(config, pipeline, source, inversion, record, folder)

    @property
    def total(self) -> int:
        """Number of steps of inversion, reconstruction and all edits."""
        invert = self.source.clip is not None and self.inversion is None
        edits = len(self.config.prompt) + (self.config.edit.method != "generate")
        return self.config.num_inference_steps * (invert + edits * (1 + self.config.edit.null_text))

    def clips(self, bar: Bar) -> Iterator[Path]:
        """Make the edits, and yield the mp4 of each when its files are written.

        `bar.update` is called after each step; what it raises ends the run. Raises UserError.
        """
        config, clip, poses = self.config, self.source.clip, self.source.poses
        inversion, reconstruction = self.inversion, None
        if clip is not None and inversion is None:
            inversion = self._invert(clip, bar)
        if inversion is not None:
            reconstruction = self._reconstruct(inversion, bar)
        targets = [tokenize_prompt(self.pipeline.programs.encoders, prompt) for prompt in config.prompt]
        for number, prompt in enumerate(config.prompt):
            bar.set_description(printable(prompt[:32]))
            # Prompts are edited one by one, and each has words of its own.
            edit = options_of_prompt(config.edit, targets, number)
            args = inversion, config.source, prompt, edit, sampling_params(config)
            output = self.pipeline.edit(*args, source_pose=poses[0], pose=poses[1], on_step=bar.update)
            own = {"prompt": prompt, "source": config.source, "seed": config.seed}
            path = write_clip(self.folder, number, prompt, output, config.fps, own | self.record)
            write_png(path.with_suffix(".png"), sheet(output, clip, reconstruction))
            yield path

    def _invert(self, clip: Frames, bar: Bar) -> Inversion:
        """The inversion of the clip, written to the file of the config if it names one."""
        config = self.config
        bar.set_description("inversion")
        sampling = dataclasses.replace(sampling_params(config), guidance_scale=1.0)
        options = {"trajectory": True, "map_level": config.edit.map_level, "on_step": bar.update}
        pose = self.source.poses[0]
        inversion: Any = self.pipeline.invert(clip, config.source, sampling, pose=pose, **options)
        if config.inversion is not None:
            inversion.save(config.inversion)
        return inversion

    def _reconstruct(self, inversion: Inversion, bar: Bar) -> Frames:
        """The edit into the source prompt itself, which shows what the method alone loses of the clip."""
        config = self.config
        bar.set_description("reconstruction")
        words = config.edit.blend_words[:1]
        plain = {"controller": "auto", "equalizer": [], "word_replace_steps": [], "blend_words": words}
        edit = dataclasses.replace(config.edit, **plain)
        args = inversion, config.source, config.source, edit, sampling_params(config)
        return self.pipeline.edit(*args, source_pose=self.source.poses[0], on_step=bar.update).frames


def sheet(output: EditOutput, clip: Frames | None, reconstruction: Frames | None) -> np.ndarray:
    """A grid with the rows source, reconstruction, edit, and the mask of the blend words where there is one.

    A source that was generated is its own reconstruction, and makes one row.
    """
    source = output.source if clip is None else clip
    rows = [source, *([] if reconstruction is None else [reconstruction]), output.frames]
    if output.mask is not None:
        grey = (255 * output.mask[..., None]).astype(np.uint8).repeat(3, axis=-1)
        rows.append(grey.repeat(DOWNSCALE, axis=1).repeat(DOWNSCALE, axis=2))
    return image_grid(rows)


def read_edited_clip(config: EditConfig) -> Frames | None:
    """The frames of the clip that a config edits; None where it names none. Raises UserError."""
    if config.video is None:
        return None
    return read_clip(
        find_clip(config.video),
        num_frames=config.num_frames,
        stride=config.video_stride,
        start=config.video_start,
        height=config.height,
        width=config.width,
    )


def _check_prompts(config: EditConfig, pipeline: FollowYourPosePipeline) -> None:
    """Raise UserError for prompts that do not fit the options, before the first step runs."""
    encoders, levels = pipeline.programs.encoders, len(pipeline.programs.unet.config.block_out_channels)
    source, *targets = (tokenize_prompt(encoders, text) for text in (config.source, *config.prompt))
    make_plan(config.edit, source, targets, config.num_inference_steps, levels, encoders.spec.tokens)


def _warn_of_other_frames(config: EditConfig, weights: dict[str, Any]) -> None:
    """Warn where the weights were tuned on one clip, of which other frames were taken than those to edit."""
    tuned = weights.get("provenance", {}).get("clip", {})
    own = {"stride": config.video_stride, "start": config.video_start}
    if config.video is not None and any(tuned.get(name, value) != value for name, value in own.items()):
        log.warning(
            "the weights were tuned on every frame %(start)d + %(stride)d i of a clip; "
            "video_start=%(start)d video_stride=%(stride)d edits these",
            {name: tuned.get(name, value) for name, value in own.items()},
        )


def _read_inversion(config: EditConfig, pipeline: FollowYourPosePipeline, source: EditSource) -> Inversion:
    """The inversion that a config names. Raises UserError where it is not that of the config's clip, prompt,
    steps, pose, size and weights."""
    file = str(config.inversion)
    inversion = Inversion.load(file)
    if source.clip is not None and inversion.made_for.get("clip") != frames_crc32(source.clip):
        raise UserError(
            f"{file}: is the inversion of another clip than {config.video}, or of other frames of it; "
            "give another inversion=FILE, or video=null"
        )
    expected = pipeline.programs.latent_shape(config.num_frames, config.height, config.width)[1:]
    if inversion.latents.shape[1:] != expected:
        raise UserError(
            f"{file}: latents [f h w c] of {list(inversion.latents.shape[1:])}, but this model's are "
            f"{list(expected)} for num_frames={config.num_frames} height={config.height} width={config.width}"
        )
    tokens = tokenize_prompt(pipeline.programs.encoders, config.source)
    editor = pipeline.editor(sampling_params(config))
    check_inversion(editor, inversion, tokens, config.edit, source.poses[0], file)
    return inversion


def _with_whole_paths(config: EditConfig) -> EditConfig:
    """The config with whole paths of its files, so that the run can be repeated from another folder. Bundled
    clips and poses have none."""

    def whole(path: str | None) -> str | None:
        return str(Path(path).absolute()) if path is not None and Path(path).exists() else path

    poses = {
        name: dataclasses.replace(pose, path=whole(pose.path))
        for name, pose in (("source_pose", config.source_pose), ("pose", config.pose))
    }
    inversion = None if config.inversion is None else str(Path(config.inversion).absolute())
    return dataclasses.replace(config, video=whole(config.video), inversion=inversion, **poses)
