"""Write the bundled clips that edit.py and Tune-A-Video start from, as drawings of the synthetic world.

    python scripts/render_bundled_clips.py

Writes robot.mp4, a robot that dances on the beach, with its keypoints in robot.json, and waving.mp4, a man
who waves in the park: 8 frames each, of 128x128 pixels.
"""

import argparse
import json
from pathlib import Path

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.writing import write_mp4
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import FIRST_HELD_OUT_SEED, FPS, SIZE, Scene, render_clip, training_scene

FRAMES = 8
ROBOT = Scene(("robot",), "beach", "none", HELD_OUT_MOTION, FIRST_HELD_OUT_SEED, pan=0.0)
WAVING = training_scene(200_000_020)


def main() -> None:
    assets = Path(__file__).resolve().parents[1] / "fyp_jax" / "assets" / "clips"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=assets, metavar="DIR", help="default: the bundled ones")
    args = parser.parse_args()
    robot, waving = (render_clip(scene, FRAMES) for scene in (ROBOT, WAVING))
    write_mp4(args.out / "robot.mp4", robot.video, FPS)
    write_mp4(args.out / "waving.mp4", waving.video, FPS)
    document = {"width": SIZE, "height": SIZE, "fps": FPS, "frames": robot.keypoints.round(2).tolist()}
    with wrap_write_errors(args.out / "robot.json") as file:
        file.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    run_console(main)
