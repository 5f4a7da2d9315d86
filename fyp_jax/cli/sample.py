"""Make clips from prompts and a pose sequence (or none): python sample.py --pose FILE --prompt TEXT."""

import argparse
import dataclasses
import logging
import re
import sys

from tqdm import tqdm

from fyp_jax.cli.film_arguments import add_film_arguments, check_film_arguments
from fyp_jax.config import load_config, make_parser
from fyp_jax.errors import run_cli
from fyp_jax.pipeline.config import SampleConfig

DEFAULT_CONFIG = "configs/mini/sample.yaml"
OVERRIDE = re.compile(r"[a-z_]+([.][a-z_]+)*=.*", re.DOTALL)


def parse(argv: list[str]) -> SampleConfig:
    """The config of a command line. Raises UserError."""
    return parse_arguments(argv)[0]


def parse_arguments(argv: list[str]) -> tuple[SampleConfig, argparse.Namespace]:
    """The config of a command line, and its options, of which those of `--pose-from` are in no config."""
    parser = make_parser(SampleConfig, __doc__, DEFAULT_CONFIG)
    parser.add_argument("--pose", metavar="FILE", help="same as pose.path=FILE")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="texts; each makes one clip")
    parser.add_argument("--out", metavar="DIR", help="same as output_dir=DIR")
    parser.add_argument("--seed", metavar="N", help="same as seed=N")
    add_film_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    # argparse gives --prompt all words that follow it, a.b=c among them.
    prompts = [text for text in args.prompt or [] if not OVERRIDE.fullmatch(text)]
    overrides = args.overrides + [text for text in args.prompt or [] if OVERRIDE.fullmatch(text)]
    flags = {"pose.path": args.pose, "output_dir": args.out, "seed": args.seed}
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    check_film_arguments(args, overrides)
    config = load_config(SampleConfig, args.config, overrides)
    config = dataclasses.replace(config, prompt=prompts) if args.prompt else config
    config.check()
    return config, args


def main() -> None:
    """Run sample.py on the arguments of this process. Raises UserError."""
    config, args = parse_arguments(sys.argv[1:])
    if args.pose_from is not None:
        from fyp_jax.cli.pose_from_film import with_poses_of_film

        config = with_poses_of_film(config, args)
    if config.random_init:
        print("The weights are random: this clip shows that everything runs, not what a trained model makes.")
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.pipeline.files import sample_to_files

    enable_compilation_cache()
    for clip in sample_to_files(config):
        tqdm.write(str(clip))


def console() -> None:
    """The command fyp-sample, and sample.py."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
