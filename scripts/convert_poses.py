"""Turn keypoints of other tools into a keypoint file that sample.py reads, and print what was understood.

    python scripts/convert_poses.py openpose_json/ dance.json --size 1280x720

IN is a JSON file, or a folder with a JSON file for each frame. Known by their content are OpenPose (BODY_25,
COCO-18), ControlNet and DWPose, MMPose, AlphaPose, COCO results and annotations, MediaPipe's 33 landmarks,
Ultralytics, and our own form. `sample.py --pose` takes the same files; this script is to look at them first.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.pose.keypoints import KeypointClip, save_keypoints
from fyp_jax.pose.reading import load_keypoints
from fyp_jax.pose.skeleton import JOINTS, MIN_CONFIDENCE

MAX_LISTED = 8


def outline(clip: KeypointClip) -> Iterator[str]:
    """Lines that say what was understood of a clip."""
    counts = [len(people) for people in clip.frames]
    yield f"form: {clip.form}"
    yield f"size: {clip.width}x{clip.height}"
    yield f"frames: {len(clip.frames)}"
    least, most = min(counts), max(counts)
    yield f"people: {least if least == most else f'{least} to {most}'} in each frame, {sum(counts)} in all"
    if least == 0:
        yield f"frames without anybody: {listed([i for i, count in enumerate(counts) if count == 0])}"
    people = np.concatenate(clip.frames)
    missing = (people[..., 2] < MIN_CONFIDENCE).sum(axis=0)
    always = [name for name, count in zip(JOINTS, missing, strict=True) if count == len(people)]
    sometimes = [
        f"{name} ({count} of {len(people)})"
        for name, count in zip(JOINTS, missing, strict=True)
        if 0 < count < len(people)
    ]
    yield f"joints missing in all people: {', '.join(always) or 'none'}"
    yield f"joints missing in some people: {', '.join(sometimes) or 'none'}"
    yield from (f"note: {note}" for note in clip.notes)


def listed(frames: list[int]) -> str:
    more = f", and {len(frames) - MAX_LISTED} more" if len(frames) > MAX_LISTED else ""
    return ", ".join(map(str, frames[:MAX_LISTED])) + more


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN", type=Path, help="keypoint file, or folder of one per frame")
    parser.add_argument("out", metavar="OUT.json", type=Path, help="keypoint file to write")
    parser.add_argument(
        "--size", metavar="WIDTHxHEIGHT", help="size of the film, where the keypoints do not say it"
    )
    args = parser.parse_args()
    if args.out.suffix.lower() != ".json":
        raise UserError(f"{args.out}: the name of the file to write must end with .json")
    clip = load_keypoints(args.source, args.size)
    if not any(len(people) for people in clip.frames):
        raise UserError(f"{args.source}: is {clip.form} with {len(clip.frames)} frames, and nobody is in it")
    if args.out.resolve() == args.source.resolve() or args.source.resolve() in args.out.resolve().parents:
        raise UserError(f"{args.out}: is the source, or in its folder; write to another place")
    for line in outline(clip):
        print(line)
    save_keypoints(args.out, clip)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_console(main)
