"""A checkpoint of ours into what PyTorch tools open, or into safetensors of our own names.

Any step of any stage, in one form or several:
    python scripts/export_pytorch.py --checkpoint runs/sd14_motion/checkpoints --out checkpoints \\
        --format followyourpose
    python scripts/export_pytorch.py --checkpoint runs/sd14_pose/checkpoints --out exported \\
        --format diffusers-t2i-adapter diffusers-unet2d --dtype float16 --verify
One form is written into OUT itself, several into OUT/FORM. Forms:
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fyp_jax.checkpoints.inference import open_inference
from fyp_jax.convert.export_formats import EXPORT_FORMATS, manifest, plan
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.verify import TOLERANCE, verify
from fyp_jax.convert.weight_writer import WeightWriter, parse_size, check_disk_space, check_writable
from fyp_jax.errors import UserError, run_cli

ROW = "{:58} {:>7} {:>10} {:>10}"


def main() -> None:
    forms = "\n".join(f"    {name:27} {form.what}" for name, form in EXPORT_FORMATS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}{forms}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Any = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="Orbax checkpoint; gs://... too")
    add("--step", type=int, metavar="N", help="which step of it (default: the newest)")
    add("--format", required=True, nargs="+", choices=EXPORT_FORMATS, metavar="FORM", help="one form or several")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder")
    add("--pipeline", metavar="NAME", help="folder or Hub id with all but the UNet (default: the training's)")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(default: float32)")
    add("--max-shard-size", default="10GB", metavar="SIZE", help="largest file of a model (default: 10GB)")
    add("--overwrite", action="store_true", help="replace what was exported to the same folder before")
    add("--verify", action="store_true", help="run what was written beside ours; status 1 where they differ")
    args = parser.parse_args()

    weights = open_inference(args.checkpoint, args.step)
    forms = list(dict.fromkeys(args.format))
    pipeline = None
    if any(EXPORT_FORMATS[form].wants_pipeline for form in forms):
        name = args.pipeline or weights.provenance.get("pretrained") or weights.provenance.get("pipeline")
        if name is None:
            raise UserError(f"{forms}: give --pipeline, as the checkpoint does not say which was used")
        pipeline = PipelineFolder(name)
    folders = {form: args.out / form if len(forms) > 1 else args.out for form in forms}
    writer = WeightWriter(args.dtype, parse_size(args.max_shard_size))
    contents = plan(weights, forms, pipeline)
    for form in forms:
        check_writable(folders[form], args.overwrite)
    total = sum(writer.total_bytes(content) for content in contents.values())
    check_disk_space(args.out, total)
    written, different = {}, False
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        writer = dataclasses.replace(writer, on_bytes=bar.update)
        for form, content in contents.items():
            about = {**manifest(weights, form, pipeline), "checkpoint": args.checkpoint, "dtype": args.dtype}
            written[form] = writer.write_folder(content, folders[form], about, args.overwrite)
    print(ROW.format("file", "arrays", "parameters", "bytes"))
    for form, files in written.items():
        for file in files:
            name = str(folders[form] / file.name)
            print(ROW.format(name, len(file.arrays), file.parameters, file.bytes))
    for form in forms if args.verify else ():
        for difference in verify(form, folders[form], weights, pipeline, args.dtype):
            print(f"{form}: largest difference {difference.largest:.1e} of {difference.what}", flush=True)
            different |= difference.largest > TOLERANCE
    if different:
        sys.exit(1)


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
