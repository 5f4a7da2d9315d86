"""Reads a CLIP folder of transformers, which holds config.json, weights, vocabulary and image settings."""

import json
from typing import Any

from fyp_jax.convert.pipeline_folder import find_folder
from fyp_jax.convert.torch_files import find_weights, read_weights
from fyp_jax.convert.torch_key_mapping import params_from_torch
from fyp_jax.errors import UserError
from fyp_jax.evaluation.clip_score import ClipModel


def load_clip(name: str) -> tuple[ClipModel, dict[str, Any]]:
    """The model of a folder or a Hub id ("openai/clip-vit-base-patch32"), and its float32 parameters.

    Raises UserError where there is no such model, or its weights do not fit its config.
    """
    folder = find_folder(name, (".",))
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: not a CLIP folder ({error})") from error
    if not isinstance(config, dict) or "vision_config" not in config:
        raise UserError(f"{name}: its config.json does not describe a CLIP model of text and images")
    clip = ClipModel.build(config, folder)
    state_dict = read_weights(find_weights(folder))
    # Old files also hold the position ids, which are constants.
    weights = {key: x for key, x in state_dict.items() if not key.endswith("position_ids")}
    return clip, params_from_torch(weights, clip.shapes(), name)
