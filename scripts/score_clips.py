"""Score clips with published metrics: CLIP text alignment and frame consistency; PCK and OKS of keypoints.

    python scripts/score_clips.py clip runs/0000 --model openai/clip-vit-large-patch14
    python scripts/score_clips.py keypoints --pred pred.json --target target.json

`clip` takes folders of sample.py, or mp4 files beside their .json record, which holds the prompt. Text
alignment is the mean cosine of the embeddings of frame and prompt, frame consistency that of consecutive
frames (Esser et al. 2023); both are multiplied by 100. `keypoints` compares two keypoint files, in the format
of sample.py --pose, frame by frame, with COCO's OKS and with PCK.
"""

import argparse
import json
from pathlib import Path

from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.evaluation.clip_measures import clip_scores
from fyp_jax.evaluation.clip_score import load_clip
from fyp_jax.evaluation.keypoint_metrics import match_people, oks, pck
from fyp_jax.evaluation.statistics import bootstrap_ci
from fyp_jax.media.reading import inspect_video, read_frames
from fyp_jax.pose.reading import load_keypoints


def find_clips(path: Path) -> list[Path]:
    """The mp4 files of a run's folder, or the file itself. Raises UserError."""
    files = sorted(path.glob("*.mp4")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{path}: no mp4 file is here")
    return files


def prompt_of(clip: Path) -> str:
    """The prompt in the record that sample.py wrote beside a clip. Raises UserError."""
    try:
        return str(json.loads(clip.with_suffix(".json").read_text(encoding="utf-8"))["prompt"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{clip.with_suffix('.json')}: has no prompt ({error!r})") from error


def score_with_clip(args: argparse.Namespace) -> None:
    prompts = {clip: prompt_of(clip) for path in args.clips for clip in find_clips(path)}
    model, params = load_clip(args.model)
    alignments, consistencies = [], []
    print("| clip | prompt | text alignment | frame consistency |\n|---|---|---|---|")
    for clip, prompt in prompts.items():
        frames = inspect_video(clip.read_bytes(), str(clip)).num_frames
        text, images = model.embed(params, prompt, read_frames(clip, range(frames)))
        alignment, consistency = clip_scores(text, images)
        alignments.append(alignment)
        consistencies.append(float("nan") if consistency is None else consistency)
        print(f"| {clip} | {prompt} | {alignment:.2f} | {consistencies[-1]:.2f} |")
    if len(prompts) > 1:
        means = [bootstrap_ci(values) for values in (alignments, consistencies)]
        cells = " | ".join(f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})" for value in means)
        print(f"| mean | | {cells} |")


def score_keypoints(args: argparse.Namespace) -> None:
    pred, target = load_keypoints(args.pred), load_keypoints(args.target)
    if len(pred.frames) != len(target.frames):
        raise UserError(f"{args.pred} has {len(pred.frames)} frames, {args.target} {len(target.frames)}")
    scale = [target.width / pred.width, target.height / pred.height, 1]
    matched, people = match_people([frame * scale for frame in pred.frames], target.frames)
    if not len(people):
        raise UserError(f"{args.target}: holds no person")
    print(f"PCK@{args.threshold:g}: {pck(matched, people, args.threshold):.4f}")
    print(f"OKS: {oks(matched, people):.4f}")
    print(f"people: {len(people)} in {len(target.frames)} frames")


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
    add = keypoints.add_argument
    add("--pred", type=Path, required=True, metavar="FILE", help="keypoints that were detected in the clip")
    add("--target", type=Path, required=True, metavar="FILE", help="keypoints that the clip should follow")
    add(
        "--threshold", type=float, default=0.1, metavar="X",
        help="PCK's threshold, as a fraction of a person's larger side (%(default)s)",
    )  # fmt: skip
    keypoints.set_defaults(run=score_keypoints)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    run_console(main)
