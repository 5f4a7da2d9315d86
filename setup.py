"""The one part of packaging that has to be code: configs/ is installed as fyp_jax/configs. See
pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fyp_jax", "fyp_jax.*"]), "fyp_jax.configs"],
    package_dir={"fyp_jax.configs": "configs"},
    package_data={"fyp_jax": ["assets/**/*", "py.typed"], "fyp_jax.configs": ["*/*.yaml"]},
)
