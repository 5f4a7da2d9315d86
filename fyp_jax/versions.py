"""Which versions made a result."""

import platform
from importlib import metadata

import jax

from fyp_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "diffusers", "transformers", "numpy", "av", "pillow")


def versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the packages that results depend on; and the device."""
    device = jax.devices()[0]
    return {
        "fyp_jax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
    }
