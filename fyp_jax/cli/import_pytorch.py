"""Import PyTorch weights, or an export of export_pytorch.py, into a checkpoint for sample.py and train.py.

A Stable Diffusion pipeline (a folder or a Hub id); its image UNet is inflated to clips:
    python scripts/import_pytorch.py --pipeline CompVis/stable-diffusion-v1-4 --out checkpoints/sd14
A pipeline folder with delta weights, such as the bundled model:
    python scripts/import_pytorch.py --pipeline mini --out checkpoints/mini
A single file, as model sites have it; one of Stable Diffusion 2.x also needs --prediction-type:
    python scripts/import_pytorch.py --pipeline v1-5-pruned.safetensors --tokenizer FOLDER \\
        --out checkpoints/sd15
A pipeline folder that Follow Your Pose or Tune-A-Video has trained, with a video UNet:
    python scripts/import_pytorch.py --pipeline outputs/my_video --out checkpoints/my_video
A published Follow Your Pose checkpoint (pytorch_model.bin, with pose_encoder.pth in its folder or beside it):
    python scripts/import_pytorch.py --checkpoint followyourpose/checkpoint-1000 \\
        --pipeline CompVis/stable-diffusion-v1-4 --out checkpoints/follow_your_pose
A pose encoder that is a T2I-Adapter of diffusers (a folder or a Hub id):
    python scripts/import_pytorch.py --pipeline CompVis/stable-diffusion-v1-4 \\
        --pose-encoder TencentARC/t2iadapter_openpose_sd14v1 --out checkpoints/openpose
Safetensors in the native format, which hold their config:
    python scripts/import_pytorch.py --checkpoint exported/safetensors --out checkpoints/again
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import jax

from fyp_jax.checkpoints.inference import check_new_step, save_inference
from fyp_jax.console import run_console
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.followyourpose_checkpoint import (
    find_checkpoint,
    find_pose_encoder,
    read_followyourpose,
)
from fyp_jax.convert.native_safetensors import is_native, read_native
from fyp_jax.convert.open_pipeline import check_prediction_type, open_pipeline, options_of
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder
from fyp_jax.convert.video_pipeline import read_video_pipeline, video_provenance
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.pose_encoder import init_pose_encoder
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.pipeline.config import (
    PREDICTION_TYPE_HELP,
    TOKENIZER_HELP,
    VARIANT_HELP,
    SampleConfig,
)
from fyp_jax.pipeline.programs import make_programs


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pipeline", metavar="NAME", help="pipeline folder, Hub id, bundled model or single file")
    add("--checkpoint", metavar="DIR", help="published checkpoint or native safetensors, also on the Hub")
    add("--pose-encoder", metavar="NAME", help="path of a pose_encoder.pth, or a T2I-Adapter")
    add("--variant", metavar="NAME", help=VARIANT_HELP)
    add("--tokenizer", metavar="NAME", help=TOKENIZER_HELP.replace("null", "none"))
    add("--prediction-type", metavar="NAME", help=PREDICTION_TYPE_HELP.replace("null", "none"))
    add("--out", type=Path, required=True, metavar="DIR", help="Orbax checkpoint to write to")
    add("--step", type=int, default=0, metavar="N", help="step number of the checkpoint (default: 0)")
    add("--seed", type=int, default=0, metavar="N", help="seed for untrained parameters (default: 0)")
    return parser.parse_args(argv)


def main() -> None:
    """Run import_pytorch.py on the arguments of this process. Raises UserError."""
    args = parse(sys.argv[1:])
    check_new_step(args.out, args.step)
    config, params, provenance = read_weights(args)
    save_inference(args.out, args.step, config, params, provenance)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{args.out}: step {args.step}, {count / 1e6:.1f} M parameters")


def read_weights(args: argparse.Namespace) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The UNet's config, the parameters of all models, and their provenance."""
    provenance = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key != "out"
    }
    pose_file = None if args.pose_encoder is None else find_pose_encoder(args.pose_encoder)
    folder = None
    if args.pipeline is not None:
        parts = PARTS_WITH_WEIGHTS if args.checkpoint is None else ENCODERS
        folder = open_pipeline(args.pipeline, parts, options_of(args))
    checkpoint = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
    if checkpoint is not None and is_native(checkpoint):
        config, params, earlier = read_native(checkpoint)
        provenance = (earlier if folder is None else _without_base(earlier)) | _given(provenance)
        params |= read_followyourpose(None, pose_file, config)
    elif folder is None:
        raise UserError("give --pipeline: these weights do not contain the config of their UNet")
    elif checkpoint is None:
        config, params, earlier = read_pipeline(folder, args.seed)
        predicts = folder.schedule().prediction_type
        check_prediction_type(earlier, predicts, folder.name)
        provenance = _without_base(earlier) | _given(provenance)
        params |= read_followyourpose(None, pose_file, config)
        if "pose_encoder" not in params:
            print("The pose encoder is untrained: poses have no effect until it is trained.")
    else:
        config = folder.unet_config()
        params = read_followyourpose(checkpoint, pose_file, config, args.variant)
    if "pose_encoder" not in params:
        params["pose_encoder"] = init_pose_encoder(config, jax.random.key(args.seed))
    if folder is not None:
        check_pipeline(folder, config)
    return config, params, provenance


def _without_base(earlier: dict[str, Any]) -> dict[str, Any]:
    """The provenance of weights without the pipeline that they were trained on: another one is their base.
    What they predict stays theirs."""
    return {key: x for key, x in earlier.items() if key not in ("pretrained", "variant", "tokenizer")}


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def read_pipeline(folder: PipelineFolder, seed: int) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The UNet's config, the parameters that a pipeline alone has, and what is known of their provenance."""
    trained = read_delta_weights(folder)
    if trained is not None:
        return trained
    video = read_video_pipeline(folder)
    if video is not None:
        return *video, video_provenance(folder)
    config = folder.unet_config()
    return config, {"unet": folder.inflate_unet(config, seed)}, {}


def check_pipeline(folder: PipelineFolder, config: UNet3DConfig) -> None:
    """Raise UserError unless all is there that sampling needs beside UNet and pose encoder, and fits them."""
    encoders = folder.latent_encoders()
    folder.check_encoders(encoders)
    make_programs(SampleConfig(), encoders, folder.schedule(), config, mesh=None)


def console() -> None:
    """The command fyp-import, and scripts/import_pytorch.py."""
    run_console(main)
