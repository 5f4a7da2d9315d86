"""The clips of a prompt file: batches over the devices of one process or of several. What is done is kept.

A clip is NUMBER.mp4 and so on, with its number in the prompt file. Its record says what it was made of, so
that the same command, started again, makes what is missing and nothing else.
"""

import dataclasses
import functools
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fyp_jax.errors import UserError, printable
from fyp_jax.media.images import frames_crc32
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.clip_batches import BatchSampler, ClipRequest, shape_of
from fyp_jax.pipeline.clip_store import ClipFolder, ClipTars, open_store
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.output import Frames, PipelineOutput
from fyp_jax.pipeline.params import SAMPLING_FIELDS, sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.prompt_files import PromptLine
from fyp_jax.pipeline.sampling_mesh import batch_devices, check_batch_mesh
from fyp_jax.pipeline.styles import style_lines, warn_of_unused_tokens
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.loading import load_configured_pose, pose_record
from fyp_jax.trees import list_names
from fyp_jax.versions import versions

log = logging.getLogger(__name__)

SHUTDOWN_S = 7 * 24 * 3600
"""How long a process that has made its clips waits for the others."""
NO_DIFFERENCE = ("decode_chunk_size",)
"""Fields of SamplingParams that change no clip."""
CACHED_POSES = 32
MADE_OF = "made_of"
"""Field of a record: all that the clip depends on."""


class ManyClips(NamedTuple):
    """How the clips of a prompt file are made and kept."""

    form: str = "folder"
    """One of CLIP_FORMATS."""
    per_device_batch_size: int = 1
    """Clips that a device makes at a time."""
    overwrite: bool = False
    """Make a clip again that is there, but was made of something else."""


def cluster_config(config: SampleConfig) -> SampleConfig:
    """The config of each clip of a prompt file: a device makes the whole clip. Raises UserError as
    `check_batch_mesh`, and for options that are for single clips."""
    check_batch_mesh(config.mesh)
    for name in ("invert", "aot_path"):
        if (value := getattr(config, name)) is not None:
            raise UserError(f"{name}={value}: is for single clips, and not for --prompts; leave one out")
    config = dataclasses.replace(config, mesh=MeshConfig(data=1))
    dataclasses.replace(config, prompt=["each has its own"]).check()
    return config


