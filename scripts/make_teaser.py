"""The picture at the top of the README: a pose sequence, and clips of it by the bundled model, one for each
prompt.

    python scripts/make_teaser.py --out docs/teaser.gif
    python scripts/make_teaser.py --pose dance.mov --prompt "A robot, on the sea" --out robot.gif

The first column of the GIF is the pose, the others are clips of one seed, each above its prompt. The default
pose sequence has the motion that is held out of training. The default prompts are chosen by a rule: every
second named character, with every second place, and one style after the other.
"""

import argparse
from pathlib import Path

import numpy as np

from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.media.images import side_by_side
from fyp_jax.media.writing import write_gif
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pose.loading import load_pose
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.places import PLACES
from fyp_jax.synthetic.scenes import FIRST_HELD_OUT_SEED, FPS, SIZE, Scene, caption, scene_keypoints
from fyp_jax.synthetic.styles import STYLES

CONFIG = "configs/mini/sample.yaml"
POSE_SCENE = Scene(("man",), "simple", "none", HELD_OUT_MOTION, FIRST_HELD_OUT_SEED)
EVERY = 2
PROMPTS = tuple(
    caption(Scene((character,), place, list(STYLES)[i % len(STYLES)], HELD_OUT_MOTION, 0))
    for i, (character, place) in enumerate(zip(list(NAMED)[::EVERY], list(PLACES)[::EVERY], strict=False))
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/teaser.gif"), metavar="FILE")
    parser.add_argument("--pose", metavar="FILE", help="any pose that sample.py takes")
    parser.add_argument("--prompt", nargs="+", default=list(PROMPTS), metavar="TEXT")
    parser.add_argument("--frames", type=int, default=24, metavar="N", help="%(default)s by default")
    parser.add_argument("--stride", type=int, default=5, metavar="N", help="of --pose (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    config = load_config(SampleConfig, CONFIG, [])
    if args.pose is None:
        keypoints = scene_keypoints(POSE_SCENE, range(args.frames), SIZE)
        pose = np.stack([draw_skeleton(people, SIZE, SIZE) for people in keypoints])
    else:
        pose = load_pose(
            args.pose, num_frames=args.frames, stride=args.stride, start=0, height=SIZE, width=SIZE
        )
    pipeline = FollowYourPosePipeline.from_config(config)
    sampling = sampling_params(config, num_frames=args.frames, seed=args.seed)
    clips = [pipeline(prompt, pose, sampling).frames for prompt in args.prompt]
    write_gif(args.out, side_by_side([pose, *clips], ["pose", *args.prompt]), FPS)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_console(main)
