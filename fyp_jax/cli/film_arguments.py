"""Options of the commands that take the poses of people from a film."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fyp_jax.errors import UserError


def add_extraction_arguments(parser: Any) -> None:
    """Add the options that say how people are found and tracked."""
    add = parser.add_argument
    add("--people", type=int, metavar="N", help="keep the N largest people at a time (default: all)")
    add("--smooth", action="store_true", help="filter jitter of the joints (one-euro filter)")
    add_network_arguments(parser)


def add_network_arguments(parser: Any) -> None:
    """Add the options that say which networks find people."""
    add = parser.add_argument
    add("--detector", type=Path, metavar="FILE.onnx", help="YOLOX, for RTMPose (default: rtmlib's)")
    add("--estimator", type=Path, metavar="FILE.onnx", help="RTMPose, or RTMO alone (default: rtmlib's)")
    add("--one-stage", action="store_true", help="download RTMO instead of YOLOX and RTMPose")


def add_film_arguments(parser: argparse.ArgumentParser) -> None:
    """Add sample.py's --pose-from, and the options that need it."""
    group = parser.add_argument_group("poses from a film (extra [pose])")
    group.add_argument("--pose-from", type=Path, metavar="FILM", help="find the poses of people in a film")
    add_extraction_arguments(group)


def check_people(people: int | None) -> None:
    """Raise UserError for a number of people below 1."""
    if people is not None and people < 1:
        raise UserError(f"--people {people} must be at least 1")


def check_film_arguments(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Raise UserError for options of sample.py that exclude or need each other."""
    names = ("people", "smooth", "detector", "estimator", "one_stage")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name)]
    if args.pose_from is None:
        if given:
            raise UserError(f"{given[0]} needs --pose-from FILM")
    elif any(override.startswith("pose.path=") for override in overrides):
        raise UserError("--pose-from FILM and --pose FILE (pose.path) exclude each other: leave one out")
    check_people(args.people)
