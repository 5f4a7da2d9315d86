"""Make clips from prompts and a pose sequence (or none): python sample.py --pose FILE --prompt TEXT."""

import dataclasses
import logging
import re
import sys
from pathlib import Path

from tqdm import tqdm

from fyp_jax.config import SampleConfig, load_config, make_parser
from fyp_jax.errors import run_cli

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "mini" / "sample.yaml"
OVERRIDE = re.compile(r"[a-z_]+([.][a-z_]+)*=.*", re.DOTALL)


def parse(argv: list[str]) -> SampleConfig:
    parser = make_parser(SampleConfig, __doc__, DEFAULT_CONFIG)
    parser.add_argument("--pose", metavar="FILE", help="as pose.path=FILE")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="one clip is made for each")
    parser.add_argument("--out", metavar="DIR", help="as out=DIR")
    parser.add_argument("--seed", metavar="N", help="as seed=N")
    args = parser.parse_intermixed_args(argv)
    # argparse gives all words behind --prompt to it, overrides among them.
    prompts = [text for text in args.prompt or [] if not OVERRIDE.fullmatch(text)]
    overrides = args.overrides + [text for text in args.prompt or [] if OVERRIDE.fullmatch(text)]
    flags = {"pose.path": args.pose, "out": args.out, "seed": args.seed}
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    config = load_config(SampleConfig, args.config, overrides)
    config = dataclasses.replace(config, prompt=prompts) if args.prompt else config
    config.check()
    return config


def main() -> None:
    config = parse(sys.argv[1:])
    if config.random_init:
        print("The weights are random: this clip shows that everything runs, not what a trained model makes.")
    from fyp_jax.kept import (
        enable_compilation_cache,  # after the arguments are known to be good: it takes seconds
    )
    from fyp_jax.pipeline.pipeline import sample_to_files

    enable_compilation_cache()
    for clip in sample_to_files(config):
        tqdm.write(str(clip))


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
