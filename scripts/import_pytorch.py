"""PyTorch weights, and all that export_pytorch.py writes, into an Orbax checkpoint that sample.py takes.

From a Stable Diffusion pipeline (folder or Hub id), its image UNet inflated to clips:
    python scripts/import_pytorch.py --pipeline CompVis/stable-diffusion-v1-4 --out checkpoints/sd14
From a pipeline folder with both stages' weights beside it (our mini model), to train on or to export:
    python scripts/import_pytorch.py --pipeline mini --out checkpoints/mini
From a published Follow Your Pose checkpoint (pytorch_model.bin, and pose_encoder.pth in it or beside it):
    python scripts/import_pytorch.py --checkpoint followyourpose/checkpoint-1000 \\
        --pipeline CompVis/stable-diffusion-v1-4 --out checkpoints/follow_your_pose
With a pose encoder that is a T2I-Adapter of diffusers (folder or Hub id):
    python scripts/import_pytorch.py --pipeline CompVis/stable-diffusion-v1-4 \\
        --pose-encoder TencentARC/t2iadapter_openpose_sd14v1 --out checkpoints/openpose
From safetensors of our own names, which carry their config:
    python scripts/import_pytorch.py --checkpoint exported/safetensors --out checkpoints/again
"""

import argparse
import logging
import sys
from pathlib import Path

import jax

from fyp_jax.checkpoints.inference import check_new_step, save_inference
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.followyourpose_checkpoint import find_pose_encoder, read_followyourpose
from fyp_jax.convert.native_safetensors import is_native, read_native
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.errors import UserError, run_cli
from fyp_jax.models.pose_encoder import init_pose_encoder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pipeline", metavar="NAME", help="folder or Hub id; has the UNet's sizes")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="published, or of our own names; without it, inflate"
    )
    parser.add_argument(
        "--pose-encoder", metavar="NAME", help="pose_encoder.pth, wherever it is, or a T2I-Adapter"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new Orbax checkpoint")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="its step number (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of parameters that start fresh")
    args = parser.parse_args()

    check_new_step(args.out, args.step)
    provenance = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(args).items()
        if key != "out"
    }
    pose = None if args.pose_encoder is None else find_pose_encoder(args.pose_encoder)
    if args.checkpoint is not None and is_native(args.checkpoint):
        config, params, found_provenance = read_native(args.checkpoint)
        provenance = found_provenance | {key: value for key, value in provenance.items() if value is not None}
        params |= read_followyourpose(None, pose, config)
    elif args.pipeline is None:
        raise UserError("give --pipeline: these weights do not say the sizes of their UNet")
    elif args.checkpoint is None:
        folder = PipelineFolder(args.pipeline, parts=("unet",))
        trained = read_delta_weights(folder)
        if trained is not None:
            config, params, found_provenance = trained
            provenance = found_provenance | provenance
        else:
            config = folder.unet_config()
            params = {"unet": folder.inflate_unet(config, args.seed)}
            if pose is None:
                print("The pose encoder starts fresh: its maps are 0 until it is trained.")
        params |= read_followyourpose(None, pose, config)
    else:
        config = PipelineFolder(args.pipeline, parts=()).unet_config()
        params = read_followyourpose(args.checkpoint, pose, config)
    if "pose_encoder" not in params:
        params["pose_encoder"] = init_pose_encoder(config, jax.random.key(args.seed))
    save_inference(args.out, args.step, config, params, provenance)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{args.out}: step {args.step}, {count / 1e6:.1f} M parameters")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(run_cli(main))
