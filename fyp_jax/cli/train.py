"""Train a stage: python train.py --config configs/sd14/stage1_pose.yaml data.path=records/pose_images.

On several hosts, run the same command on each. A run that was stopped is resumed by the same command.
"""

import sys

from fyp_jax.config import load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.freed_memory import limit_arenas
from fyp_jax.training.config import TrainConfig


def parse(argv: list[str]) -> TrainConfig:
    parser = make_parser(TrainConfig, __doc__)
    args = parser.parse_intermixed_args(argv)
    if args.config is None:
        parser.error("give --config FILE, which names a stage and a model; configs/ has some")
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    return config


def main() -> None:
    """Run train.py on the arguments of this process. Raises UserError."""
    config = parse(sys.argv[1:])
    limit_arenas()
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.training.loop import train

    enable_compilation_cache()
    train(config)


def console() -> None:
    """The command fyp-train, and train.py."""
    run_console(main)
