"""Edit a clip: `python scripts/edit.py --help`. The code is in fyp_jax/cli/edit.py."""

from fyp_jax.cli.edit import console

if __name__ == "__main__":
    console()
