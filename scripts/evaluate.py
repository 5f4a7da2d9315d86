"""Evaluate the bundled model: `python scripts/evaluate.py --help`. The code is in fyp_jax/cli/evaluate.py."""

from fyp_jax.cli.evaluate import console

if __name__ == "__main__":
    console()
