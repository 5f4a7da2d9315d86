"""Make clips from prompts and a pose sequence (or none): python sample.py --pose FILE --prompt TEXT.

With invert=FILE they start from the inversion of a clip, without a pose unless --pose gives one.

    python sample.py --prompts FILE --out DIR mesh.data=-1

makes the clips of a file: .txt has a prompt a line; .csv and .jsonl have the fields prompt, pose,
pose_stride, pose_start, pose_size, seed, num_frames and all other sampling options. Each device makes clips
of its own. The same command makes what is missing when it is started again.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from fyp_jax.cli.film_arguments import add_film_arguments, check_film_arguments
from fyp_jax.config import help_lines, load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.errors import UserError, printable
from fyp_jax.pipeline.config import CLIP_FORMATS, RANDOM_WEIGHTS, SampleConfig
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
    add("--prompts", type=Path, metavar="FILE", help="make the clips of a .txt, .csv or .jsonl file in --out")
    add("--out", metavar="DIR", help="same as output_dir=DIR; with --prompts the folder of the clips itself")
    add("--seed", metavar="N", help="same as seed=N")
    _add_prompts_arguments(parser)
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
    _check_prompts_arguments(args, prompts, overrides)
    if args.prompts is not None:
        return config, args  # `read_prompts` checks it with each prompt
    config = dataclasses.replace(config, prompt=prompts) if prompts else config
    config.check()
    return config, args


def _add_prompts_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many clips (--prompts)")
    add = group.add_argument
    add("--format", choices=CLIP_FORMATS, help="keep the clips as files, or in tars (default: folder)")
    add(
        "--per-device-batch-size",
        type=int,
        metavar="N",
        help="clips that a device makes at a time (default: 1)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="make clips again that are there with other options or weights",
    )


def _check_prompts_arguments(args: argparse.Namespace, prompts: list[str], overrides: list[str]) -> None:
    """Raise UserError for options that exclude or need each other."""
    names = ("format", "per_device_batch_size", "overwrite")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if args.prompts is None:
        if given:
            raise UserError(f"{given[0]} needs --prompts FILE")
        return
    if prompts or args.pose_from is not None:
        other = "--prompt" if prompts else "--pose-from"
        raise UserError(f"{other} and --prompts exclude each other: leave one out")
    if not any(override.startswith("output_dir=") for override in overrides):
        raise UserError("--prompts needs --out DIR, the folder in which its clips are kept")
    if args.per_device_batch_size is not None and args.per_device_batch_size < 1:
        raise UserError(f"--per-device-batch-size {args.per_device_batch_size} must be at least 1")


def field_names(kind: type) -> list[str]:
    """The names of all fields of a config, with their sections."""
    return [line.split("=")[0].strip() for line in help_lines(kind)]


def is_override(text: str, kind: type = SampleConfig) -> bool:
    """Whether a word after --prompt sets a field of a config. "style=anime, at night" is a prompt,
    `gudance_scale=3` a mistake."""
    fields = field_names(kind)
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

    for clip in _clips(config, args, enable_compilation_cache):
        tqdm.write(printable(str(clip)))


def _clips(
    config: SampleConfig, args: argparse.Namespace, enable_compilation_cache: Callable[[], object]
) -> Iterable[Path]:
    if args.prompts is None:
        from fyp_jax.pipeline.files import sample_to_files

        enable_compilation_cache()
        return sample_to_files(config)
    from fyp_jax.pipeline.many_clips import ManyClips, cluster_config, make_clips
    from fyp_jax.pipeline.prompt_files import read_prompts

    lines = read_prompts(args.prompts, cluster_config(config))
    options = ManyClips(args.format or "folder", args.per_device_batch_size or 1, args.overwrite)
    enable_compilation_cache()
    return make_clips(lines, config, options)


def console() -> None:
    """The command fyp-sample, and sample.py."""
    run_console(main)
