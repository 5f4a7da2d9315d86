"""Examine the mini model on clips that training has not seen: pose, text, steadiness; whole and in parts.

    python scripts/evaluate.py --out runs/mini/evaluation                    the shipped weights
    python scripts/evaluate.py pretrained=runs/mini/model --clips 16         a folder of yours
    python scripts/evaluate.py --ablations                                   and the method without its parts

Writes OUT/scores.md (the table), scores.json, and clips.png: each way of sampling beside the others.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fyp_jax.config import SampleConfig, load_config
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.data.mini_world.clips import draw_frames
from fyp_jax.errors import exit_status
from fyp_jax.evaluation import (
    Question,
    Sample,
    as_shipped,
    before_motion_stage,
    frame_by_frame,
    latent_encoder,
    questions,
    rows,
    score,
    without_cross_frame_attention,
    without_pose,
    without_temporal_layers,
)
from fyp_jax.media.video import contact_sheet, write_png
from fyp_jax.sampling import load_sampler

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "mini" / "sample.yaml"
SHOWN = 4  # clips of each way, in the picture


def ways_of(
    config: SampleConfig, ablations: bool
) -> tuple[dict[str, Sample], Callable[[np.ndarray], np.ndarray]]:
    """Ways of sampling by name, and the encoder of the model's VAE."""
    sampler, params, _ = load_sampler(config)
    image_unet = PipelineFolder(config.pretrained, ("unet",)).image_unet(sampler.unet.config)
    how = (config.steps, config.guidance)
    ways = {
        "whole method": as_shipped(sampler, params, *how),
        "pose stage only, frame by frame": frame_by_frame(
            sampler, before_motion_stage(params, image_unet), *how
        ),
    }
    if ablations:
        apart = without_cross_frame_attention(sampler)
        silent = {**params, "unet": without_temporal_layers(params["unet"])}
        ways |= {
            "without pose": without_pose(sampler, params, *how),
            "without cross-frame attention": as_shipped(apart, params, *how),
            "without temporal layers": as_shipped(sampler, silent, *how),
        }
    return ways, latent_encoder(sampler, params)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini/evaluation"), metavar="DIR")
    parser.add_argument(
        "--clips", type=int, default=64, metavar="N", help="of each kind of pairs (%(default)s)"
    )
    parser.add_argument("--frames", type=int, default=8, metavar="N", help="of each clip (%(default)s)")
    parser.add_argument(
        "--ablations", action="store_true", help="take the method's parts away, one at a time"
    )
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of sample.py's config")
    args = parser.parse_args()
    config = load_config(SampleConfig, CONFIG, args.overrides)
    config.check()
    ways, encode = ways_of(config, args.ablations)
    results, pictures = {}, []
    for pairs, held_out in (("seen pairs", False), ("held-out pairs", True)):
        asked: list[Question] = questions(args.clips, args.frames, held_out)
        drawn = [draw_frames(question.scene, question.keypoints) for question in asked]
        results[f"the world itself, {pairs}"] = score(drawn, asked, encode)
        pictures += [[*drawn[:SHOWN]]] if not held_out else []
        for name, sample in ways.items():
            if held_out and name != "whole method":
                continue
            numbered = enumerate(tqdm(asked, f"{name}, {pairs}", unit=" clips"))
            videos = [sample(question, number) for number, question in numbered]
            results[f"{name}, {pairs}"] = score(videos, asked, encode)
            pictures += [videos[:SHOWN]] if not held_out else []
    table = "\n".join(rows(results))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "scores.md").write_text(table + "\n")
    plain = {name: {k: v._asdict() for k, v in s._asdict().items()} for name, s in results.items()}
    (args.out / "scores.json").write_text(json.dumps(plain, indent=1) + "\n")
    sheets = [contact_sheet([way[i][:8] for way in pictures]) for i in range(min(SHOWN, args.clips))]
    write_png(args.out / "clips.png", np.concatenate(sheets))
    print(table)


if __name__ == "__main__":
    sys.exit(exit_status(main))
