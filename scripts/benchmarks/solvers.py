"""Compare the solvers by the quality of the bundled model's clips at few steps.

    python scripts/benchmark.py solvers [--clips 16] [--steps 4 6 10 20]

The cases are those of scripts/evaluate.py: all solvers get the same scenes, poses and noise. Prints a table;
its columns are explained in docs/synthetic_world.md.
"""

import argparse
import dataclasses

from fyp_jax.diffusion.config import SOLVERS
from fyp_jax.evaluation.ablations import full_model
from fyp_jax.evaluation.scene_set import Kind, make_scene_cases, score_scenes
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 10, 20], help="default: 4 6 10 20")
    parser.add_argument("--spacing", help="timestep_spacing of all solvers; default: each solver's own")
    args = parser.parse_args()

    pipeline = FollowYourPosePipeline.from_pretrained("mini")
    cases = make_scene_cases(args.clips, pipeline.defaults.num_frames, Kind.NAMED)
    print("| solver | steps | pose accuracy | IoU | character, place, style | sharpness | part deviation |")
    print("|---|---|---|---|---|---|---|")
    for solver in SOLVERS:
        for steps in args.steps:
            changes = {"solver": solver, "num_inference_steps": steps, "timestep_spacing": args.spacing}
            sample = full_model(pipeline, dataclasses.replace(pipeline.defaults, **changes))
            scores = score_scenes([sample(case, i) for i, case in enumerate(cases)], cases)
            means = {name: value.mean for name, value in scores._asdict().items() if value is not None}
            cells = (
                *(f"{means[name]:.3f}" for name in ("pose_accuracy", "iou")),
                ", ".join(f"{means[name]:.2f}" for name in ("character", "place", "style")),
                *(f"{means[name]:.2f}" for name in ("sharpness", "part_deviation")),
            )
            print(f"| {solver} | {steps} | {' | '.join(cells)} |", flush=True)
