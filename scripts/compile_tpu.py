"""Does it fit, and what limits it? python scripts/compile_tpu.py [sample] --config FILE --topology v5e:4x4

Compiles the training step of a config, or its sampler, with the TPU compiler, which needs no TPU and no
weights, and says what each chip will hold, compute and move. Exit status 1: it does not fit.
"""

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

from fyp_jax.config import SampleConfig, load_config
from fyp_jax.errors import run_cli, wrap_write_errors
from fyp_jax.training.config import TrainConfig


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="train", help="train (default) or sample")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="any config field")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="of train.py or sample.py")
    parser.add_argument("--topology", default="v5e:4x4", help="CHIP:SHAPE, or `here`: this machine's devices")
    parser.add_argument("--clips-per-chip", type=int, metavar="N", help="training: data.batch_size for it")
    parser.add_argument("--plain", action="store_true", help="beside it, the same written the plain way")
    parser.add_argument("--save", type=Path, metavar="FILE", help="for compiled=FILE of train.py, sample.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    args = parser.parse_intermixed_args(argv)
    if args.what not in ("train", "sample"):
        args.what, args.overrides = "train", [args.what, *args.overrides]
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    kind = TrainConfig if args.what == "train" else SampleConfig
    prompt = ["prompt=[any]"] if args.what == "sample" else []  # no text changes a program
    config: Any = load_config(kind, args.config, [*prompt, *args.overrides])
    config.check()
    from fyp_jax.tpu.check import check  # after the arguments are known to be good: it takes seconds
    from fyp_jax.tpu.chips import topology_devices
    from fyp_jax.tpu.measure import OverMemory
    from fyp_jax.tpu.report import as_json, over_memory, table

    chip, devices = topology_devices(args.topology)
    options = {"clips_per_chip": args.clips_per_chip, "plain": args.plain, "save": args.save}
    try:
        found = check(config, devices, **options, say=functools.partial(print, file=sys.stderr))
    except OverMemory as error:
        print(over_memory(error, config))
        sys.exit(1)
    print(f"{args.config} on {args.topology}, {found.chips} of {len(devices)} chips")
    print("\n".join(table(found.columns, chip)))
    if args.json:
        with wrap_write_errors(args.json):
            args.json.write_text(json.dumps(as_json(found.columns, chip), indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(run_cli(main))
