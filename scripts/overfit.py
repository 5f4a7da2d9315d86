"""The motion stage learns one clip by heart: is what trains enough, and does sampling undo training?

    python scripts/overfit.py --out runs/overfit

Fits a mini VAE to the clip, draws an image UNet that stays as it is, trains the motion stage of
configs/mini/overfit.yaml on the clip alone (train.py goes on where it was stopped), samples with the caption
and no pose, and writes OUT/overfit.png: the clip above, the sample below.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image, ImageFilter

from fyp_jax.checkpoint import inference_shapes
from fyp_jax.config import SampleConfig, load_config
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.data.prepare import prepare
from fyp_jax.errors import exit_status
from fyp_jax.media.pose import PoseConfig, load_pose, pose_path
from fyp_jax.media.video import contact_sheet, fit, read_frames, write_mp4, write_png
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.sampling import load_sampler
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import read_metrics
from fyp_jax.training.loop import train

UNET = {
    "block_out_channels": [128, 128],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
"""Wide rather than deep: what trains has to undo the drawn 3x3 convolution behind it, for which it needs more
channels than 9 taps of 4 latents have."""
WALL, THICKNESS = (64, 90, 150), 7
CAPTION = "A skeleton dances before a wall"
CONFIG = Path(__file__).parent.parent / "configs" / "mini" / "overfit.yaml"


def our_clip(config: TrainConfig) -> np.ndarray:
    """Our own skeleton clip with thick limbs before a wall; uint8 [frames, height, width, 3]."""
    size = {"height": config.data.height, "width": config.data.width}
    skeleton = load_pose(pose_path("dance"), frames=config.data.frames, stride=10, start=0, **size)
    pictures = [Image.fromarray(np.round(frame * 255).astype(np.uint8)) for frame in skeleton]
    thick = np.stack([np.asarray(picture.filter(ImageFilter.MaxFilter(THICKNESS))) for picture in pictures])
    return np.where(thick.max(axis=-1, keepdims=True) > 60, thick, np.array(WALL, np.uint8))


def fit_vae(folder: PipelineFolder, clip: np.ndarray, steps: int) -> tuple[dict[str, Any], float]:
    """Weights of all three models, those of the VAE fitted to the clip, and 1 / the spread of its latents."""
    models = folder.frozen_models()
    unet_config = UNet3DConfig.from_json(folder.json("unet") | UNET)
    params = random_params(inference_shapes(unet_config) | models.shapes(), seed=0)
    video = jnp.asarray(clip, jnp.float32)[None] / 127.5 - 1
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jax.jit
    def step(vae: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(vae: Any) -> jax.Array:
            latents = models.encode_images({"vae": vae}, video)
            noise = 0.05 * jnp.std(latents) * jax.random.normal(key, latents.shape)
            again = models.decode_latents({"vae": vae}, latents + noise, chunk=len(clip))
            return jnp.mean(jnp.square(again - video))

        value, gradient = jax.value_and_grad(loss)(vae)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(vae, updates), state, value

    vae, state, value = params["vae"], optimizer.init(params["vae"]), jnp.inf
    for key in jax.random.split(jax.random.key(0), steps):
        vae, state, value = step(vae, state, key)
    print(f"VAE: mean squared error {float(value):.4f} of pixels in [-1, 1]")
    latents = models.encode_images({"vae": vae}, video) / models.vae.scaling_factor
    return params | {"vae": vae}, float(1 / jnp.std(latents))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/overfit"), metavar="DIR")
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="its first frames (default: our pose clip)"
    )
    parser.add_argument("--vae-steps", type=int, default=300, metavar="N")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the training config")
    args = parser.parse_args()
    paths = [
        f"out={args.out}",
        f"pretrained={args.out}/pipeline",
        f"data.path={args.out}/records/captioned_videos",
    ]
    config = load_config(TrainConfig, CONFIG, [*paths, *args.overrides])
    config.check()
    clip = our_clip(config)
    if args.video is not None:
        clip = fit(read_frames(args.video, range(config.data.frames)), config.data.height, config.data.width)
    if not (args.out / "pipeline").exists():
        write_mp4(args.out / "clip" / "clip.mp4", clip, 8)
        (args.out / "clip" / "metadata.csv").write_text(f"file_name,text\nclip.mp4,{CAPTION}\n")
        prepare("captioned_videos", args.out / "clip", args.out / "records")
        folder = PipelineFolder("mini", parts=())
        params, scaling_factor = fit_vae(folder, clip, args.vae_steps)
        changes = {"unet": UNET, "vae": {"scaling_factor": scaling_factor}}
        folder.write_with(params, args.out / "pipeline", changes)
    train(config)
    losses = read_metrics(args.out / "metrics.csv")["loss/all"]
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.4f} at last, a {losses[0] / losses[-1]:.0f}th")
    sampler, params, _ = load_sampler(
        SampleConfig(
            pretrained=f"{args.out}/pipeline", checkpoint=f"{args.out}/checkpoints", pose=PoseConfig(None)
        )
    )
    video = sampler(params, CAPTION, None, size=clip.shape[:3], guidance=1.0)
    write_png(args.out / "overfit.png", contact_sheet([clip, video]))
    print(args.out / "overfit.png")


if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s: %(message)s")
    sys.exit(exit_status(main))
