"""Draw the mini world as files that prepare_data.py takes: images with poses, and videos without.

    python scripts/draw_mini_world.py --out runs/mini/drawn [--images 16000] [--videos 2000]

Makes OUT/images (PNG, a skeleton beside each, metadata.csv) and OUT/videos (mp4, metadata.csv). Held-out
pairs and the held-out motion (fyp_jax/data/mini_world/) are not among them. `--sheet FILE` draws an overview
instead: each character before each background.
"""

import argparse
import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fyp_jax.errors import run_cli
from fyp_jax.media.writing import wrap_write_errors, write_mp4, write_png
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.backgrounds import BACKGROUNDS
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.motions import TRAIN_MOTIONS
from fyp_jax.synthetic.scenes import FPS, SIDE, Scene, render_clip, training_scene
from fyp_jax.synthetic.styles import STYLES

VIDEO_FRAMES = 24
FIRST_VIDEO = 10**6
"""Seeds of videos begin here, so that none is an image's."""


def draw_image(folder: Path, seed: int) -> dict[str, str]:
    clip = render_clip(training_scene(seed), 1)
    name, skeleton = f"{seed:06d}.png", f"{seed:06d}.skeleton.png"
    write_png(folder / name, clip.video[0])
    write_png(folder / skeleton, draw_skeleton(clip.keypoints, SIDE, SIDE))
    return {"file_name": name, "text": clip.caption, "skeleton": skeleton}


def draw_video(folder: Path, seed: int) -> dict[str, str]:
    clip, name = render_clip(training_scene(FIRST_VIDEO + seed), VIDEO_FRAMES), f"{seed:06d}.mp4"
    write_mp4(folder / name, clip.video, FPS)
    return {"file_name": name, "text": clip.caption}


def draw_sheet(file: Path) -> None:
    """Rows of characters, columns of backgrounds; styles and motions in turn."""
    rows = []
    for i, character in enumerate(CHARACTERS):
        row = []
        for j, background in enumerate(BACKGROUNDS):
            style = list(STYLES)[(i + j) % len(STYLES)] if j >= len(BACKGROUNDS) // 2 else "none"
            motion = TRAIN_MOTIONS[(3 * i + j) % len(TRAIN_MOTIONS)]
            row.append(render_clip(Scene(character, background, style, motion, 10 * i + j), 1).video[0])
        rows.append(np.concatenate(row, axis=1))
    write_png(file, np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini/drawn"), metavar="DIR")
    parser.add_argument("--images", type=int, default=16000, metavar="N")
    parser.add_argument("--videos", type=int, default=2000, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="only a picture of the world")
    args = parser.parse_args()
    if args.sheet:
        draw_sheet(args.sheet)
        return
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for name, draw, count in (("images", draw_image, args.images), ("videos", draw_video, args.videos)):
            done = pool.map(partial(draw, args.out / name), range(count), chunksize=16)
            rows = list(tqdm(done, name, total=count, unit=""))
            if not rows:
                continue
            with (
                wrap_write_errors(args.out / name / "metadata.csv") as file,
                file.open("w", newline="") as out,
            ):
                table = csv.DictWriter(out, list(rows[0]))
                table.writeheader()
                table.writerows(rows)


if __name__ == "__main__":
    sys.exit(run_cli(main))
