"""Plan a training run: hours, loader cores, storage, and workers that prepare the data.

    python scripts/compile_tpu.py --config configs/sd14/stage2_motion.yaml --topology v5e:2x2 \\
        --clips-per-chip 1 --json step.json
    python scripts/benchmark.py data_rates --config configs/sd14/stage2_motion.yaml --json data.json
    python scripts/plan_run.py --config configs/sd14/stage2_motion.yaml --topology v5e:16x16 \\
        --step step.json --data data.json --clips 1e8

The step may have been compiled for fewer chips of the same kind: with as many clips a chip, each chip does
the same. The run sees as many clips as the config says (num_train_steps times data.batch_size), unless
--steps says otherwise. Give the same overrides as to the run itself. Hours are lower bounds.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from fyp_jax.config import load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.training.config import TrainConfig

BATCH_SIZE = "data.batch_size="


def parse(argv: list[str]) -> tuple[TrainConfig, argparse.Namespace]:
    parser = make_parser(TrainConfig, __doc__)
    add = parser.add_argument
    add("--topology", required=True, metavar="CHIP:SHAPE", help="the chips of the run, such as v5e:16x16")
    add("--step", type=Path, required=True, metavar="FILE", help="JSON of compile_tpu.py for this config")
    add("--data", type=Path, metavar="FILE", help="JSON of benchmark.py data_rates for this config")
    add("--clips-per-chip", type=int, metavar="N", help="clips of a chip in a step (default: as in --step)")
    add("--steps", type=int, metavar="N", help="steps of the run (default: as many clips as in the config)")
    add("--clips", type=_count, metavar="N", help="videos or images of the data set, such as 1e8")
    add("--host-cores", type=int, metavar="N", help="vCPUs of a host (default: as published, v5e and v5p)")
    add("--workers", type=int, default=1000, metavar="N", help="Beam workers of a core each (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the plan to FILE, too")
    args = parser.parse_intermixed_args(argv)
    if args.config is None:
        parser.error("give --config FILE, the config of the run")
    for name in ("clips_per_chip", "steps", "host_cores", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if args.clips is not None and args.data is None:
        raise UserError("--clips needs a data benchmark: give --data FILE, of benchmark.py data_rates --json")
    if args.clips_per_chip is not None and any(text.startswith(BATCH_SIZE) for text in args.overrides):
        raise UserError(f"--clips-per-chip and {BATCH_SIZE}N exclude each other: leave one out")
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    return config, args


def main() -> None:
    """Run plan_run.py on the arguments of this process. Raises UserError."""
    config, args = parse(sys.argv[1:])
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.tpu import run_plan

    plan = make_plan(config, args)
    print(f"{args.config} on {args.topology}\n")
    print("\n".join(run_plan.plan_lines(plan)))
    if args.json:
        with wrap_write_errors(args.json):
            args.json.write_text(json.dumps(run_plan.plan_json(plan), indent=1) + "\n", encoding="utf-8")


def make_plan(config: TrainConfig, args: argparse.Namespace) -> Any:
    """The plan (`run_plan.Plan`) of a config on the chips of `args`. Raises UserError."""
    from fyp_jax.parallel.mesh import check_divisible, make_mesh
    from fyp_jax.tpu import plan_inputs, run_plan
    from fyp_jax.tpu.run_state import run_state
    from fyp_jax.tpu.topologies import CHIPS, HERE, topology_devices
    from fyp_jax.training.stages import get_stage

    step = plan_inputs.read_step(args.step)
    data = None
    if args.data is not None:
        data = plan_inputs.read_data(args.data)
        plan_inputs.check_data(data, args.data, get_stage(config.stage).dataset, config.data)
    chip, devices = topology_devices(args.topology)
    if chip is None:
        raise UserError(
            f"--topology {HERE}: a plan needs published figures; give CHIP:SHAPE, such as v5e:16x16"
        )
    mesh = make_mesh(config.mesh, devices)
    axes = dict(mesh.shape)
    shards = axes["data"] * axes["fsdp"]
    if any(text.startswith(BATCH_SIZE) for text in args.overrides):
        batch_size = config.data.batch_size
    else:
        batch_size = (args.clips_per_chip or step.clips_per_shard) * shards
    check_divisible(batch_size, config.data.num_frames, mesh)
    state = run_state(config)
    plan_inputs.check_step(
        step, chip, axes, batch_size // shards, plan_inputs.comparable_fields(state.fields)
    )
    chips = len(devices) // CHIPS[chip.name].devices
    cores = args.host_cores or run_plan.published_cores(chip.name, chips)
    hosts = run_plan.hosts_of(chips, CHIPS[chip.name].devices, axes, batch_size, cores)
    clips = config.num_train_steps * config.data.batch_size
    training = run_plan.plan_training(
        step.seconds,
        chips=chips,
        batch_size=batch_size,
        steps=args.steps or math.ceil(clips / batch_size),
        hosts=hosts,
        data=data,
    )
    kept = config.checkpoint.max_to_keep + 1  # the one with the lowest loss stays, too
    storage = run_plan.plan_storage(state.checkpoint_bytes, kept, args.clips, data, state.latents)
    preparation = None
    if args.clips is not None and data is not None:
        preparation = run_plan.plan_preparation(args.clips, data, args.workers)
    return run_plan.Plan(training, storage, preparation, tuple(_notes(config, args, step, data, training)))


def _notes(config: TrainConfig, args: argparse.Namespace, step: Any, data: Any, training: Any) -> list[str]:
    notes = [f"The step is {args.step}, compiled for {step.topology}, {step.clips_per_shard} clips a chip."]
    if step.topology != args.topology:
        notes.append("Its figures are taken for each chip of the plan (weak scaling).")
    batch_size, cores = training.batch_size, training.cores_per_host
    if batch_size != config.data.batch_size:
        notes.append(
            f"The config says data.batch_size={config.data.batch_size}. Train with {BATCH_SIZE}{batch_size}, "
            "and choose the learning rate for that."
        )
    if data is not None:
        notes.append(f"The data benchmark is {args.data}, of {data.source}.")
    if cores is not None and config.data.workers < cores:
        notes.append(
            f"The config says data.workers={config.data.workers}, and the loader would bound the run. Train "
            f"with data.workers={math.ceil(cores)} or more."
        )
    return notes


def _count(text: str) -> float:
    """A number of items, such as 1e8."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return value


def console() -> None:
    """The command fyp-plan-run, and scripts/plan_run.py."""
    run_console(main)
