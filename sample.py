"""Make clips from prompts and a pose sequence: `python sample.py --help`. The code is in
fyp_jax/cli/sample.py."""

from fyp_jax.cli.sample import console

if __name__ == "__main__":
    console()
