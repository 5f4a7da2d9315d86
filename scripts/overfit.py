"""Overfit a fresh video UNet on one clip, and sample the clip again: do training and sampling fit each other?

    python scripts/overfit.py --out runs/overfit

Renders a clip of the synthetic world (or takes the first frames of --video) and trains the whole UNet of
configs/mini/overfit.yaml on it alone; a run that was stopped is resumed. Then it samples with the caption and
no pose, and writes OUT/overfit.png: the clip above, the sample below.
"""

import argparse
from pathlib import Path

import numpy as np

from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.media.images import image_grid, resize_center_crop
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import FIRST_HELD_OUT_SEED, FPS, Scene, render_clip
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import read_metrics
from fyp_jax.training.loop import train

SCENE = Scene(("robot",), "beach", "none", HELD_OUT_MOTION, FIRST_HELD_OUT_SEED, pan=0.0)
CONFIG = "configs/mini/overfit.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"), metavar="DIR")
    parser.add_argument("--video", type=Path, metavar="FILE", help="default: a clip of the synthetic world")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the training config")
    args = parser.parse_args()
    paths = [f"output_dir={args.out}", f"data.path={args.out}/records/captioned_videos"]
    config = load_config(TrainConfig, CONFIG, [*paths, *args.overrides])
    config.check()
    rendered = render_clip(SCENE, config.data.num_frames, config.data.height)
    clip, caption = rendered.video, rendered.caption
    if args.video is not None:
        clip = resize_center_crop(
            read_frames(args.video, range(config.data.num_frames)), config.data.height, config.data.width
        )
    write_mp4(args.out / "clip" / "clip.mp4", clip, FPS)
    (args.out / "clip" / "metadata.csv").write_text(f'file_name,text\nclip.mp4,"{caption}"\n')
    ingest("captioned_videos", args.out / "clip", args.out / "records", overwrite=True)
    train(config)
    losses = np.asarray(read_metrics(args.out / "metrics.csv")["loss/all"])
    print(f"loss: from {losses[0]:.3f} to {losses[-1]:.4f}, a factor of {losses[0] / losses[-1]:.0f}")
    source = SampleConfig(pretrained=config.pretrained, checkpoint=f"{args.out}/checkpoints")
    pipeline = FollowYourPosePipeline.from_config(source)
    frames, height, width = clip.shape[:3]
    sampling = SamplingParams(num_frames=frames, height=height, width=width, guidance_scale=1.0)
    video = pipeline(caption, None, sampling).frames
    write_png(args.out / "overfit.png", image_grid([clip, video]))
    print(args.out / "overfit.png")


if __name__ == "__main__":
    run_console(main)
