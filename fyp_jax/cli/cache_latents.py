"""Encode the frames and captions of records once, so that training need not run the VAE and the text encoder.

    python scripts/cache_latents.py --config configs/sd14/stage2_motion.yaml \\
        data.path=records/captioned_videos --out latents
    python train.py --config configs/sd14/stage2_motion.yaml data.path=latents data.cached_latents=true

Give the config and the fields of the run: its VAE and text encoder, its data.height and data.width. Windows,
stride and data.caption_dropout stay free. Of each frame the posterior's mean and standard deviation are
stored, and each step samples from them, as it does without a cache. On several hosts, run the same command on
each, with a shared --out and the mesh.* fields of training. If a run is killed, the same command resumes it.
"""

import argparse
import sys

from fyp_jax.cli.runner_arguments import local_path
from fyp_jax.config import load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.training.config import TrainConfig

DTYPES = ("float16", "float32")
FALLBACK_FPS = 25.0
"""Frames per second for the estimate of an hour, where no video says its own."""


def parse(argv: list[str]) -> tuple[TrainConfig, argparse.Namespace]:
    parser = make_parser(TrainConfig, __doc__)
    parser.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder of the cache")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of stored numbers (%(default)s)")
    parser.add_argument(
        "--records-per-shard", type=int, metavar="N", help="records of one shard (16 videos, 2048 images)"
    )
    parser.add_argument(
        "--frames-per-device", type=int, default=8, metavar="N", help="frames encoded at a time (%(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a cache of something else")
    args = parser.parse_intermixed_args(argv)
    if args.config is None:
        parser.error("give --config FILE, the config of the run that is to train from the cache")
    for name in ("records_per_shard", "frames_per_device"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    return config, args


def main() -> None:
    """Run cache_latents.py on the arguments of this process. Raises UserError."""
    config, args = parse(sys.argv[1:])
    # These imports take seconds, so they come after the arguments are known to be good.
    from fyp_jax.compilation_cache import enable_compilation_cache
    from fyp_jax.training.latent_cache import cache_latents

    enable_compilation_cache()
    cache = cache_latents(
        config,
        args.out,
        dtype=args.dtype,
        records_per_shard=args.records_per_shard,
        frames_per_device=args.frames_per_device,
        overwrite=args.overwrite,
    )
    if cache is None:
        return
    size = cache.disk_size
    print(f"{args.out}: latents of {len(cache)} clips with {size.frames} frames, {size.total / 1e6:.1f} MB")
    if cache.kind == "captioned_videos":
        fps = size.fps or FALLBACK_FPS
        hour = 3600 * fps * size.total / max(size.frames, 1)
        known = "" if size.fps else ", as no video says its own"
        print(f"an hour of video takes {hour / 1e9:.3f} GB at {fps:.4g} frames per second{known}")
    else:
        print(f"a million images take {size.total / len(cache) / 1e3:.2f} GB")
    if size.problems:
        print(f"{size.problems} cannot be decoded; training skips and counts them, as without a cache")


def console() -> None:
    """The command fyp-cache-latents, and scripts/cache_latents.py."""
    run_console(main)
