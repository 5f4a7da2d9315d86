"""`evaluate.py --clips DIR ...`: the measures of clips that were made before, in a table and a plot."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fyp_jax.cli.film_arguments import add_network_arguments
from fyp_jax.errors import UserError, printable, wrap_write_errors

MEASURES = ("clip", "pose", "flicker")
CLIP_MODEL = "openai/clip-vit-large-patch14"
OUT = Path("runs/evaluation")
OPTIONS = ("measures", "clip_model", "workers", "detector", "estimator", "one_stage")
"""Options that need --clips."""


def add_clips_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --clips, and the options that need it."""
    group = parser.add_argument_group("clips that were made before (--clips)")
    add = group.add_argument
    add(
        "--clips", nargs="+", type=Path, metavar="DIR",
        help="measure the clips of these folders or tars of sample.py, a row for each",
    )  # fmt: skip
    add(
        "--measures", nargs="+", choices=MEASURES, metavar="NAME",
        help="clip (text alignment, frame consistency), pose (extra [pose]), flicker (default: all)",
    )  # fmt: skip
    add("--clip-model", metavar="NAME", help=f"folder or Hub id of CLIP (default: {CLIP_MODEL})")
    add("--workers", type=int, metavar="N", help="processes that decode clips and find poses (default: 1)")
    add_network_arguments(group)


def check_clips_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for options that exclude or need each other."""
    if args.clips is None:
        if given := [name for name in OPTIONS if getattr(args, name)]:
            raise UserError(f"--{given[0].replace('_', '-')} needs --clips DIR")
        return
    others = {"--num-clips": args.num_clips, "--frames": args.frames, "--long": args.long}
    others |= {"--ablations": args.ablations, "--compare": args.compare, "a config field": args.overrides}
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"--clips measures clips that are there, and makes none: leave {given[0]} out")
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")


def evaluate_clips(args: argparse.Namespace) -> None:
    """Measure the clips of `args.clips`, print the table and write the report.

    A clip that cannot be measured does not stop the others. Raises UserError where there was one.
    """
    import jax

    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.evaluation.clip_folders import measure_clips, prompt_of
    from fyp_jax.evaluation.clip_report import write_report
    from fyp_jax.evaluation.clip_score import load_clip, replicate_params
    from fyp_jax.pipeline.clip_store import list_clips
    from fyp_jax.pose.networks import find_networks

    enable_compilation_cache()
    out, measures = args.out or OUT, args.measures or MEASURES
    folders = {str(path): list_clips(path) for path in args.clips}
    if empty := [name for name, clips in folders.items() if not clips]:
        raise UserError(f"{empty[0]}: no clip of sample.py is here, an mp4 with its record (.json) beside it")
    with wrap_write_errors(out):  # a folder that cannot be made ends the command before the measuring
        out.mkdir(parents=True, exist_ok=True)
    has_pose = any(clip.record.get("pose") for clips in folders.values() for clip in clips)
    networks = None
    if "pose" in measures and has_pose:
        networks = find_networks(args.detector, args.estimator, args.one_stage)
    clip_model = None
    if "clip" in measures:
        model, params = load_clip(args.clip_model or CLIP_MODEL)
        clip_model = model, replicate_params(params, jax.local_devices())
    results: dict[str, list[Any]] = {}
    failed: list[str] = []
    with tqdm(total=sum(map(len, folders.values())), unit="clip") as bar:
        for folder, clips in folders.items():
            results[folder] = []
            for clip, outcome in measure_clips(clips, measures, clip_model, networks, args.workers or 1):
                bar.update()
                if isinstance(outcome, UserError):
                    failed.append(clip.where)
                    tqdm.write(printable(f"failed: {outcome}"), file=sys.stderr)
                else:
                    results[folder].append((clip.name, prompt_of(clip), outcome))
    print(printable(write_report(results, out)), end="")
    if failed:
        raise UserError(f"{len(failed)} clips could not be measured, see above; the table is without them")
