"""The training loop: data, step, log, checkpoints, and what ends a run. One loop for every stage."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Int32

from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.compilation_cache import load_or_compile
from fyp_jax.config import config_lines, save_config
from fyp_jax.data.config import ONE_CLIP
from fyp_jax.data.datasets import open_records
from fyp_jax.data.example_source import RecordSource
from fyp_jax.data.latents import LatentSource, open_latents
from fyp_jax.data.loader import Loader
from fyp_jax.data.one_clip import OneClipSource, open_one_clip
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.mesh import check_divisible, make_mesh, process_batch_range, shard_params
from fyp_jax.pipeline.params import trained_frames
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.feeder import CONTINUE, NO_DATA, PREEMPTED, BatchFeeder
from fyp_jax.training.init import frozen_in_steps, initialize_weights
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.losses import Models
from fyp_jax.training.metrics_reader import MetricsReader
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.run_lock import lock_run
from fyp_jax.training.stages import Stage, check_kind, get_stage
from fyp_jax.training.state import TrainState, init_state
from fyp_jax.training.step import Step, configured_step, train_step_fingerprint
from fyp_jax.training.validation import Validation

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train until step `config.num_train_steps`, from the newest checkpoint of the run if there is one.

    SIGTERM ends the run early, with a checkpoint. Raises UserError as the parts do, where ten gradients in a
    row are not finite, and where another training writes into the same folder.
    """
    initialize(config.mesh)
    first = jax.process_index() == 0
    with lock_run(Path(config.output_dir)) if first else contextlib.nullcontext():
        _train(config)


def _train(config: TrainConfig) -> None:
    mesh = make_mesh(config.mesh)
    check_divisible(config.data.batch_size, config.data.num_frames, mesh)
    rows = process_batch_range(config.data.batch_size, mesh)
    stage = get_stage(config.stage)
    records = _open_records(config, stage)
    models, state, saved_models, provenance = _initial_state(config, stage, mesh, records)
    tokenize, with_pose = functools.partial(_tokenize, models.encoders), stage.uses_pose
    with (
        Loader(records, config.data, tokenize, config.seed, rows, with_pose=with_pose) as loader,
        BatchFeeder(loader, config.data, rows, mesh).handle_sigterm() as feeder,
        TrainingCheckpoints(
            config.checkpoint_folder, config.checkpoint.max_to_keep, config.checkpoint.verify
        ) as checkpoints,
    ):
        restored = checkpoints.restore(mutable_state(state))
        if restored is not None:
            state = state._replace(**restored.train)
            loader.restore(restored.data)
        first, is_first_process = int(state.step), jax.process_index() == 0
        if first >= config.num_train_steps:
            log.warning("%s: all of its %d steps are done", config.output_dir, config.num_train_steps)
            return
        if is_first_process:
            save_config(config, Path(config.output_dir) / "config.yaml")
        about = {
            "unet": models.unet.config.to_json(),
            "provenance": provenance,
            "train": dataclasses.asdict(config),
        }

        def save(done: int, state: TrainState, loss: float) -> None:
            checkpoints.save(
                done,
                train=mutable_state(state),
                inference=_inference_params(state, saved_models),
                data=feeder.state(),
                config=about,
                loss=loss,
            )

        with TrainingLog(
            Path(config.output_dir), first, config.num_train_steps - 1, config.log, is_first_process
        ) as training_log:
            training_log.text("config", "\n".join(config_lines(config)))
            validation = None
            if config.validation.sample_interval:
                clip = records.frames if isinstance(records, OneClipSource) else None
                validation = Validation(config, models, mesh, trained_frames(provenance), clip)
            done = _run_steps(
                *(config, models, state, mesh, feeder, save, checkpoints.between_steps),
                *(training_log, validation),
            )
    if done < config.num_train_steps:
        log.warning("SIGTERM: saved step %d; run the same command to resume", done)


