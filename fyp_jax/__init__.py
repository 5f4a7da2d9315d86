"""Pose-guided text-to-video in JAX/Flax: Follow Your Pose (Ma et al., AAAI 2024) on Stable Diffusion.

The names below are imported when they are first used, so that `import fyp_jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fyp_jax.convert.torch_key_mapping import from_torch, to_torch
    from fyp_jax.models.pose_encoder import PoseEncoder
    from fyp_jax.models.unet import UNet3D
    from fyp_jax.models.unet_config import UNet3DConfig
    from fyp_jax.pipeline.params import SamplingParams
    from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
    from fyp_jax.pose.loading import load_pose

__all__ = [
    "FollowYourPosePipeline",
    "PoseEncoder",
    "SamplingParams",
    "UNet3D",
    "UNet3DConfig",
    "from_torch",
    "load_pose",
    "to_torch",
]

_MODULES = {
    "FollowYourPosePipeline": "fyp_jax.pipeline.pipeline",
    "PoseEncoder": "fyp_jax.models.pose_encoder",
    "SamplingParams": "fyp_jax.pipeline.params",
    "UNet3D": "fyp_jax.models.unet",
    "UNet3DConfig": "fyp_jax.models.unet_config",
    "from_torch": "fyp_jax.convert.torch_key_mapping",
    "load_pose": "fyp_jax.pose.loading",
    "to_torch": "fyp_jax.convert.torch_key_mapping",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
