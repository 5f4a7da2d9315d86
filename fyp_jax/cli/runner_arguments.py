"""Arguments of commands that work on many files: on Apache Beam in place of processes of this machine."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fyp_jax.data.ingest.remote import source_path


def add_runner_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runner",
        metavar="NAME",
        help="runner of Apache Beam in place of processes of this machine: DirectRunner, DataflowRunner, "
        "FlinkRunner, SparkRunner; options that this command does not know are Beam's",
    )


def parse_runner(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, of_the_pool: Mapping[str, Any]
) -> argparse.Namespace:
    """Parse arguments; `beam_options` are those of Beam, or None without --runner.

    `of_the_pool` has the options that a runner has no use for, with their defaults.
    """
    args, others = parser.parse_known_args(argv)
    args.beam_options = None if args.runner is None else [f"--runner={args.runner}", *others]
    if args.runner is None and others:
        parser.error(f"unrecognized arguments: {' '.join(others)} (options of Beam need --runner)")
    for option, default in of_the_pool.items():
        if args.runner is not None and getattr(args, option.strip("-").replace("-", "_")) != default:
            parser.error(f"{option} is for processes of this machine; Beam has options of its own")
    return args


def local_path(text: str) -> Path:
    """A path of this machine. Raises argparse's error for a URL, which would become a folder of that name."""
    if "://" in text and not text.startswith("file:///"):
        raise argparse.ArgumentTypeError(f"{text} is no path of this machine; mount the bucket first")
    return source_path(text)
