"""Render the synthetic world to files for prepare_data.py: images with poses, and videos without.

    python scripts/render_synthetic.py --out runs/mini/rendered [--images 16000] [--videos 2000]

Writes OUT/images (PNGs with their skeletons, metadata.csv) and OUT/videos (mp4s, metadata.csv). The pairs and
the motion that are held out of training (fyp_jax/synthetic/) do not occur. `--preview FILE` renders an
overview instead: each character in front of each background. With `--size 128` it shows the world's second
edition, which training renders as it goes (data.path=synthetic://pose_images).
"""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.backgrounds import BACKGROUNDS
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.motions import TRAIN_MOTIONS
from fyp_jax.synthetic.scenes import FPS, SIDE, Scene, render_clip, training_scene
from fyp_jax.synthetic.second import preview
from fyp_jax.synthetic.styles import STYLES

VIDEO_FRAMES = 24
COLOURS = 160
"""Of a preview of the second edition, so that its file is small."""
FIRST_VIDEO = 10**6
"""Seed of the first video; the seeds of images are lower, so that no scene occurs twice."""


def render_image(folder: Path, seed: int) -> dict[str, str]:
    clip = render_clip(training_scene(seed), 1)
    name, skeleton = f"{seed:06d}.png", f"{seed:06d}.skeleton.png"
    write_png(folder / name, clip.video[0])
    write_png(folder / skeleton, draw_skeleton(clip.keypoints, SIDE, SIDE))
    return {"file_name": name, "text": clip.caption, "skeleton": skeleton}


def render_video(folder: Path, seed: int) -> dict[str, str]:
    clip, name = render_clip(training_scene(FIRST_VIDEO + seed), VIDEO_FRAMES), f"{seed:06d}.mp4"
    write_mp4(folder / name, clip.video, FPS)
    return {"file_name": name, "text": clip.caption}


def render_preview(file: Path) -> None:
    """Render an image with a row for each character and a column for each background."""
    rows = []
    for i, character in enumerate(CHARACTERS):
        row = []
        for j, background in enumerate(BACKGROUNDS):
            style = list(STYLES)[(i + j) % len(STYLES)] if j >= len(BACKGROUNDS) // 2 else "none"
            motion = TRAIN_MOTIONS[(3 * i + j) % len(TRAIN_MOTIONS)]
            row.append(render_clip(Scene(character, background, style, motion, 10 * i + j), 1).video[0])
        rows.append(np.concatenate(row, axis=1))
    write_png(file, np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1))


def write_second_preview(file: Path, size: int) -> None:
    """Write an overview of the second edition, with few colours: the file is a quarter as large."""
    colours = Image.fromarray(preview.render_preview(size)).quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
    )
    with wrap_write_errors(file) as path:
        colours.save(path, format="PNG", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mini/rendered"), metavar="DIR")
    parser.add_argument("--images", type=int, default=16000, metavar="N")
    parser.add_argument("--videos", type=int, default=2000, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="render only an overview, as a PNG")
    parser.add_argument(
        "--size", type=int, default=SIDE, metavar="N",
        help=f"pixels of a frame: {SIDE}, or with --preview any multiple of 32, of the second edition",
    )  # fmt: skip
    args = parser.parse_args()
    if args.size != SIDE and not args.preview:
        parser.error("--size is for --preview; training renders the second edition as it goes")
    if args.preview and args.size == SIDE:
        render_preview(args.preview)
        return
    if args.preview:
        write_second_preview(args.preview, args.size)
        return
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for name, render, count in (
            ("images", render_image, args.images),
            ("videos", render_video, args.videos),
        ):
            done = pool.map(partial(render, args.out / name), range(count), chunksize=16)
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
    run_console(main)
