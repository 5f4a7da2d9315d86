"""Export a checkpoint to formats of PyTorch tools, or to safetensors in the native format.

Any step of any stage can be exported, to one format or several:
    python scripts/export_pytorch.py --checkpoint runs/sd14_motion/checkpoints --out checkpoints \\
        --format followyourpose
    python scripts/export_pytorch.py --checkpoint runs/sd14_pose/checkpoints --out exported \\
        --format diffusers-t2i-adapter diffusers-unet2d --dtype float16 --verify
One format is written to OUT itself, several to OUT/FORMAT. The formats:
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fyp_jax.checkpoints.inference import open_inference
from fyp_jax.console import run_console
from fyp_jax.convert.export_formats import EXPORT_FORMATS, export_manifest, export_plans
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.open_pipeline import open_pipeline, recorded_options
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.verify import TOLERANCE, verify
from fyp_jax.convert.weight_writer import WeightWriter, check_disk_space, check_writable, parse_size
from fyp_jax.errors import UserError
from fyp_jax.pipeline.loading import base_pipeline

ROW = "{:58} {:>7} {:>10} {:>10}"


def parse(argv: list[str]) -> argparse.Namespace:
    formats = "\n".join(f"    {name:27} {x.description}" for name, x in EXPORT_FORMATS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}{formats}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="Orbax checkpoint, also gs://...")
    add("--step", type=int, metavar="N", help="step of the checkpoint (default: the latest)")
    add("--format", required=True, nargs="+", choices=EXPORT_FORMATS, metavar="FORMAT", help="see above")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    add(
        "--pipeline",
        metavar="NAME",
        help="pipeline folder, Hub id or bundled model with all but the UNet (default: the one of training)",
    )
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(default: float32)")
    add("--max-shard-size", default="10GB", metavar="SIZE", help="largest weight file (default: 10GB)")
    add("--overwrite", action="store_true", help="replace an earlier export in the same folder")
    add(
        "--verify",
        action="store_true",
        help="compare outputs of the exported and the original models; exit status 1 if they differ",
    )
    return parser.parse_args(argv)


def main() -> None:
    """Run export_pytorch.py on the arguments of this process. Raises UserError.

    Exits with status 1 where --verify finds a difference.
    """
    args = parse(sys.argv[1:])
    weights = open_inference(args.checkpoint, args.step)
    formats = list(dict.fromkeys(args.format))
    pipeline = find_pipeline(args.pipeline, weights, formats)
    folders = {name: args.out / name if len(formats) > 1 else args.out for name in formats}
    writer = WeightWriter(args.dtype, parse_size(args.max_shard_size))
    plans = export_plans(weights, formats, pipeline)
    for folder in folders.values():
        check_writable(folder, args.overwrite)
    total = sum(writer.total_bytes(plan) for plan in plans.values())
    check_disk_space(args.out, total)
    written = {}
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        writer = dataclasses.replace(writer, on_bytes=bar.update)
        for name, plan in plans.items():
            manifest = export_manifest(weights, name, pipeline)
            manifest |= {"checkpoint": args.checkpoint, "dtype": args.dtype}
            written[name] = writer.write_folder(plan, folders[name], manifest, args.overwrite)
    print(ROW.format("file", "arrays", "parameters", "bytes"))
    for name, files in written.items():
        for file in files:
            path = str(folders[name] / file.name)
            print(ROW.format(path, len(file.arrays), file.parameters, file.bytes))
    verified = True
    for name in formats if args.verify else ():
        for result in verify(name, folders[name], weights, pipeline, args.dtype):
            print(f"{name}: largest relative error {result.error:.1e} in {result.output}", flush=True)
            verified &= result.error <= TOLERANCE
    if not verified:
        sys.exit(1)


def find_pipeline(name: str | None, weights: Weights, formats: list[str]) -> PipelineFolder | None:
    """The pipeline `name`, or the one that the weights come from; None where no format needs a pipeline."""
    if not any(EXPORT_FORMATS[each].needs_pipeline for each in formats):
        return None
    if name is not None:
        return open_pipeline(name)
    name = base_pipeline(weights.provenance)
    if name is None:
        raise UserError("give --pipeline: the checkpoint does not say which pipeline its UNet belongs to")
    return open_pipeline(name, options=recorded_options(weights.provenance))


def console() -> None:
    """The command fyp-export, and scripts/export_pytorch.py."""
    run_console(main)
