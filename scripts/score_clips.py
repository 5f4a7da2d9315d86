"""Score clips as papers on this task do: CLIP text alignment and frame consistency; PCK and OKS of keypoints.

    python scripts/score_clips.py clip runs/0000 --model openai/clip-vit-large-patch14
    python scripts/score_clips.py keypoints --found found.json --given given.json

`clip` takes folders of sample.py, or mp4 files with their .json record (it has the prompt) beside them. Text
alignment is the mean cosine of a frame's and the prompt's embeddings, frame consistency that of consecutive
frames' (Esser et al. 2023); both times 100. `keypoints` compares two files of the form that sample.py --pose
takes, frame by frame; OKS is COCO's, PCK has a threshold in shares of a person's larger side.
"""

import argparse
import json
from pathlib import Path

from fyp_jax.console import run_console
from fyp_jax.convert.clip_folder import load_clip
from fyp_jax.errors import UserError
from fyp_jax.evaluation.keypoint_metrics import match_people, oks, pck
from fyp_jax.evaluation.statistics import bootstrap_ci, consecutive_cosine
from fyp_jax.media.reading import inspect_video, read_frames
from fyp_jax.pose.keypoints import load_keypoints


def clips_below(path: Path) -> list[Path]:
    """The mp4 files of a run's folder, or the file itself. Raises UserError."""
    files = sorted(path.glob("*.mp4")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: no mp4 is here")
    return files


def prompt_of(clip: Path) -> str:
    """What sample.py wrote beside a clip. Raises UserError."""
    try:
        return str(json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))["prompt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{clip.with_suffix('.json')}: has no prompt ({error!r})") from error


def score_with_clip(args: argparse.Namespace) -> None:
    prompts = {clip: prompt_of(clip) for path in args.clips for clip in clips_below(path)}
    model, params = load_clip(args.model)
    alignments, consistencies = [], []
    print("| clip | prompt | text alignment | frame consistency |\n|---|---|---|---|")
    for clip, prompt in prompts.items():
        frames = inspect_video(clip.read_bytes(), str(clip)).num_frames
        text, pictures = model.embed(params, prompt, read_frames(clip, range(frames)))
        alignments.append(100 * float((pictures @ text).mean()))
        consistency = 100 * consecutive_cosine(pictures) if frames > 1 else float("nan")
        consistencies.append(consistency)
        print(f"| {clip} | {prompt} | {alignments[-1]:.2f} | {consistency:.2f} |")
    if len(prompts) > 1:
        whole = [bootstrap_ci(values) for values in (alignments, consistencies)]
        cells = " | ".join(f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})" for value in whole)
        print(f"| mean | | {cells} |")


def score_keypoints(args: argparse.Namespace) -> None:
    found, given = load_keypoints(args.found), load_keypoints(args.given)
    if len(found.frames) != len(given.frames):
        raise UserError(f"{args.found} has {len(found.frames)} frames, {args.given} {len(given.frames)}")
    scale = [given.width / found.width, given.height / found.height, 1]
    ours, theirs = match_people([people * scale for people in found.frames], given.frames)
    if not len(theirs):
        raise UserError(f"{args.given}: nobody is in it")
    print(f"PCK@{args.share:g}: {pck(ours, theirs, args.share):.4f}")
    print(f"OKS: {oks(ours, theirs):.4f}")
    print(f"persons: {len(theirs)} in {len(given.frames)} frames")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    clip = commands.add_parser("clip", help="CLIP text alignment and frame consistency")
    clip.add_argument("clips", nargs="+", type=Path, metavar="PATH", help="folders of runs, or mp4 files")
    clip.add_argument(
        "--model", default="openai/clip-vit-large-patch14", metavar="NAME", help="folder or Hub id"
    )
    clip.set_defaults(run=score_with_clip)
    keypoints = commands.add_parser("keypoints", help="PCK and OKS between two keypoint files")
    keypoints.add_argument("--found", type=Path, required=True, metavar="FILE", help="seen in a clip")
    keypoints.add_argument("--given", type=Path, required=True, metavar="FILE", help="what it should follow")
    keypoints.add_argument("--share", type=float, default=0.1, metavar="X", help="PCK's (%(default)s)")
    keypoints.set_defaults(run=score_keypoints)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_console(main)
