"""Make TFDS records of images or videos: `python scripts/prepare_data.py --help`.

The code is in fyp_jax/cli/prepare_data.py.
"""

from fyp_jax.cli.prepare_data import console

if __name__ == "__main__":  # the processes that check items import this file
    console()
