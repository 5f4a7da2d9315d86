"""Cache latents for training: `python scripts/cache_latents.py --help`. See fyp_jax/cli/cache_latents.py."""

from fyp_jax.cli.cache_latents import console

if __name__ == "__main__":
    console()
