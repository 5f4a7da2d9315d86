"""Evaluate the bundled model on clips that training has not seen: pose, text, temporal consistency, and
ablations.

    python scripts/evaluate.py --out runs/mini/evaluation                    the bundled weights
    python scripts/evaluate.py pretrained=runs/mini/model --num-clips 16     a folder of yours
    python scripts/evaluate.py --ablations                                   also the method without its parts
    python scripts/evaluate.py --compare "my run=runs/mine/checkpoints"      also other checkpoints

Writes OUT/scores.md (the table), scores.json, scores.png (bars), and clips.png: clips of the same cases by
each model and ablation. The same weights give the same scores on the same machine.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fyp_jax.cli.evaluate_clips import OUT as CLIPS_OUT
from fyp_jax.cli.evaluate_clips import add_clips_arguments, check_clips_arguments, evaluate_clips
from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.pipeline.config import SampleConfig

CONFIG = "configs/mini/sample.yaml"
GROUND_TRUTH = "ground truth"
OUT, NUM_CLIPS, FRAMES = Path("runs/mini/evaluation"), 64, 8
SHOWN, SHOWN_FRAMES = 2, 6
"""Clips of each model in the picture, and frames of each."""


class Part(NamedTuple):
    """A part of the evaluation: a set of cases, and the models that make clips of them."""

    suffix: str
    """What the names of its rows end in."""
    frames: int
    held_out_pairs: bool
    models: list[str]


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
        help=f"clips of seen and of held-out pairs (default: {NUM_CLIPS})",
    )
    add("--frames", type=int, metavar="N", help=f"frames of each clip (default: {FRAMES})")
    add("--long", type=int, metavar="N", help="evaluate the full model also with clips of N frames (24, say)")
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
    if args.num_clips < 1 or args.frames < 2 or (args.long or 2) < 2:
        raise UserError(
            "give at least one clip (--num-clips), and clips of at least two frames (--frames, --long)"
        )
    if wrong := [text for text in args.compare if "=" not in text]:
        raise UserError(f"--compare {wrong[0]}: give NAME=DIR")
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
    from fyp_jax.evaluation.ablations import FULL_MODEL
    from fyp_jax.evaluation.eval_set import Scores, make_eval_cases, score
    from fyp_jax.evaluation.report import plot_clips, plot_scores, table_rows
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
    from fyp_jax.synthetic.scenes import render_frames

    with wrap_write_errors(args.out):  # a folder that cannot be made ends the command before the sampling
        args.out.mkdir(parents=True, exist_ok=True)
    pipeline = FollowYourPosePipeline.from_config(config)
    models = sample_functions(config, pipeline, args.ablations, dict(x.split("=", 1) for x in args.compare))
    # All clips are compared in the latents of one VAE, that of the evaluated model.
    encode = pipeline.encode
    parts = [
        Part("", args.frames, False, list(models)),
        Part(", held-out pairs", args.frames, True, [FULL_MODEL]),
    ]
    parts += [Part(f", {args.long} frames", args.long, False, [FULL_MODEL])] if args.long else []
    results: dict[str, Scores] = {}
    shown: dict[str, list[np.ndarray]] = {}
    for part in parts:
        cases = make_eval_cases(args.num_clips, part.frames, part.held_out_pairs)
        rendered = [render_frames(case.scene, case.keypoints) for case in cases]
        results[GROUND_TRUTH + part.suffix] = score(rendered, cases, encode)
        if not part.suffix:
            shown["given pose"] = [case.pose_images for case in cases[:SHOWN]]
        for name in part.models:
            numbered = enumerate(tqdm(cases, name + part.suffix, unit=" clips"))
            videos = [models[name](case, number) for number, case in numbered]
            results[name + part.suffix] = score(videos, cases, encode)
            if not part.suffix:
                shown[name] = videos[:SHOWN]
    table = "\n".join(table_rows(results))
    plain = {name: {k: v._asdict() for k, v in s._asdict().items()} for name, s in results.items()}
    for name, text in (("scores.md", table), ("scores.json", json.dumps(plain, indent=1))):
        with wrap_write_errors(args.out / name) as file:
            file.write_text(text + "\n")
    plot_scores(results, args.out / "scores.png")
    plot_clips(shown, args.out / "clips.png", SHOWN_FRAMES)
    print(table)


def sample_functions(
    config: SampleConfig, pipeline: Any, ablations: bool, compare: Mapping[str, str]
) -> dict[str, Callable[..., np.ndarray]]:
    """A function that makes clips for each model and ablation, by the name of its row."""
    from fyp_jax.convert.open_pipeline import open_pipeline, recorded_options
    from fyp_jax.evaluation import ablations as ablate
    from fyp_jax.pipeline.params import sampling_params
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

    sampling = sampling_params(config)
    options = recorded_options(pipeline.weights["options"])
    folder = open_pipeline(pipeline.weights["pretrained"], ("unet",), options)
    image_unet = folder.image_unet(pipeline.programs.unet.config)
    pose_stage = ablate.with_params(pipeline, ablate.before_motion_stage(pipeline.params, image_unet))
    found = {
        ablate.FULL_MODEL: ablate.full_model(pipeline, sampling),
        "pose stage only, frame by frame": ablate.frame_by_frame(pose_stage, sampling),
    }
    if ablations:
        silent = {**pipeline.params, "unet": ablate.without_temporal_layers(pipeline.params["unet"])}
        changed = lambda **changes: dataclasses.replace(sampling, **changes)  # noqa: E731
        found |= {
            "pose stage only, correlated noise": ablate.full_model(pose_stage, sampling),
            "independent noise for each frame": ablate.full_model(pipeline, changed(noise_correlation=0.0)),
            "guidance on the text alone": ablate.full_model(pipeline, changed(pose_guidance=False)),
            "without pose": ablate.without_pose(pipeline, sampling),
            "without cross-frame attention": ablate.full_model(
                ablate.without_cross_frame_attention(pipeline), sampling
            ),
            "without temporal layers": ablate.full_model(ablate.with_params(pipeline, silent), sampling),
        }
    for name, checkpoint in compare.items():
        other = FollowYourPosePipeline.from_config(
            dataclasses.replace(config, checkpoint=checkpoint, step=None)
        )
        found[name] = ablate.full_model(other, sampling)
    return found


def console() -> None:
    """The command fyp-evaluate, and scripts/evaluate.py."""
    run_console(main)
