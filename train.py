"""Train a stage: python train.py --config configs/sd14/stage1_pose.yaml data.path=records [a.b=c ...].

On several hosts, the same command on each. The same command again goes on where the run was stopped.
"""

import argparse
import logging
import sys
from pathlib import Path

from fyp_jax.config import describe, load_config
from fyp_jax.errors import exit_status
from fyp_jax.training.config import TrainConfig


def parse(argv: list[str]) -> TrainConfig:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="config fields, and what they are where the config file is silent:\n"
        + "\n".join(describe(TrainConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="any config field")
    args = parser.parse_intermixed_args(argv)
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    return config


def main() -> None:
    config = parse(sys.argv[1:])
    from fyp_jax.training.loop import train  # after the arguments are known to be good: it takes seconds

    train(config)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(exit_status(main))
