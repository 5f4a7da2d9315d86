"""Import from PyTorch: `python scripts/import_pytorch.py --help`. See fyp_jax/cli/import_pytorch.py."""

from fyp_jax.cli.import_pytorch import console

if __name__ == "__main__":
    console()
