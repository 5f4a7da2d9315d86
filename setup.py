"""The part of packaging that has to be code: configs/ is installed as fyp_jax/configs. See pyproject.toml."""

import sys

from setuptools import find_packages, setup

# With one package folder alone, an editable install is a plain path. Python then finds the package also in
# the folder that holds the clone, where a folder named fyp_jax stands, too. The configs are found beside it.
EDITABLE = "editable_wheel" in sys.argv

setup(
    packages=[
        *find_packages(include=["fyp_jax", "fyp_jax.*"]),
        *([] if EDITABLE else ["fyp_jax.configs"]),
    ],
    package_dir={"": "."} if EDITABLE else {"fyp_jax.configs": "configs"},
    package_data={
        "fyp_jax": ["assets/**/*", "py.typed"],
        **({} if EDITABLE else {"fyp_jax.configs": ["*/*.yaml"]}),
    },
)
