"""Train a stage: python train.py --config configs/sd14/stage1_pose.yaml data.path=records [a.b=c ...].

On several hosts, the same command on each. The same command again goes on where the run was stopped.
"""

import logging
import sys

from fyp_jax.config import load_config, make_parser
from fyp_jax.errors import run_cli
from fyp_jax.training.config import TrainConfig


def parse(argv: list[str]) -> TrainConfig:
    parser = make_parser(TrainConfig, __doc__)
    args = parser.parse_intermixed_args(argv)
    if args.config is None:
        parser.error("which stage of which model? give --config FILE; configs/ has some")
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    return config


def main() -> None:
    config = parse(sys.argv[1:])
    from fyp_jax.kept import (
        enable_compilation_cache,  # after the arguments are known to be good: it takes seconds
    )
    from fyp_jax.training.loop import train

    enable_compilation_cache()
    train(config)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
