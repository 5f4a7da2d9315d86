"""The training loop: data, step, log, checkpoints, and what ends it. One loop for every stage."""

import contextlib
import dataclasses
import functools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Int32

from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.compiled import load_programs
from fyp_jax.config import config_lines, save_config
from fyp_jax.data.config import DataConfig
from fyp_jax.data.datasets import open_records
from fyp_jax.data.example_source import RecordSource
from fyp_jax.data.loader import Loader
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.mesh import (
    check_divisible,
    make_mesh,
    process_batch_range,
    shard_batch,
    shard_params,
    shard_stop_signal,
)
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import start
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.losses import Models
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import Stage, stage
from fyp_jax.training.state import TrainState, init_state
from fyp_jax.training.step import configured_step, train_step_fingerprint
from fyp_jax.training.validation import Validation
from fyp_jax.types import Batch

log = logging.getLogger(__name__)

CONTINUE, PREEMPTED, NO_DATA = 0, 1, 2
"""Votes of a process; the largest of all is what all of them do, after the same step."""

MAX_NONFINITE_STEPS = 10
"""Steps in a row without a finite gradient that end a run."""


def train(config: TrainConfig) -> None:
    """Train to `config.steps`, from where the folder `config.out` stands.

    Ends early, with a checkpoint, when the process is asked to end (SIGTERM). Raises UserError as the parts
    do, and where ten gradients in a row are not finite.
    """
    initialize(config.mesh)
    mesh = make_mesh(config.mesh)
    check_divisible(config.data.batch_size, config.data.num_frames, mesh)
    rows = process_batch_range(config.data.batch_size, mesh)
    this_stage = stage(config.stage)
    records = _open(config, this_stage)
    networks, state, models, provenance = _begin(config, this_stage, mesh)
    tokenize, with_pose = functools.partial(_tokenize, networks.frozen), this_stage.uses_pose
    with (
        Loader(records, config.data, tokenize, config.seed, rows, with_pose=with_pose) as loader,
        BatchFeeder(loader, config.data, rows, mesh, tokenize, with_pose).handle_sigterm() as feed,
        TrainingCheckpoints(config.checkpoint_folder, config.checkpoint.keep) as checkpoints,
    ):
        saved = checkpoints.restore(mutable_state(state))
        if saved is not None:
            state = state._replace(**saved.train)
            loader.restore(saved.data)
        first, is_first = int(state.step), jax.process_index() == 0
        if first >= config.steps:
            log.warning("%s: all of its %d steps are done", config.out, config.steps)
            return
        if is_first:
            save_config(config, Path(config.out) / "config.yaml")
        about = {
            "unet": networks.unet.config.to_json(),
            "provenance": provenance,
            "train": dataclasses.asdict(config),
        }

        def save(done: int, state: TrainState, loss: float) -> None:
            changing, inference = mutable_state(state), _inference(state, models)
            data = feed.state()
            checkpoints.save(done, train=changing, inference=inference, data=data, config=about, loss=loss)

        with TrainingLog(Path(config.out), first, config.steps - 1, config.log, is_first) as training_log:
            training_log.text("config", "\n".join(config_lines(config)))
            done = _run(config, networks, state, mesh, feed, save, training_log)
    if done < config.steps:
        log.warning("asked to end: step %d is saved, and the same command goes on from there", done)


def _begin(
    config: TrainConfig, this_stage: Stage, mesh: Mesh
) -> tuple[Models, TrainState, tuple[str, ...], dict[str, Any]]:
    """Models, the state of step 0 on the mesh, the names of what a checkpoint holds, and where it is from.

    No copy of the weights stays on the host.
    """
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    networks, trainable, frozen, models, provenance = start(config, this_stage, frame_axis)
    optimizer = make_optimizer(config.optimizer, config.steps)
    placed = shard_params(trainable, mesh), shard_params(frozen, mesh)
    state = init_state(*placed, optimizer, config.optimizer.ema is not None, mesh)
    return networks, state, models, provenance


def _run(
    config: TrainConfig,
    networks: Models,
    state: TrainState,
    mesh: Mesh,
    feed: "BatchFeeder",
    save: Callable[[int, TrainState, float], None],
    training_log: TrainingLog,
) -> int:
    """The steps that are done when it ends: all of them, or those until the run was asked to end."""
    if config.compiled is None:
        step = configured_step(config, networks, mesh, state)
    else:
        fingerprint = train_step_fingerprint(config, networks, mesh)
        step = load_programs(config.compiled, fingerprint, list(mesh.devices.flatten()))["step"]
    validation = Validation(config, networks, mesh) if config.validation.every else None
    reader = MetricsReader(training_log, config.data.batch_size)
    for number in range(int(state.step), config.steps):
        batch, votes, waited = feed.next()
        state, metrics = step(state, batch, votes)
        reader.read()  # of the step before, while the devices are at this one
        reader.unread = number, metrics, waited
        done = number + 1
        looks = validation is not None and _due(done, config.validation.every, config.steps)
        saves = _due(done, config.checkpoint.every, config.steps)
        if looks or saves or reader.vote == PREEMPTED:
            reader.read()  # of this step too: nothing is saved that was learned without data
        if reader.vote == NO_DATA:
            raise feed.no_data or UserError("the run ends: another process has no data to go on with")
        if (
            looks and validation is not None and reader.vote == CONTINUE
        ):  # who is asked to end has little time
            validation.look(done, state, training_log)
        if saves or reader.vote == PREEMPTED:
            save(done, state, reader.mean_loss())
        if reader.vote == PREEMPTED:
            return done
    return config.steps


