"""Check whether a config fits a TPU and what limits its speed, without a TPU and without weights.

    python scripts/compile_tpu.py --config configs/sd14/stage2_motion.yaml --topology v5e:4x4
    python scripts/compile_tpu.py sample --config configs/sd14/sample.yaml --topology v5e:4x4
    python scripts/compile_tpu.py edit --config configs/sd14/edit_shape.yaml --topology v5e:2x2

Compiles the training step of the config, or the programs of sampling, with the TPU compiler. Prints for one
chip: HBM in use, hardware and model FLOPs, HBM traffic, collectives, and the roofline's lower bound of the
time. For an edit it also prints the HBM of its step beside that of a sampling step, and what is kept of an
inversion. Exit status 1: the config does not fit; the message says what to try.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.training.config import TrainConfig

KINDS: dict[str, type] = {"train": TrainConfig, "sample": SampleConfig, "edit": EditConfig}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", default="train", help="train (default), sample or edit")
    add("overrides", nargs="*", metavar="a.b=c", help="config fields to override")
    add(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="a config of the same command",
    )
    add("--topology", default="v5e:4x4", help="CHIP:SHAPE (%(default)s), or `here`: this machine's devices")
    add("--clips-per-chip", type=int, metavar="N", help="train: sets data.batch_size for N clips per chip")
    add("--baseline", action="store_true", help="also compile a plain implementation, to compare with")
    add("--save", type=Path, metavar="FILE", help="save the programs, for aot_path=FILE of the same config")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    args = parser.parse_intermixed_args(argv)
    if args.what not in KINDS:
        args.what, args.overrides = "train", [args.what, *args.overrides]
    if args.clips_per_chip is not None and args.what != "train":
        raise UserError(f"--clips-per-chip is for training; {args.what} makes one clip")
    if args.clips_per_chip is not None and args.clips_per_chip < 1:
        raise UserError(f"--clips-per-chip {args.clips_per_chip} must be at least 1")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    # A config needs prompts and a clip; no program depends on them.
    needed = {"sample": ["prompt=[any]"], "edit": ["prompt=[any]", "source=any", "video=any"]}
    overrides = [*needed.get(args.what, []), *args.overrides]
    config: Any = load_config(KINDS[args.what], args.config, overrides)
    config.check()
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.tpu.compile_check import compile_check
    from fyp_jax.tpu.edit_report import edit_figures, edit_lines
    from fyp_jax.tpu.program_stats import OutOfMemory
    from fyp_jax.tpu.report import as_json, out_of_memory_message, table
    from fyp_jax.tpu.topologies import topology_devices

    chip, devices = topology_devices(args.topology)
    options = {"clips_per_chip": args.clips_per_chip, "baseline": args.baseline, "save": args.save}
    try:
        result = compile_check(config, devices, **options)
    except OutOfMemory as error:
        print(out_of_memory_message(error, config))
        sys.exit(1)
    print(f"{args.config} on {args.topology}, {result.chips} of {len(devices)} chips")
    print("\n".join(table(result.variants, chip)))
    figures = as_json(result, chip, args.what, args.topology)
    if isinstance(config, EditConfig):
        figures["edit"] = edit_figures(config, result.variants["config"].programs)
        print("\n".join(edit_lines(config, figures["edit"])))
    if args.json:
        with wrap_write_errors(args.json):
            args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_console(main)
