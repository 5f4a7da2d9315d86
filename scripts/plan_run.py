"""Plan a training run: `python scripts/plan_run.py --help`. The code is in fyp_jax/cli/plan_run.py."""

from fyp_jax.cli.plan_run import console

if __name__ == "__main__":
    console()
