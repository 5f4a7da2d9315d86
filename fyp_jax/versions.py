"""Which versions made a result."""

import functools
import platform
import zlib
from importlib import metadata
from pathlib import Path

import jax

from fyp_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "diffusers", "transformers", "numpy", "av", "pillow")


def versions(devices: bool = True) -> dict[str, str]:
    """Versions of this package, of Python, and of the packages that results depend on; and the device."""
    found = {
        "fyp_jax": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }
    if devices:
        device = jax.devices()[0]
        found["device"] = f"{jax.device_count()} x {device.device_kind} ({device.platform})"
    return found


@functools.cache
def code_crc32() -> int:
    """Of this package's modules."""
    root, crc = Path(__file__).parent, 0
    for file in sorted(root.rglob("*.py")):
        crc = zlib.crc32(file.read_bytes(), zlib.crc32(str(file.relative_to(root)).encode(), crc))
    return crc
