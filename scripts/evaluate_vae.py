"""What the VAE of a pipeline keeps of drawings of the synthetic world: PSNR, sharpness, width of edges.

    python scripts/evaluate_vae.py mini

prints means over drawings that training has not seen, with 95% intervals. --picture FILE shows the first six
drawings, and below them what the VAE makes of them.
"""

import argparse
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fyp_jax.console import run_console
from fyp_jax.convert.open_pipeline import open_pipeline
from fyp_jax.evaluation.autoencoder import held_out_drawings, score_autoencoder
from fyp_jax.media.images import Frames, image_grid
from fyp_jax.media.writing import write_png

SHOWN = 6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", help="a pipeline, as `pretrained` of sample.py")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="number of drawings (%(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="a PNG of drawings and reconstructions")
    args = parser.parse_args()
    folder = open_pipeline(args.pipeline, ("vae",))
    encoders = folder.latent_encoders()
    params = folder.encoder_params(encoders, ("vae",))

    @jax.jit
    def decoded(video: jax.Array) -> jax.Array:
        return encoders.decode_latents(params, encoders.encode_images(params, video), chunk=1)

    def reconstruct(video: Frames) -> Frames:
        images = np.asarray(decoded(jnp.asarray(video[None], jnp.float32) / 127.5 - 1))[0]
        return np.rint(np.clip((images + 1) * 127.5, 0, 255)).astype(np.uint8)

    scores = score_autoencoder(reconstruct, held_out_drawings(args.clips))
    print("| measure | mean | 95% interval |\n|---|---|---|")
    for name, value in scores._asdict().items():
        print(f"| {name} | {value.mean:.2f} | {value.low:.2f} to {value.high:.2f} |")
    if args.picture is not None:
        drawn = np.concatenate([clip.video for clip in itertools.islice(held_out_drawings(SHOWN), SHOWN)])
        again = np.concatenate([reconstruct(frame[None]) for frame in drawn])
        write_png(args.picture, image_grid([drawn, again]))


if __name__ == "__main__":
    run_console(main)
