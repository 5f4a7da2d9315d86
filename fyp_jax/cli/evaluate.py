"""Evaluate the bundled model on clips that training has not seen: pose, text, sharpness, what frames have in
common, and ablations.

    python scripts/evaluate.py --out runs/mini/evaluation                    the bundled weights
    python scripts/evaluate.py pretrained=runs/mini/model --num-clips 16     a folder of yours
    python scripts/evaluate.py --ablations                                   also the method without its parts
    python scripts/evaluate.py --long 24 48                                  also longer clips
    python scripts/evaluate.py --compare "my run=runs/mine/checkpoints"      also other checkpoints

Writes OUT/scores.md (a table of scores, and one of the differences from the full model, clip by clip),
scores.json (with the scores of each clip), scores.png (bars), and pictures of clips of the same cases by each
model and ablation: clips, clips_open and clips_held_out_pairs, as .png and as a .gif that plays them side by
side. The same weights give the same scores on the same machine. The same command resumes where it was
stopped, and OUT keeps each clip's scores for a table of more clips from the same weights and options.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fyp_jax.cli.evaluate_clips import OUT as CLIPS_OUT
from fyp_jax.cli.evaluate_clips import add_clips_arguments, check_clips_arguments, evaluate_clips
from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.evaluation.overrides import check_used
from fyp_jax.pipeline.config import SampleConfig

if TYPE_CHECKING:
    from fyp_jax.evaluation.rows import Model

CONFIG = "configs/mini/sample.yaml"
OUT, NUM_CLIPS, FRAMES = Path("runs/mini/evaluation"), 64, 8
SHOWN_FRAMES = 6
"""Frames of each clip in the pictures."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help=f"default: {OUT}, or {CLIPS_OUT} with --clips")
    add(
        "--num-clips",
        type=int,
        metavar="N",
        help=f"clips of each row (default: {NUM_CLIPS})",
    )
    add("--frames", type=int, metavar="N", help=f"frames of each clip (default: {FRAMES})")
    add(
        "--long", type=int, nargs="+", default=[], metavar="N",
        help="evaluate the full model also with clips of N frames (24 48, say)",
    )  # fmt: skip
    add("--ablations", action="store_true", help="evaluate the method also without its parts, one at a time")
    add("--compare", action="append", default=[], metavar="NAME=DIR", help="evaluate another checkpoint too")
    add("overrides", nargs="*", metavar="a.b=c", help="fields of sample.py's config")
    add_clips_arguments(parser)
    args = parser.parse_args(argv)
    check_clips_arguments(args)
    if args.clips is not None:
        return args
    args.out = args.out or OUT
    args.num_clips = NUM_CLIPS if args.num_clips is None else args.num_clips
    args.frames = FRAMES if args.frames is None else args.frames
    if args.num_clips < 1 or min(args.frames, *args.long, args.frames) < 2:
        raise UserError(
            "give at least one clip (--num-clips), and clips of at least two frames (--frames, --long)"
        )
    if wrong := [text for text in args.compare if "=" not in text]:
        raise UserError(f"--compare {wrong[0]}: give NAME=DIR")
    names = [text.split("=", 1)[0] for text in args.compare]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--compare {repeated[0]}=DIR is there twice: give each checkpoint a name of its own")
    check_used(args.overrides, "num_frames")  # --frames says it
    return args


def main() -> None:
    """Run evaluate.py on the arguments of this process. Raises UserError."""
    args = parse(sys.argv[1:])
    if args.clips is not None:
        evaluate_clips(args)
        return
    config = load_config(SampleConfig, CONFIG, args.overrides)
    config.check()
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.evaluation.report import (
        animate_clips,
        difference_rows,
        plot_clips,
        plot_scores,
        table_rows,
    )
    from fyp_jax.evaluation.rows import baselines, plan_rows, score_rows
    from fyp_jax.evaluation.scene_set import Kind
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
    from fyp_jax.synthetic.scenes import FPS

    with wrap_write_errors(args.out):  # a folder that cannot be made ends the command before the sampling
        args.out.mkdir(parents=True, exist_ok=True)
    pipeline = FollowYourPosePipeline.from_config(config)
    models = models_of(config, pipeline, args.ablations, dict(x.split("=", 1) for x in args.compare))
    rows = plan_rows(list(models), args.frames, args.long)
    results, shown = score_rows(rows, models, args.num_clips, config, args.out)
    differences = difference_rows(results, baselines(rows))
    tables = "\n".join([*table_rows(results), "", "Differences, clip by clip:", "", *differences])
    with wrap_write_errors(args.out / "scores.md") as file:
        file.write_text(tables + "\n")
    plot_scores(results, args.out / "scores.png")
    names = {Kind.NAMED: "clips", Kind.OPEN: "clips_open", Kind.HELD_OUT_PAIRS: "clips_held_out_pairs"}
    for kind, clips in shown.items():
        plot_clips(clips, args.out / f"{names[kind]}.png", SHOWN_FRAMES)
        animate_clips(clips, args.out / f"{names[kind]}.gif", FPS)
    print(tables)


def models_of(
    config: SampleConfig, pipeline: Any, ablations: bool, compare: Mapping[str, str]
) -> "dict[str, Model]":
    """What makes clips for each model and ablation, by the name of its row."""
    from fyp_jax.convert.open_pipeline import open_pipeline, recorded_options
    from fyp_jax.evaluation.ablations import full_and_ablations, full_model
    from fyp_jax.evaluation.rows import GIVEN_POSE, GROUND_TRUTH, Model, weights_checksum
    from fyp_jax.pipeline.params import sampling_params
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

    sampling = sampling_params(config)
    options = recorded_options(pipeline.weights["options"])
    folder = open_pipeline(pipeline.weights["pretrained"], ("unet",), options)
    image_unet = folder.image_unet(pipeline.programs.unet.config)
    checksum = weights_checksum({"image": image_unet, **pipeline.params})
    functions = full_and_ablations(pipeline, image_unet, sampling, ablations)
    found = {name: Model(sample, checksum) for name, sample in functions.items()}
    for name, checkpoint in compare.items():
        if name in (*found, GROUND_TRUTH, GIVEN_POSE):
            raise UserError(f"--compare {name}={checkpoint}: {name} is a row already; give another name")
        other = FollowYourPosePipeline.from_config(
            dataclasses.replace(config, checkpoint=checkpoint, step=None)
        )
        found[name] = Model(full_model(other, sampling), weights_checksum(other.params))
    return found


def console() -> None:
    """The command fyp-evaluate, and scripts/evaluate.py."""
    run_console(main)