def mutable_state(state: TrainState) -> dict[str, Any]:
    """The part of a state that steps change. A missing moving average is left out, as None cannot be
    saved."""
    fields = state._asdict()
    return {name: x for name, x in fields.items() if name != "frozen" and x is not None}


def _initial_state(
    config: TrainConfig, stage: Stage, mesh: Mesh, records: RecordSource
) -> tuple[Models, TrainState, tuple[str, ...], dict[str, Any]]:
    """Models, the state of step 0 on the mesh, names of the models that a checkpoint holds, and their
    provenance.

    No copy of the weights stays on the host.
    """
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    begin = initialize_weights(config, stage, frame_axis)
    models, trainable, frozen, saved_models, provenance, checksums = begin
    del begin  # it would keep weights on the host
    if isinstance(records, LatentSource) and checksums is not None:
        records.check_encoders(checksums)
    frozen = frozen_in_steps(config, frozen, saved_models)
    optimizer = make_optimizer(config.optimizer, config.num_train_steps)
    placed = shard_params(trainable, mesh), shard_params(frozen, mesh)
    state = init_state(*placed, optimizer, config.optimizer.ema_decay is not None, mesh)
    return models, state, saved_models, provenance


def _run_steps(
    config: TrainConfig,
    models: Models,
    state: TrainState,
    mesh: Mesh,
    feeder: BatchFeeder,
    save: Callable[[int, TrainState, float], None],
    between_steps: Callable[[], None],
    training_log: TrainingLog,
    validation: Validation | None,
) -> int:
    """Run the remaining steps. Gives the number of steps that are done: all, or fewer after SIGTERM."""
    step = _load_step(config, models, mesh, state)
    reader = MetricsReader(training_log, config.data.batch_size)
    for index in range(int(state.step), config.num_train_steps):
        batch, stop_signals, waited = feeder.next()
        state, metrics = step(state, batch, stop_signals)
        between_steps()
        reader.read()  # the step before, while the devices compute this one
        reader.unread = index, metrics, waited
        done = index + 1
        samples = validation is not None and _is_due(done, config.validation.sample_interval, config)
        saves = _is_due(done, config.checkpoint.save_interval, config)
        if samples or saves or reader.stop_signal == PREEMPTED:
            reader.read()  # this step too, so that no step without data is saved
        if reader.stop_signal == NO_DATA:
            raise feeder.no_data or UserError("the run ends: another process has no more data")
        if (
            samples and validation is not None and reader.stop_signal == CONTINUE
        ):  # after SIGTERM time is short
            validation.run(done, state, training_log)
        if saves or reader.stop_signal == PREEMPTED:
            save(done, state, reader.mean_loss())
        if reader.stop_signal == PREEMPTED:
            return done
    return config.num_train_steps


def _load_step(config: TrainConfig, models: Models, mesh: Mesh, state: TrainState) -> Step:
    """The step of the file `aot_path`, or one that is compiled at its first call."""
    fingerprint, devices = train_step_fingerprint(config, models, mesh), list(mesh.devices.flatten())
    programs = load_or_compile("train_step", fingerprint, devices, aot_path=config.aot_path)
    return programs["step"] if programs else configured_step(config, models, mesh, state)


def _is_due(done: int, interval: int, config: TrainConfig) -> bool:
    return done % interval == 0 or done == config.num_train_steps


def _open_records(config: TrainConfig, stage: Stage) -> RecordSource:
    if stage.dataset == ONE_CLIP:
        return open_one_clip(config.data)
    records = (open_latents if config.data.cached_latents else open_records)(config.data.source)
    check_kind(records.kind, stage, config.data.source)
    return records


def _tokenize(encoders: LatentEncoders, caption: str) -> Int32[np.ndarray, " l"]:
    return encoders.tokenize(caption)[0][0]


def _inference_params(state: TrainState, saved_models: tuple[str, ...]) -> dict[str, Any]:
    """The parameters that sampling reads from a checkpoint, averaged where the run averages."""
    params = unflatten_dict(state.sampling_params() | state.frozen, sep="/")
    return {name: params[name] for name in saved_models}
