"""Export a checkpoint to formats of PyTorch tools, or to safetensors in the native format.

Any step of any stage can be exported, to one format or several:
    python scripts/export_pytorch.py --checkpoint runs/sd14_motion/checkpoints --out checkpoints \\
        --format followyourpose
    python scripts/export_pytorch.py --checkpoint runs/sd14_pose/checkpoints --out exported \\
        --format diffusers-t2i-adapter diffusers-unet2d --dtype float16 --verify
One format is written to OUT itself, several to OUT/FORMAT. An export goes to the Hugging Face Hub with a
model card, and `FollowYourPosePipeline.from_pretrained("ME/NAME")` loads it again:
    python scripts/export_pytorch.py --checkpoint runs/sd14_motion/checkpoints --out exported \\
        --format pipeline --push-to-hub NAME --private
The formats:
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fyp_jax.checkpoints.inference import open_inference
from fyp_jax.console import run_console
from fyp_jax.convert.export_formats import EXPORT_FORMATS, export_manifest, export_plans
from fyp_jax.convert.hub_upload import CARD, open_repository, upload, without_places
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.model_card import license_of, model_card
from fyp_jax.convert.open_pipeline import base_pipeline, open_pipeline, recorded_options
from fyp_jax.convert.pipeline_folder import PipelineFolder, PipelineOptions
from fyp_jax.convert.verify import TOLERANCE, verify
from fyp_jax.convert.weight_writer import WeightWriter, check_disk_space, check_writable, parse_size
from fyp_jax.errors import UserError, reason

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
    add("--overwrite", action="store_true", help="replace an earlier export, in OUT and on the Hub")
    add(
        "--verify",
        action="store_true",
        help="compare outputs of the exported and the original models; exit status 1 if they differ",
    )
    add("--push-to-hub", metavar="NAME", help="upload the export and its model card to NAME or OWNER/NAME")
    add("--private", action="store_true", help="only you see the repository that --push-to-hub creates")
    add(
        "--model-card",
        action="store_true",
        help="write the model card (README.md) that --push-to-hub uploads",
    )
    add("--license", metavar="ID", help="the Hub's id of the licence (default: that of the base model)")
    add("--metrics", type=Path, metavar="FILE", help="scores.json of evaluate.py, for the model card")
    args = parser.parse_args(argv)
    with_card = args.model_card or args.push_to_hub
    if args.push_to_hub and len(set(args.format)) > 1:
        raise UserError(f"--push-to-hub {args.push_to_hub}: a repository has one format; give one --format")
    if args.private and not args.push_to_hub:
        raise UserError("--private is of --push-to-hub; give that too")
    if (args.license or args.metrics) and not with_card:
        raise UserError("--license and --metrics are of the model card; give --model-card or --push-to-hub")
    return args


def main() -> None:
    """Run export_pytorch.py on the arguments of this process. Raises UserError.

    Exits with status 1 where --verify finds a difference.
    """
    args = parse(sys.argv[1:])
    weights = open_inference(args.checkpoint, args.step)
    checkpoint, with_card = args.checkpoint, args.model_card or args.push_to_hub
    scores = read_scores(args.metrics)
    formats = list(dict.fromkeys(args.format))
    pipeline = find_pipeline(args.pipeline, weights, formats)
    folders = {name: args.out / name if len(formats) > 1 else args.out for name in formats}
    writer = WeightWriter(args.dtype, parse_size(args.max_shard_size))
    license_id = (args.license or license_of(weights, pipeline)) if with_card else ""
    if args.push_to_hub:  # what tells about this machine stays here
        weights = weights._replace(provenance=without_places(weights.provenance))
        checkpoint = Path(checkpoint).name
    plans = export_plans(weights, formats, pipeline)
    for folder in folders.values():
        check_writable(folder, args.overwrite)
    total = sum(writer.total_bytes(plan) for plan in plans.values())
    check_disk_space(args.out, total)
    repository = None
    if args.push_to_hub:
        repository = open_repository(args.push_to_hub, args.private, args.overwrite)
    if with_card:
        name = repository.name if repository else f"OWNER/{args.out.absolute().name}"
        for key, plan in plans.items():
            card = model_card(name, key, weights, pipeline, license_id, args.dtype, *scores)
            plans[key] = plan._replace(text_files={**plan.text_files, CARD: card})
    written = {}
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        writer = dataclasses.replace(writer, on_bytes=bar.update)
        for name, plan in plans.items():
            manifest = export_manifest(weights, name, pipeline)
            manifest |= {"checkpoint": checkpoint, "dtype": args.dtype}
            manifest = without_places(manifest) if repository else manifest
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
    if repository is not None:
        again = f"the export is in {args.out}; the same command with --overwrite sends what has not arrived"
        print(upload(repository, args.out, again), "(private)" if repository.private else "(public)")


def read_scores(file: Path | None) -> tuple[dict[str, Any], str]:
    """The scores of the evaluated model and its variants, and their Markdown table; nothing without a file.

    Raises UserError where the file is not the `scores.json` of evaluate.py.
    """
    if file is None:
        return {}, ""
    from fyp_jax.evaluation.ablations import FULL_MODEL
    from fyp_jax.evaluation.report import table_rows
    from fyp_jax.evaluation.rows import scores_from_json

    try:
        values: dict[str, Any] = json.loads(file.read_text())
        values = {FULL_MODEL: values.pop(FULL_MODEL), **values}
        rows = scores_from_json(values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: not the scores.json of evaluate.py ({reason(error)})") from error
    return values, "\n".join(table_rows(rows))


def find_pipeline(name: str | None, weights: Weights, formats: list[str]) -> PipelineFolder | None:
    """The pipeline `name`, or the one that the weights come from; None where no format needs a pipeline."""
    if not any(EXPORT_FORMATS[each].needs_pipeline for each in formats):
        return None
    if name is not None:
        predicts = weights.provenance.get("prediction_type")
        return open_pipeline(name, options=PipelineOptions(prediction_type=predicts))
    name = base_pipeline(weights.provenance)
    if name is None:
        raise UserError("give --pipeline: the checkpoint does not say which pipeline its UNet belongs to")
    return open_pipeline(name, options=recorded_options(weights.provenance))


def console() -> None:
    """The command fyp-export, and scripts/export_pytorch.py."""
    run_console(main)
