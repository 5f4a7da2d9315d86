"""Export to PyTorch: `python scripts/export_pytorch.py --help`. See fyp_jax/cli/export_pytorch.py."""

from fyp_jax.cli.export_pytorch import console

if __name__ == "__main__":
    console()
