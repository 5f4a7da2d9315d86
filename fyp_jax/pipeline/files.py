"""What a run of sample.py leaves behind: a folder of its own; for each clip an mp4, a GIF, an image grid, a
record."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fyp_jax.config import save_config
from fyp_jax.convert.style_specs import embedding_spec, lora_spec
from fyp_jax.errors import UserError, printable, reason
from fyp_jax.media.clips import find_clip
from fyp_jax.parallel.cluster import initialize
from fyp_jax.pipeline.clip_store import save_files
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.inversions import INVERSION_PROMPT, InvertedLatents, read_source, save_inversion
from fyp_jax.pipeline.output import Frames, PipelineOutput
from fyp_jax.pipeline.params import sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.styles import style_lines, warn_of_unused_tokens
from fyp_jax.pose.loading import load_configured_pose, pose_record
from fyp_jax.versions import versions

NAME_LENGTH = 48


@runtime_checkable
class Bar(Protocol):
    """What counts the steps of a run: tqdm, or the progress of a web page."""

    def set_description(self, desc: str, /) -> object: ...

    def update(self) -> object: ...


def sample_to_files(config: SampleConfig) -> Iterator[Path]:
    """Make the clips of a config, one for each prompt, in a new folder below `config.output_dir`.

    With `config.invert` all clips start from one inversion, which goes into inverted.npz if it was made now.
    Yields the mp4 of each clip when its four files are written. Raises UserError as its parts do. Of several
    processes the first one writes.
    """
    initialize(config.mesh)
    if config.invert is not None:
        find_clip(config.invert)  # a wrong name is told before seconds are spent on the weights
    poses = load_configured_pose(config.pose, config.num_frames, config.height, config.width)
    pipeline = FollowYourPosePipeline.from_config(config, use_cache=True)
    run = SampleRun.prepare(config, pipeline, poses)
    if jax.process_index() == 0 and (lines := style_lines(pipeline.weights)):
        tqdm.write(printable("\n".join(lines)), file=sys.stderr)
    with tqdm(total=run.total, unit="step") as bar, logging_redirect_tqdm():
        yield from run.clips(bar)


class SampleRun(NamedTuple):
    """The clips of a config that are about to be made, by a pipeline that is loaded."""

    config: SampleConfig
    pipeline: FollowYourPosePipeline
    poses: Frames | None
    source: InvertedLatents | Frames | None
    """What `config.invert` names."""
    record: dict[str, Any]
    folder: Path | None
    """The run's own folder; None in a process that writes nothing."""

    @classmethod
    def prepare(
        cls, config: SampleConfig, pipeline: FollowYourPosePipeline, poses: Frames | None
    ) -> "SampleRun":
        """Check the config against the pipeline, and make the run's folder with config.yaml.

        Nothing is sampled yet, and a mistake leaves no folder. Raises UserError.
        """
        pipeline.programs.check(config)
        source = read_source(config, pipeline)
        warn_of_unused_tokens(pipeline.programs.encoders, [*config.prompt, config.negative_prompt])
        folder = new_run_folder(Path(config.output_dir)) if jax.process_index() == 0 else None
        pose, followed = config.pose, pose_record(config.pose, poses)
        if followed is not None and pose.path is not None and Path(pose.path).exists():
            # config.yaml names files by their whole paths, so that the run can be repeated from another
            # folder; a bundled pose has none.
            pose = dataclasses.replace(pose, path=followed["file"])
        if folder is not None:
            styles = {
                "lora": [str(lora_spec(text)) for text in config.lora],
                "embedding": [str(embedding_spec(text)) for text in config.embedding],
            }
            invert = config.invert and str(find_clip(config.invert).absolute())
            save_config(
                dataclasses.replace(config, pose=pose, invert=invert, **styles), folder / "config.yaml"
            )
        record = {
            "pose": followed,
            "weights": pipeline.weights,
            "versions": versions(),
            "config": dataclasses.asdict(config),
        }
        return cls(config, pipeline, poses, source, record, folder)

    @property
    def total(self) -> int:
        """Number of steps of the inversion, if there is one, and of all clips."""
        return self.config.num_inference_steps * (
            len(self.config.prompt) + isinstance(self.source, np.ndarray)
        )

    def clips(self, bar: Bar) -> Iterator[Path]:
        """Make the clips, and yield the mp4 of each when its files are written.

        `bar.update` is called after each step; what it raises ends the run. Raises UserError.
        """
        config, folder, source = self.config, self.folder, self.source
        sampling = sampling_params(config)
        if isinstance(source, np.ndarray):
            bar.set_description("inversion")
            latents = self.pipeline.invert(source, INVERSION_PROMPT, sampling, on_step=bar.update)
            crc32, schedule = self.pipeline.weights.get("crc32"), repr(self.pipeline.programs.schedule)
            source = InvertedLatents(latents, config.num_inference_steps, crc32, schedule)
            if folder is not None:
                save_inversion(folder / "inverted.npz", source)
        latents = None if source is None else source.latents
        for number, prompt in enumerate(config.prompt):
            bar.set_description(printable(prompt[:32]))
            output = self.pipeline(prompt, self.poses, sampling, latents=latents, on_step=bar.update)
            if folder is not None:
                own = {"prompt": prompt, "seed": config.seed}
                yield write_clip(folder, number, prompt, output, config.fps, own | self.record)


def new_run_folder(output_dir: Path) -> Path:
    """Make the folder `output_dir/NNNN` with the next free number, so that no earlier run is ever
    overwritten."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in output_dir.iterdir() if path.name.isdigit()), default=-1)
        while True:
            folder = output_dir / f"{number:04d}"
            try:
                folder.mkdir()
            except FileExistsError:  # another run made it first
                number += 1
            else:
                return folder
    except OSError as error:
        raise UserError(
            f"{output_dir}: no folder can be made here ({error.strerror or reason(error)})"
        ) from error


def write_clip(
    folder: Path,
    number: int,
    prompt: str,
    output: PipelineOutput,
    fps: float,
    record: Mapping[str, Any],
) -> Path:
    """Write NUMBER-PROMPT.mp4, .gif, .png (a grid: skeletons, if any, above frames) and .json; gives the
    mp4."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:NAME_LENGTH].strip("-")
    stem = folder / (f"{number:02d}-{words}" if words else f"{number:02d}")
    return save_files(stem, output, fps, record)[".mp4"]
