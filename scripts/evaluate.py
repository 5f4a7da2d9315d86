"""Examine the mini model on clips that training has not seen: pose, text, steadiness; whole and in parts.

    python scripts/evaluate.py --out runs/mini/evaluation                    the shipped weights
    python scripts/evaluate.py pretrained=runs/mini/model --clips 16         a folder of yours
    python scripts/evaluate.py --ablations                                   and the method without its parts
    python scripts/evaluate.py --also "my run=runs/mine/checkpoints"         and checkpoints beside it

Writes OUT/scores.md (the table), scores.json, scores.png (bars), and clips.png: what each way of sampling
made of the same questions. The same weights give the same scores on the same machine.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from fyp_jax.config import SampleConfig, load_config
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.errors import UserError, run_cli
from fyp_jax.evaluation.ablations import (
    How,
    Sample,
    as_shipped,
    before_motion_stage,
    frame_by_frame,
    latent_encoder,
    without_cross_frame_attention,
    without_pose,
    without_temporal_layers,
)
from fyp_jax.evaluation.eval_set import Scores, make_eval_cases, score
from fyp_jax.evaluation.report import draw_clips, draw_scores, rows
from fyp_jax.pipeline.pipeline import load_sampler
from fyp_jax.synthetic.scenes import draw_frames

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mini" / "sample.yaml"
WHOLE = "whole method"
SHOWN, SHOWN_FRAMES = 2, 6  # clips of each way, in the picture


def ways_of(config: SampleConfig, ablations: bool, also: Mapping[str, str]) -> dict[str, Sample]:
    """Ways of sampling, by name."""
    sampler, params, _ = load_sampler(config)
    image_unet = PipelineFolder(config.pretrained, ("unet",)).image_unet(sampler.unet.config)
    how = How(config.steps, config.guidance, config.pose_guidance, config.noise_correlation)
    before = before_motion_stage(params, image_unet)
    ways = {
        WHOLE: as_shipped(sampler, params, how),
        "pose stage only, frame by frame": frame_by_frame(sampler, before, how),
    }
    if ablations:
        apart = without_cross_frame_attention(sampler)
        silent = {**params, "unet": without_temporal_layers(params["unet"])}
        ways |= {
            "pose stage only, noise in common": as_shipped(sampler, before, how),
            "each frame has its own noise": as_shipped(sampler, params, how._replace(noise_correlation=0.0)),
            "guidance on the text alone": as_shipped(sampler, params, how._replace(pose_guidance=False)),
            "without pose": without_pose(sampler, params, how),
            "without cross-frame attention": as_shipped(apart, params, how),
            "without temporal layers": as_shipped(sampler, silent, how),
        }
    for name, checkpoint in also.items():
        other, its_params, _ = load_sampler(dataclasses.replace(config, checkpoint=checkpoint))
        ways[name] = as_shipped(other, its_params, how)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini/evaluation"), metavar="DIR")
    parser.add_argument(
        "--clips", type=int, default=64, metavar="N", help="of each kind of pairs (%(default)s)"
    )
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="of each clip (%(default)s)")
    parser.add_argument("--long", type=int, metavar="N", help="the whole method also with N frames (24, say)")
    parser.add_argument(
        "--ablations", action="store_true", help="take the method's parts away, one at a time"
    )
    parser.add_argument(
        "--also", action="append", default=[], metavar="NAME=DIR", help="checkpoints to sample from as well"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of sample.py's config")
    args = parser.parse_args()
    if args.clips < 1 or args.frames < 2 or (args.long or 2) < 2:
        raise UserError("an exam needs a clip, and clips of two frames at least")
    if wrong := [text for text in args.also if "=" not in text]:
        raise UserError(f"--also {wrong[0]}: give NAME=DIR")
    config = load_config(SampleConfig, CONFIG, args.overrides)
    config.check()
    ways = ways_of(config, args.ablations, dict(text.split("=", 1) for text in args.also))
    # Steadiness is compared in latents of one VAE, the sampled model's.
    sampler, params, _ = load_sampler(config)
    encode = latent_encoder(sampler, params)
    exams = [
        (pairs, args.frames, held_out, way)
        for pairs, held_out in (("", False), (", held-out pairs", True))
        for way in (ways if not held_out else [WHOLE])
    ]
    exams += [(f", {args.long} frames", args.long, False, WHOLE)] if args.long else []
    results: dict[str, Scores] = {}
    shown = {}
    for name, frames, held_out, way in exams:
        asked = make_eval_cases(args.clips, frames, held_out)
        drawn = [draw_frames(question.scene, question.keypoints) for question in asked]
        if f"the world's own drawings{name}" not in results:
            results[f"the world's own drawings{name}"] = score(drawn, asked, encode)
            if not name:
                shown["given pose"] = [(255 * question.skeleton).astype("uint8") for question in asked]
        numbered = enumerate(tqdm(asked, way + name, unit=" clips"))
        videos = [ways[way](question, number) for number, question in numbered]
        results[way + name] = score(videos, asked, encode)
        if not name:
            shown[way] = videos
    table = "\n".join(rows(results))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scores.md").write_text(table + "\n")
    plain = {name: {k: v._asdict() for k, v in s._asdict().items()} for name, s in results.items()}
    (args.out / "scores.json").write_text(json.dumps(plain, indent=1) + "\n")
    draw_scores(results, args.out / "scores.png")
    draw_clips({name: clips[:SHOWN] for name, clips in shown.items()}, args.out / "clips.png", SHOWN_FRAMES)
    print(table)


if __name__ == "__main__":
    sys.exit(run_cli(main))
