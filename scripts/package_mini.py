"""Round the weights of the bundled model to float16, and write them as the package ships them.

    python scripts/package_mini.py --image runs/mini/image/checkpoints --pose runs/mini/pose/checkpoints \\
        --motion runs/mini/motion/checkpoints --decoder runs/mini/decoder/checkpoints \\
        --out fyp_jax/assets/models/mini

OUT becomes a pipeline folder (VAE, text encoder, image UNet, tokenizer, scheduler) in the diffusers layout,
with follow_your_pose.safetensors (the pose encoder, temporal layers and trained queries) and
sampling_params.json (the sampling options that suit the model). Tokenizer and scheduler are those of
configs/mini/pipeline, sampling options those of configs/mini/sample.yaml. Without --decoder, the VAE is that
of the image stage.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import yaml

from fyp_jax.checkpoints.inference import load_inference
from fyp_jax.console import run_console
from fyp_jax.convert.delta_weights import delta_weights
from fyp_jax.convert.folders import SAMPLING_DEFAULTS
from fyp_jax.convert.lazy import to_lazy_tree
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder, pipeline_state_dicts
from fyp_jax.convert.weight_writer import WeightWriter
from fyp_jax.pipeline.params import SamplingParams

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "mini"
OF_THE_CLIP = ("num_frames", "height", "width", "seed")
"""Fields of SamplingParams that are not the model's."""


def sampling_defaults() -> dict[str, object]:
    """The sampling options of configs/mini/sample.yaml."""
    config = yaml.safe_load((CONFIGS / "sample.yaml").read_text())
    names = [field.name for field in dataclasses.fields(SamplingParams) if field.name not in OF_THE_CLIP]
    return {name: config[name] for name in names if name in config}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, required=True, metavar="DIR", help="checkpoints: text-to-image")
    parser.add_argument("--pose", type=Path, required=True, metavar="DIR", help="checkpoints: pose stage")
    parser.add_argument("--motion", type=Path, required=True, metavar="DIR", help="checkpoints: motion stage")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="checkpoints: decoder stage")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder to be replaced")
    args = parser.parse_args()
    folder = PipelineFolder(str(CONFIGS / "pipeline"), parts=())
    _, image, _ = load_inference(args.image)
    _, pose, pose_provenance = load_inference(args.pose)
    _, motion, provenance = load_inference(args.motion)
    encoders = {part: image[part] for part in PARTS_WITH_WEIGHTS}
    if args.decoder is not None:
        encoders["vae"] = load_inference(args.decoder)[1]["vae"]
    # Each model comes from the run that trained it: the motion stage passes the pose encoder on unchanged.
    params = {"unet": motion["unet"], "pose_encoder": pose["pose_encoder"]}
    parts = delta_weights(params, image["unet"], jnp.float16, {"motion": provenance, "pose": pose_provenance})
    weights = pipeline_state_dicts(to_lazy_tree(encoders))
    plan = folder.export_plan(weights, {})
    defaults = {SAMPLING_DEFAULTS: json.dumps(sampling_defaults(), indent=2) + "\n"}
    plan = plan._replace(weights=[*plan.weights, parts], text_files={**plan.text_files, **defaults})
    with tempfile.TemporaryDirectory(dir=args.out.parent) as place:
        written = WeightWriter(jnp.float16).write_folder(
            plan, Path(place) / "mini", {"step": provenance["step"]}
        )
        if args.out.exists():
            args.out.rename(Path(place) / "before")
        (Path(place) / "mini").rename(args.out)
    for file in written:
        print(f"{args.out / file.name}: {file.parameters / 1e6:.2f} M parameters, {file.bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    run_console(main)
