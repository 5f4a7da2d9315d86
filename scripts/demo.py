"""Open a web page that makes and edits clips: `python scripts/demo.py --help`. The code is in
fyp_jax/cli/demo.py."""

from fyp_jax.cli.demo import console

if __name__ == "__main__":
    console()