def _due(done: int, every: int, steps: int) -> bool:
    return done % every == 0 or done == steps


class MetricsReader:
    """Brings a step's metrics to the host and tells of them; ends a run that does not learn any more."""

    def __init__(self, training_log: TrainingLog, batch_size: int):
        self._log, self._batch_size = training_log, batch_size
        self._losses: list[float] = []
        self._read_at = time.perf_counter()
        self.vote = CONTINUE
        self.unread: tuple[int, Mapping[str, Any], float] | None = None
        """Of the last step, until it is read: number, metrics on the devices, seconds of waiting for data."""

    def read(self) -> None:
        """Wait for the step that is not read yet, if there is one."""
        if self.unread is None:
            return
        number, on_devices, waited = self.unread
        self.unread = None
        metrics = jax.tree.map(np.asarray, dict(on_devices))
        now = time.perf_counter()
        quarters = zip(metrics["loss_quarters"], metrics["clips_in_quarters"], strict=True)
        told = {
            **{name: float(metrics[name]) for name in ("loss", "grad_norm", "param_norm", "lr", "skipped")},
            **{f"loss_quarter_{i}": float(x) if n else math.nan for i, (x, n) in enumerate(quarters)},
            "step_time": now - self._read_at,
            "data_wait": waited,
            "clips": self._batch_size,
        }
        self._read_at = now
        self.vote = int(metrics["vote"])
        self._log.step(number, told)
        if math.isfinite(told["loss"]):
            self._losses.append(told["loss"])
        if int(metrics["skipped_in_row"]) >= MAX_NONFINITE_STEPS:
            raise UserError(
                f"step {number}: the gradient was not finite {MAX_NONFINITE_STEPS} times in a row (loss "
                f"{told['loss']}); a lower optimizer.lr or dtype=float32 may help on from the last checkpoint"
            )

    def mean_loss(self) -> float:
        """Of the steps since the last call, infinite where none was finite."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else math.inf


class BatchFeeder:
    """Global batches on the mesh, and with each what this process votes for."""

    def __init__(
        self,
        loader: Loader,
        config: DataConfig,
        rows: range,
        mesh: Mesh,
        tokenize: Callable[[str], Int32[np.ndarray, " l"]],
        with_pose: bool,
    ):
        self._loader, self._config, self._rows, self._mesh = loader, config, rows, mesh
        self._with_pose = with_pose
        self._blank_ids = tokenize("")
        self._asked_to_end = False
        self._last: Batch | None = None
        self.no_data: UserError | None = None
        """Why this process has no more batches."""

    def next(self) -> tuple[Batch, jax.Array, float]:
        """A batch, the votes of all devices of this process, and the seconds that it took.

        A process without data takes part in one more step with its last batch, since the others wait for it,
        and votes to end the run. Raises UserError where there are no others.
        """
        began = time.perf_counter()
        try:
            self._last = next(self._loader)
        except UserError as error:
            if jax.process_count() == 1:
                raise
            self.no_data = error
        batch = self._blank() if self._last is None else self._last
        placed = shard_batch(batch, self._rows, self._config.batch_size, self._mesh)
        vote = NO_DATA if self.no_data else PREEMPTED if self._asked_to_end else CONTINUE
        return placed, shard_stop_signal(vote, self._mesh), time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """Where the data stands behind the last batch."""
        return dict(self._loader.state())

    @contextlib.contextmanager
    def handle_sigterm(self) -> Iterator["BatchFeeder"]:
        """SIGTERM, by which clouds announce that they take a machine, is a vote and no sudden end."""

        def ask(*_: object) -> None:
            self._asked_to_end = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)

    def _blank(self) -> Batch:
        config, clips = self._config, len(self._rows)
        video = np.zeros((clips, config.num_frames, config.height, config.width, 3), np.float32)
        return Batch(video, np.stack([self._blank_ids] * clips), video if self._with_pose else None)


def _open(config: TrainConfig, this_stage: Stage) -> RecordSource:
    records = open_records(config.data.path)
    if records.kind != this_stage.dataset:
        raise UserError(
            f"{config.data.path}: holds {records.kind}, but the {this_stage.name} stage learns from "
            f"{this_stage.dataset}"
        )
    return records


def _tokenize(frozen: LatentEncoders, caption: str) -> Int32[np.ndarray, " l"]:
    return frozen.tokenize(caption)[0][0]


def mutable_state(state: TrainState) -> dict[str, Any]:
    """The part of a state that steps change; None cannot be saved, so a missing average is left out."""
    fields = state._asdict()
    return {name: x for name, x in fields.items() if name != "frozen" and x is not None}


def _inference(state: TrainState, models: tuple[str, ...]) -> dict[str, Any]:
    """What sampling reads beside a pipeline folder, averaged where the run averages."""
    params = unflatten_dict(state.averaged() | state.frozen, sep="/")
    return {name: params[name] for name in models}
