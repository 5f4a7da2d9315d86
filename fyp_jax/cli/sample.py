"""Make clips from prompts and a pose sequence (or none): python sample.py --pose FILE --prompt TEXT.

With invert=FILE they start from the inversion of a clip, without a pose unless --pose gives one.
"""

import argparse
import dataclasses
import difflib
import sys

from tqdm import tqdm

from fyp_jax.cli.film_arguments import add_film_arguments, check_film_arguments
from fyp_jax.config import help_lines, load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.errors import printable
from fyp_jax.pipeline.config import RANDOM_WEIGHTS, SampleConfig
from fyp_jax.pose.config import POSE_FORMS

DEFAULT_CONFIG = "configs/mini/sample.yaml"
NEAR_A_FIELD = 0.75
"""From this similarity on (difflib), a word of a=b after --prompt is a field that is spelled wrong, and not a
prompt."""


def parse(argv: list[str]) -> SampleConfig:
    """The config of a command line. Raises UserError."""
    return parse_arguments(argv)[0]


def parse_arguments(argv: list[str]) -> tuple[SampleConfig, argparse.Namespace]:
    """The config of a command line, and its options, of which those of `--pose-from` are in no config."""
    parser = make_parser(SampleConfig, __doc__, DEFAULT_CONFIG)
    add = parser.add_argument
    add("--pose", metavar="FILE", help=f"same as pose.path=FILE: {POSE_FORMS}")
    add("--prompt", nargs="+", action="extend", metavar="TEXT", help="texts; each makes one clip")
    add("--out", metavar="DIR", help="same as output_dir=DIR")
    add("--seed", metavar="N", help="same as seed=N")
    add_film_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    # argparse gives --prompt all words that follow it, a.b=c among them.
    words = args.prompt or []
    prompts = [text for text in words if not is_override(text)]
    overrides = args.overrides + [text for text in words if is_override(text)]
    flags = {"pose.path": args.pose, "output_dir": args.out, "seed": args.seed}
    overrides += [f"{key}={value}" for key, value in flags.items() if value is not None]
    keys = {text.partition("=")[0] for text in overrides}
    if "invert" in keys and "pose.path" not in keys and args.pose_from is None:
        overrides.append("pose.path=null")  # the inverted clip has a motion of its own
    check_film_arguments(args, overrides)
    config = load_config(SampleConfig, args.config, overrides)
    config = dataclasses.replace(config, prompt=prompts) if prompts else config
    config.check()
    return config, args


def is_override(text: str, kind: type = SampleConfig) -> bool:
    """Whether a word after --prompt sets a field of a config. "style=anime, at night" is a prompt,
    `gudance_scale=3` a mistake."""
    fields = [line.split("=")[0].strip() for line in help_lines(kind)]
    # With their section and without it: stride=1 is meant for pose.stride.
    names = (*fields, *(field.rpartition(".")[2] for field in fields))
    name, equals, _ = text.partition("=")
    return bool(equals) and bool(difflib.get_close_matches(name, names, n=1, cutoff=NEAR_A_FIELD))


def main() -> None:
    """Run sample.py on the arguments of this process. Raises UserError."""
    config, args = parse_arguments(sys.argv[1:])
    if args.pose_from is not None:
        from fyp_jax.pipeline.film_poses import FilmOptions, with_poses_of_film

        options = {field.name: getattr(args, field.name) for field in dataclasses.fields(FilmOptions)}
        config = with_poses_of_film(config, args.pose_from, FilmOptions(**options))
    if config.random_init:
        print(RANDOM_WEIGHTS)
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.pipeline.files import sample_to_files

    enable_compilation_cache()
    for clip in sample_to_files(config):
        tqdm.write(printable(str(clip)))


def console() -> None:
    """The command fyp-sample, and sample.py."""
    run_console(main)
