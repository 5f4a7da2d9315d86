"""Reads a pipeline folder whose UNet was trained on videos, as Follow Your Pose and Tune-A-Video save it.

unet/config.json has the class `UNet3DConditionModel`, and blocks named 3D in place of 2D. The UNet's file may
hold the pose encoder too, or it is in `pose_encoder.pth`, in the folder or beside it. Tune-A-Video has no
pose encoder, and no temporal convolutions: these are added, and change nothing before they are trained.
"""

import json
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax.convert.followyourpose_checkpoint import POSE_ENCODER_FILES, read_followyourpose
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.recognise import FATEZERO
from fyp_jax.convert.safetensors_files import MANIFEST
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, params_from_torch
from fyp_jax.errors import UserError
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import TEMPORAL_CONV, init_temporal, unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig

OTHER_VIDEO_MODELS = {
    "temp_convs": "the text-to-video UNet of ModelScope",
    "transformer_in": "the text-to-video UNet of ModelScope",
    "motion_modules": "a UNet of AnimateDiff",
    "attn_temporal": FATEZERO,
}
"""Modules of UNets that have the same class name and are other networks."""


def read_video_pipeline(folder: PipelineFolder) -> tuple[UNet3DConfig, dict[str, Any]] | None:
    """The UNet's config, and float32 parameters {"unet": ..., "pose_encoder": ...} of what the folder holds.

    None for a folder with an image UNet. The pose encoder is absent where there is none. Raises UserError
    where the UNet is another network, TreeMismatch where arrays are missing, unexpected or of a wrong shape.
    """
    if not folder.has_video_unet:
        return None
    arrays = folder.lazy_state_dict("unet")
    modules = {part for name in arrays for part in name.split(".")}
    for module, words in OTHER_VIDEO_MODELS.items():
        if module in modules:
            raise UserError(
                f"{folder.name}: {words}, which is another network; what is read is the UNet of Follow Your "
                "Pose or Tune-A-Video"
            )
    config = folder.unet_config()
    state = {name: x.astype(np.float32, name).read() for name, x in arrays.items()}
    pose = {name: x for name, x in state.items() if name.startswith(POSE_PREFIX)}
    unet = {name: x for name, x in state.items() if name not in pose}
    shapes: dict[str, Any] = flatten_dict(unet_shapes(config), sep="/")
    added: dict[str, Any] = {}
    if not any(TEMPORAL_CONV.search(name) for name in unet):
        temporal = init_temporal(config, jax.random.key(0))
        added = {path: x for path, x in temporal.items() if TEMPORAL_CONV.search(path)}
    shapes = {path: shape for path, shape in shapes.items() if path not in added}
    found = params_from_torch(unet, unflatten_dict(shapes, sep="/"), f"{folder.name}, video UNet")
    params = {"unet": unflatten_dict(flatten_dict(found, sep="/") | added, sep="/")}
    path = folder.path
    files = [place / name for place in (path, path / "unet", path.parent) for name in POSE_ENCODER_FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        params |= read_followyourpose(None, file, config)
    elif pose:
        what = f"{folder.name}, pose encoder"
        params["pose_encoder"] = params_from_torch(pose, pose_encoder_shapes(config), what, POSE_PREFIX)
    return config, params


def video_provenance(folder: PipelineFolder) -> dict[str, Any]:
    """What an export of ours says of the clips that its UNet was trained on: `num_frames`, and, where it was
    tuned on one clip, which of its frames (`clip`). A published folder says nothing."""
    try:
        recorded = json.loads((folder.path / MANIFEST).read_text())["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    recorded = recorded if isinstance(recorded, dict) else {}
    frames, clip = recorded.get("num_frames"), recorded.get("clip")
    found = {"num_frames": frames} if isinstance(frames, int) else {}
    least = {"stride": 1, "start": 0}
    if isinstance(clip, dict) and all(
        isinstance(clip.get(name), int) and clip[name] >= x for name, x in least.items()
    ):
        found |= {"clip": clip}
    return found
