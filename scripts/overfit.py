"""A fresh video UNet learns one clip by heart: is what we train enough, and does sampling undo training?

    python scripts/overfit.py --out runs/overfit

Draws a clip of the mini world (or takes the first frames of --video), trains the whole UNet of
configs/mini/overfit.yaml on it alone (train.py goes on where it was stopped), samples with the caption and no
pose, and writes OUT/overfit.png: the clip above, the sample below.
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np

from fyp_jax.config import SampleConfig, load_config
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.errors import run_cli
from fyp_jax.media.images import image_grid, resize_center_crop
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.pipeline.pipeline import load_sampler
from fyp_jax.pose.config import PoseConfig
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import FPS, Scene, render_clip
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import read_metrics
from fyp_jax.training.loop import train

SCENE = Scene("robot", "beach", "none", HELD_OUT_MOTION, 1)
CONFIG = Path(__file__).parent.parent / "configs" / "mini" / "overfit.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"), metavar="DIR")
    parser.add_argument("--video", type=Path, metavar="FILE", help="default: a clip of the mini world")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the training config")
    args = parser.parse_args()
    paths = [f"out={args.out}", f"data.path={args.out}/records/captioned_videos"]
    config = load_config(TrainConfig, CONFIG, [*paths, *args.overrides])
    config.check()
    clip, _, caption = render_clip(SCENE, config.data.num_frames)
    if args.video is not None:
        clip = resize_center_crop(
            read_frames(args.video, range(config.data.num_frames)), config.data.height, config.data.width
        )
    write_mp4(args.out / "clip" / "clip.mp4", clip, FPS)
    (args.out / "clip" / "metadata.csv").write_text(f'file_name,text\nclip.mp4,"{caption}"\n')
    ingest("captioned_videos", args.out / "clip", args.out / "records", overwrite=True)
    train(config)
    losses = np.asarray(read_metrics(args.out / "metrics.csv")["loss/all"])
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.4f} at last, a {losses[0] / losses[-1]:.0f}th")
    checkpoint = f"{args.out}/checkpoints"
    sampler, params, _ = load_sampler(
        SampleConfig(pretrained=config.pretrained, checkpoint=checkpoint, pose=PoseConfig(None))
    )
    video = sampler(params, caption, None, size=clip.shape[:3], guidance=1.0)
    write_png(args.out / "overfit.png", image_grid([clip, video]))
    print(args.out / "overfit.png")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
