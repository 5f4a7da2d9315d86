"""Train a stage: `python train.py --help`. The code is in fyp_jax/cli/train.py."""

from fyp_jax.cli.train import console

if __name__ == "__main__":  # the data loader's worker processes import this file
    console()
