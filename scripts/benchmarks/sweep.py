"""Compare values of a sampling field by the quality of the bundled model's clips.

    python scripts/benchmark.py sweep --field guidance_scale --values 1,3,5,7 --clips 8

The cases are those of scripts/evaluate.py, which training never saw. All values get the same scenes, poses
and noise. Prints a table with a row for each value: means over clips with 95% intervals, whose columns
docs/synthetic_world.md explains. A second table has the differences from the first value, clip by clip.
Other fields are those of configs/mini/sample.yaml, or a.b=c.
"""

import argparse
import sys

from fyp_jax.config import load_config, override_config
from fyp_jax.console import run_console
from fyp_jax.errors import UserError
from fyp_jax.evaluation.ablations import full_model
from fyp_jax.evaluation.overrides import OF_A_CASE, check_used
from fyp_jax.evaluation.report import difference_rows, table_rows
from fyp_jax.evaluation.scene_set import Kind, SceneScores, make_scene_cases, score_scenes
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SAMPLING_FIELDS, sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

CONFIG = "configs/mini/sample.yaml"
SWEPT = tuple(name for name in SAMPLING_FIELDS if name not in ("num_frames", *OF_A_CASE))


def main() -> None:
    run_console(sweep)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[SampleConfig]]:
    """The arguments, and a config for each value. Raises UserError for a field or a value that makes no
    clip."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--field", required=True, metavar="NAME", help=f"one of {', '.join(SWEPT)}")
    add("--values", required=True, metavar="A,B,...", help="values of the field")
    add("--clips", type=int, default=8, metavar="N", help="clips of each value (%(default)s)")
    add("overrides", nargs="*", metavar="a.b=c", help="other fields of sample.py's config")
    args = parser.parse_intermixed_args(argv)
    if args.field not in SWEPT:
        raise UserError(f"--field {args.field}: the fields are {', '.join(SWEPT)}")
    if args.clips < 1:
        raise UserError(f"--clips {args.clips} must be at least 1")
    args.values = [text.strip() for text in args.values.split(",")]
    if repeated := [text for text in args.values if args.values.count(text) > 1]:
        raise UserError(f"--values: {repeated[0]} is there twice")
    check_used(args.overrides, "mesh")
    config = load_config(SampleConfig, CONFIG, ["prompt=[any]", *args.overrides])
    configs = [override_config(config, [f"{args.field}={text}"]) for text in args.values]
    for each in configs:
        each.check()
    return args, configs


def sweep() -> None:
    """Run the benchmark on the arguments of this process. Raises UserError."""
    args, configs = parse(sys.argv[1:])
    pipeline = FollowYourPosePipeline.from_config(configs[0])
    cases = make_scene_cases(args.clips, configs[0].num_frames, Kind.NAMED)
    results: dict[str, SceneScores] = {}
    for text, config in zip(args.values, configs, strict=True):
        sample = full_model(pipeline, sampling_params(config))
        videos = [sample(case, number) for number, case in enumerate(cases)]
        results[f"{args.field}={text}"] = score_scenes(videos, cases)
        *header, line = table_rows({name: results[name] for name in list(results)[-1:]})
        print("\n".join([line] if len(results) > 1 else [*header, line]), flush=True)
    first, *others = results
    if others:
        print("", *difference_rows(results, dict.fromkeys(others, first)), sep="\n")
