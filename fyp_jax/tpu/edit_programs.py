"""The programs of an edit, with shapes in place of arrays: a step of the inversion, and one of the edit."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from fyp_jax.editing.masks import Blend
from fyp_jax.editing.steps import FRAMES, Conditions, Denoiser, EditState, edit_step, invert_step
from fyp_jax.models.attention_edit import AttentionEdit
from fyp_jax.pipeline.abstract_calls import AbstractCall
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.types import Params


def edit_calls(
    config: EditConfig, programs: SamplingPrograms, params: Params, devices: Sequence[Any]
) -> dict[str, tuple[Any, Denoiser, AbstractCall]]:
    """How an edit of one prompt calls its two steps: the jitted function, what it is compiled for, and its
    other arguments as shapes.

    The step of the edit is the most expensive kind: text and self-attention are both edited, and the mask is
    of all frames and queries. `params` are shapes of the UNet with their shardings.
    """
    mesh = programs.mesh

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.float32, spec: P | None = None) -> Any:
        sharding = NamedSharding(mesh, spec or P()) if mesh else SingleDeviceSharding(devices[0])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    steps, guided = config.num_inference_steps, config.pose_guidance
    denoiser = Denoiser(programs.unet, programs.schedule, steps, mesh, guided)
    latents = programs.latent_shape(config.num_frames, config.height, config.width)
    _, frames, height, width, _ = latents
    tokens, text_width = programs.encoders.spec.tokens, programs.encoders.spec.text_width
    level = config.edit.map_level
    z, text = shaped(latents, spec=FRAMES), shaped((1, tokens, text_width))
    index, scalar = shaped((), jnp.int32), shaped(())
    has_clip = config.edit.method != "generate"
    generated = not has_clip or config.edit.null_text
    # FateZero's edits take the maps of the targets' own attention, the others those of source and targets.
    edited_maps = config.edit.method != "fatezero"
    edits = {}
    for i in range(len(programs.unet.config.block_out_channels)):
        queries = (height >> i) * (width >> i)
        edits[i] = AttentionEdit(
            shaped((1, tokens, tokens)),
            shaped((1, tokens)),
            shaped((1, frames, queries), bool, FRAMES) if i >= config.edit.self_level else None,
            shaped((2, tokens, 1)) if i == level else None,
            shaped((1, tokens, 1)) if i == level and edited_maps else None,
        )
    size = height >> level, width >> level
    rows = shaped((1 + generated, *latents[1:]), spec=FRAMES)
    summed = 1 + edited_maps
    state = EditState(rows, shaped((summed, frames, *size), spec=FRAMES))
    conditions = Conditions(shaped((2, tokens, text_width)), text, None, scalar)
    source = None if generated else z
    source_map = None if edited_maps else shaped((frames, *size))
    blend = Blend(shaped((), bool), scalar, source, source_map)
    args = params, state, source, index, conditions, edits, blend
    calls = {"edit": (edit_step, denoiser, AbstractCall(args, {"map_level": level}))}
    if has_clip:
        args = params, z, index, text, None, shaped((1, tokens, tokens))
        calls["invert"] = (invert_step, denoiser, AbstractCall(args, {"map_level": level}))
    return calls
