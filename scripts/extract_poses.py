"""Poses from films: `python scripts/extract_poses.py --help`. See fyp_jax/cli/extract_poses.py."""

from fyp_jax.cli.extract_poses import console

if __name__ == "__main__":
    console()
