"""Render the synthetic world to files for prepare_data.py: images with poses, and videos without.

    python scripts/render_synthetic.py --out runs/mini/rendered [--images 16000] [--videos 2000] [--size 128]

Writes OUT/images (PNGs with their skeletons, metadata.csv) and OUT/videos (mp4s, metadata.csv). The pairs and
the motion that are held out of training (fyp_jax/synthetic/) do not occur. Training needs no such files: it
renders as it goes (data.path=synthetic://pose_images). `--preview FILE` renders an overview instead, as a
PNG: places and characters, open characters, pans, and people together.
"""

import argparse
import csv
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.preview import render_preview
from fyp_jax.synthetic.scenes import FPS, SIZE, check_size, render_clip, training_scene

VIDEO_FRAMES = 24
COLOURS = 160
"""Of a preview, so that its file is small."""
FIRST_VIDEO = 10**6
"""Seed of the first video; the seeds of images are lower, so that no scene occurs twice."""


def render_image(folder: Path, size: int, seed: int) -> dict[str, str]:
    clip = render_clip(training_scene(seed), 1, size)
    name, skeleton = f"{seed:06d}.png", f"{seed:06d}.skeleton.png"
    write_png(folder / name, clip.video[0])
    write_png(folder / skeleton, draw_skeleton(clip.keypoints[0], size, size))
    return {"file_name": name, "text": clip.caption, "skeleton": skeleton}


def render_video(folder: Path, size: int, seed: int) -> dict[str, str]:
    clip, name = render_clip(training_scene(FIRST_VIDEO + seed), VIDEO_FRAMES, size), f"{seed:06d}.mp4"
    write_mp4(folder / name, clip.video, FPS)
    return {"file_name": name, "text": clip.caption}


def write_preview(file: Path, size: int) -> None:
    """Write an overview of the world with few colours: the file is a quarter as large."""
    colours = Image.fromarray(render_preview(size)).quantize(
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
        "--size",
        type=int,
        default=SIZE,
        metavar="N",
        help="pixels a side, a multiple of 32 (%(default)s)",
    )
    args = parser.parse_args()
    check_size(args.size)
    if args.preview:
        write_preview(args.preview, args.size)
        return
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        for name, render, count in (
            ("images", render_image, args.images),
            ("videos", render_video, args.videos),
        ):
            done = pool.map(partial(render, args.out / name, args.size), range(count), chunksize=16)
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
