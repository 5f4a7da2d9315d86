"""How well the bundled model follows poses of your own: skeleton videos, keypoint files, bundled clips.

    python scripts/evaluate_poses.py dance films/one.mov
    python scripts/evaluate_poses.py one.mov two.mp4 three.json --num-clips 8 --picture runs/poses.png

prints a table with a row for each pose file: the fraction of the skeletons' lines on which the sampled clips
show a figure, and the same fraction for the lines of the next file, which is the level of chance. Each clip
is another window of the file, with another caption. --picture FILE shows the first clip of each file.
"""

import argparse
from pathlib import Path

from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.evaluation.ablations import full_model
from fyp_jax.evaluation.overrides import check_used
from fyp_jax.evaluation.pose_files import pose_windows, score_pose_files
from fyp_jax.media.images import Frames, image_grid
from fyp_jax.media.writing import write_png
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

CONFIG = "configs/mini/sample.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("poses", nargs="+", metavar="POSE", help="a pose, as --pose of sample.py; at least two")
    add("--num-clips", type=int, default=4, metavar="N", help="clips of each pose (%(default)s)")
    add("--frames", type=int, default=8, metavar="N", help="frames of each clip (%(default)s)")
    add("--stride", type=int, default=4, metavar="N", help="take every N-th frame of a pose (%(default)s)")
    add("--picture", type=Path, metavar="FILE", help="a PNG of the first clip of each pose")
    add("--override", action="append", default=[], metavar="a.b=c", help="a field of sample.py's config")
    args = parser.parse_args()
    if args.num_clips < 1 or args.frames < 1:
        raise UserError("give at least one clip (--num-clips) of at least one frame (--frames)")
    check_used(args.override, "num_frames")  # --frames says it
    config = load_config(SampleConfig, CONFIG, args.override)
    windows = pose_windows(args.poses, args.num_clips, args.frames, args.stride)
    pipeline = FollowYourPosePipeline.from_config(config)
    sample = full_model(pipeline, sampling_params(config))
    rows: list[Frames] = []
    print("| pose | accuracy | on the next pose |\n|---|---|---|", flush=True)
    for (name, scores, clips), given in zip(score_pose_files(windows, sample), windows.values(), strict=True):
        cells = (x and f"{x.mean:.3f} ({x.low:.3f} to {x.high:.3f})" for x in scores)
        print(f"| {name} | " + " | ".join(cell or "" for cell in cells) + " |", flush=True)
        rows += [given[0].pose_images, clips[0]]
    if args.picture is not None:
        write_png(args.picture, image_grid(rows))


if __name__ == "__main__":
    run_console(main)