def make_clips(lines: Sequence[PromptLine], config: SampleConfig, options: ManyClips) -> Iterator[Path]:
    """Make the clips of a prompt file that are not in `config.output_dir` yet.

    Yields where each clip is as soon as it is written: its mp4, or its tar. Of several processes each makes
    clips of its own. A clip is left as it is where its record says the same (`_made_of`). It is made again
    where its files are missing or damaged. Where the record says something else, it is refused, or made again
    with `overwrite`. A clip that is refused or fails does not stop the others: UserError at the end names
    those.
    """
    initialize(config.mesh, SHUTDOWN_S)
    devices = batch_devices(config.mesh)
    run = _Run(lines, config, options, jax.process_index(), jax.process_count())
    try:
        with tqdm(total=len(run.own), unit="clip") as bar, logging_redirect_tqdm():
            pipeline = FollowYourPosePipeline.from_config(cluster_config(config))
            bar.update(len(run.own) - len(todo := run.missing(pipeline)))
            sampler = BatchSampler(pipeline, devices) if todo else None
            del pipeline  # the sampler has weights of its own on each device
            for group in _by_shape(todo):
                per_device = min(options.per_device_batch_size, -(-len(group) // len(devices)))
                size = per_device * len(devices)
                for batch in (group[i : i + size] for i in range(0, len(group), size)):
                    assert sampler is not None
                    outputs = sampler([_request(line) for line in batch], per_device)
                    for line, output in zip(batch, outputs, strict=True):
                        if (path := run.keep(line, output)) is not None:
                            yield path
                        bar.update()
    finally:
        run.store.close()
    if jax.process_count() > 1:
        jax.distributed.shutdown()  # process 0 has to stay until the last one is done
    run.raise_failures()


class _Run:
    """The clips of one process, and what became of them."""

    def __init__(
        self,
        lines: Sequence[PromptLine],
        config: SampleConfig,
        options: ManyClips,
        process: int,
        processes: int,
    ):
        self.config, self.options = config, options
        # Each shape is dealt out in turn, whatever is done already, so that all processes deal the same.
        groups = _by_shape(lines)
        self.own = [line for group in groups for line in group[process::processes]]
        self.store: ClipFolder | ClipTars = open_store(
            options.form, Path(config.output_dir), process, processes
        )
        self._failed: dict[str, UserError] = {}
        self._made_of: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, Any] = {}
        self._lines = {_name(line): line for line in lines}

    def missing(self, pipeline: FollowYourPosePipeline) -> list[PromptLine]:
        """The clips of this process that have to be made. Raises UserError where all are of other weights."""
        self._weights = pipeline.weights
        if jax.process_index() == 0:
            _say_styles(pipeline, list(self._lines.values()))
        records, todo = self.store.records(), []
        made_with = {
            str((record.get(MADE_OF) or {}).get("weights"))
            for name, record in records.items()
            if name in self._lines
        }
        if (
            len(made_with) == 1
            and made_with != {str(pipeline.weights["crc32"])}
            and not self.options.overwrite
        ):
            raise UserError(
                f"{self.store.folder}: its clips are of other weights; give another --out, or "
                "--overwrite to make them again"
            )
        if jax.process_index() == 0 and (extra := sorted(set(records) - set(self._lines))):
            log.warning(
                "%s: also holds clips that the file does not ask for: %s",
                self.store.folder,
                list_names(extra),
            )
        for line in self.own:
            name = _name(line)
            try:
                pipeline.programs.check(sampling_params(line.config))
                self._made_of[name] = _made_of(line.config, pipeline)
                if name in records and not self.options.overwrite:
                    _check_same(records[name].get(MADE_OF), self._made_of[name], self.store.folder / name)
                if name not in records or records[name].get(MADE_OF) != self._made_of[name]:
                    todo.append(line)
            except UserError as error:
                self._fail(line, error)
        return todo

    def keep(self, line: PromptLine, output: PipelineOutput) -> Path | None:
        """Write a clip; None where that fails."""
        name, config = _name(line), line.config
        record = {
            "prompt": config.prompt[0],
            "seed": config.seed,
            "line": line.where,
            "pose": pose_record(config.pose, output.pose_images),
            MADE_OF: self._made_of[name],
            "weights": self._weights,
            "versions": versions(),
            "config": dataclasses.asdict(config),
        }
        try:
            if not np.isfinite(output.latents).all():
                raise UserError("its latents are not finite: the model or its options do not work")
            return self.store.add(name, output, config.fps, record)
        except UserError as error:
            self._fail(line, error)
            return None

    def raise_failures(self) -> None:
        """Raise UserError where a clip of this process was refused or failed."""
        if self._failed:
            names = list_names(list(self._failed))
            raise UserError(f"{len(self._failed)} of {len(self.own)} clips failed, see above: {names}")

    def _fail(self, line: PromptLine, error: UserError) -> None:
        self._failed[_name(line)] = error
        tqdm.write(printable(f"failed: {line.where}: {error}"), file=sys.stderr)


def _name(line: PromptLine) -> str:
    return f"{line.number:05d}"


def _by_shape(lines: Sequence[PromptLine]) -> list[list[PromptLine]]:
    """Clips of one shape together, in the order of the file."""
    groups: dict[Any, list[PromptLine]] = {}
    for line in lines:
        groups.setdefault(_shape(line.config), []).append(line)
    return list(groups.values())


def _shape(config: SampleConfig) -> Any:
    return shape_of(sampling_params(config), config.pose.path is not None)


def _request(line: PromptLine) -> ClipRequest:
    return ClipRequest(line.config.prompt[0], _pose(line.config), sampling_params(line.config))


def _pose(config: SampleConfig) -> Frames | None:
    pose = dataclasses.astuple(config.pose)
    return _load_pose(pose, config.num_frames, config.height, config.width)


@functools.lru_cache(CACHED_POSES)
def _load_pose(pose: tuple[Any, ...], num_frames: int, height: int, width: int) -> Frames | None:
    return load_configured_pose(PoseConfig(*pose), num_frames, height, width)


def _made_of(config: SampleConfig, pipeline: FollowYourPosePipeline) -> dict[str, Any]:
    """All that a clip depends on, as JSON gives it back. Raises UserError where the pose cannot be read."""
    images, texts = _pose(config), (config.prompt[0], config.negative_prompt)
    encode = pipeline.programs.encoders.tokenize
    return {
        "prompt": config.prompt[0],
        "tokens": [zlib.crc32(np.ascontiguousarray(encode(text)[0]).data) for text in texts],
        **{name: getattr(config, name) for name in SAMPLING_FIELDS if name not in NO_DIFFERENCE},
        "window": pipeline.programs.window(config),
        "fps": config.fps,
        "dtype": config.dtype,
        "pose": None if images is None else frames_crc32(images),
        "weights": pipeline.weights["crc32"],
        "schedule": repr(pipeline.programs.schedule),
    }


def _check_same(found: Any, wanted: dict[str, Any], clip: Path) -> None:
    """Raise UserError where a clip that is there was made of something else."""
    found = found if isinstance(found, dict) else {}
    other = [name for name, value in wanted.items() if found.get(name) != value]
    if other:
        seen = found.get(other[0])
        raise UserError(
            f"{clip}: is there with {other[0]}={seen!r}, not {wanted[other[0]]!r}; --overwrite makes it "
            "again, or give another --out"
        )


def _say_styles(pipeline: FollowYourPosePipeline, lines: Sequence[PromptLine]) -> None:
    if found := style_lines(pipeline.weights):
        tqdm.write(printable("\n".join(found)), file=sys.stderr)
    texts = {text for line in lines for text in (*line.config.prompt, line.config.negative_prompt)}
    warn_of_unused_tokens(pipeline.programs.encoders, sorted(texts))
