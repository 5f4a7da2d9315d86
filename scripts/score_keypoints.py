"""Compare two keypoint files frame by frame: PCK, and COCO's OKS.

    python scripts/score_keypoints.py --pred pred.json --target target.json

Both are in a format that sample.py --pose takes. A person of the target is compared with the most similar
one of the prediction. `evaluate.py --clips DIR` finds the poses of clips itself, and has other scores, too.
"""

import argparse
from pathlib import Path

from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.evaluation.keypoint_metrics import match_people, oks, pck
from fyp_jax.pose.reading import load_keypoints


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pred", type=Path, required=True, metavar="FILE", help="keypoints that were detected in the clip")
    add("--target", type=Path, required=True, metavar="FILE", help="keypoints that the clip should follow")
    add(
        "--threshold", type=float, default=0.1, metavar="X",
        help="PCK's threshold, as a fraction of a person's larger side (%(default)s)",
    )  # fmt: skip
    args = parser.parse_args()
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


if __name__ == "__main__":
    run_console(main)
