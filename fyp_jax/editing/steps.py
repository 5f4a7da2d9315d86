"""The steps of inversion and of an edit, on one device or on a mesh; each is one compiled program's body."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.editing.masks import Blend, blend_latents, word_mask
from fyp_jax.models.attention_edit import WORDS, AttentionEdit, LevelEdits, word_maps
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.sharded_params import fsdp_shard_map
from fyp_jax.types import FeatureMaps, Latents, Params, TextEmbeddings

FRAMES = P(None, "frame")


class Denoiser(NamedTuple):
    """What all steps are compiled for: a model, its noise schedule, and the devices that run it."""

    unet: UNet3D
    schedule: ScheduleConfig
    num_inference_steps: int
    mesh: Mesh | None = None
    pose_guidance: bool = False
    """Whether the unconditional rows get no pose."""


class EditState(NamedTuple):
    """What an edit carries from step to step."""

    z: Latents
    """Latents of the targets; with the source's before them where the source is generated beside."""
    maps: Float[Array, "r f _ _"] | None = None
    """Word maps of the targets, and of the source where a mask needs its sum, too; summed over the steps so
    far. None where no mask needs them."""


class Conditions(NamedTuple):
    """What the rows of an edit are conditioned on: the source and its k targets, in this order."""

    text: TextEmbeddings
    negative: Float[Array, "1 l d"]
    pose_features: Sequence[FeatureMaps] | None
    """Feature maps of each row; None: no pose."""
    guidance_scale: Float[Array, ""]


@functools.partial(jax.jit, static_argnames=("denoiser", "map_level"))
def invert_step(
    denoiser: Denoiser,
    params: Params,
    z: Latents,
    index: Int[Array, ""],
    text: TextEmbeddings,
    pose_features: Sequence[FeatureMaps] | None,
    words: Float[Array, "1 l m"],
    map_level: int,
) -> tuple[Latents, Float[Array, "f _ _ m"]]:
    """One step of DDIM inversion without guidance, from clean latents at index 0 to noise.

    Gives the latents behind the step, and the word maps of the model's run in it.
    """
    ddim_schedule = ddim.reverse(ddim.make_ddim_schedule(denoiser.schedule, denoiser.num_inference_steps))
    edit = {map_level: AttentionEdit(words=words)}

    def predict(params: Params, z: Latents, t: Array, text: Array, poses: Any, edit: LevelEdits) -> Any:
        return _apply(denoiser, params, z, t, text, poses, edit, map_level)

    specs = (FRAMES, P(), P(), None if pose_features is None else FRAMES, P())
    mapped = _on_mesh(predict, params, denoiser.mesh, specs)
    prediction, maps = mapped(params, z, ddim_schedule.t[index], text, pose_features, edit)
    z = ddim.step(lambda z, t: prediction, z, index, ddim_schedule, denoiser.schedule)
    return z, maps[0]


@functools.partial(jax.jit, static_argnames=("denoiser", "map_level"))
def edit_step(
    denoiser: Denoiser,
    params: Params,
    state: EditState,
    source: Float[Array, "1 f h w c"] | None,
    index: Int[Array, ""],
    conditions: Conditions,
    edit: LevelEdits,
    blend: Blend | None = None,
    map_level: int | None = None,
) -> EditState:
    """One DDIM step of an edit.

    `source` are the source's latents at the timestep of this step: those of an inversion. Then the source
    gets no guidance, and is no row of the state. None: it is the first row of the state, and is generated
    beside its targets. `map_level` is the level at which `edit` reads words, None where it reads none.
    """
    ddim_schedule = ddim.make_ddim_schedule(denoiser.schedule, denoiser.num_inference_steps)
    t = ddim_schedule.t[index]
    z = state.z
    prediction, maps = _guided(denoiser, params, z, source, t, conditions, edit, map_level)
    z = ddim.step(lambda z, t: prediction, z, index, ddim_schedule, denoiser.schedule)
    if maps is None or state.maps is None:
        return EditState(z, state.maps)
    sums = state.maps + maps[-len(state.maps) :, ..., 0]
    if blend is not None:
        z = _blended(z, sums, 1 if source is None else 0, blend)
    return EditState(z, sums)


def _blended(z: Latents, sums: Float[Array, "r f _ _"], sources: int, blend: Blend) -> Latents:
    height, width = z.shape[2:4]
    source_map = sums[:1] if blend.source_map is None else blend.source_map[None]
    mask = word_mask(source_map, height, width, blend.threshold)
    mask = mask | word_mask(sums[sources - len(z) :], height, width, blend.threshold)
    background = z[:1] if blend.background is None else blend.background
    mixed = blend_latents(z[sources:], background, mask)
    return jnp.where(blend.active, jnp.concatenate([z[:sources], mixed]), z)


def _guided(
    denoiser: Denoiser,
    params: Params,
    z: Latents,
    source: Float[Array, "1 f h w c"] | None,
    t: Int[Array, ""],
    conditions: Conditions,
    edit: LevelEdits,
    map_level: int | None,
) -> tuple[Latents, Float[Array, "r f _ _ m"] | None]:
    """Predictions with guidance for the rows of `z`, and the word maps of source and targets.

    All unconditional and conditional rows run as one batch. On a mesh with two devices along `data`, each
    runs one branch of guidance on all rows, and the edit is neutral in the unconditional branch.
    """
    mesh, guided = denoiser.mesh, len(z)
    split = mesh is not None and mesh.shape["data"] == 2
    rows = z if source is None else jnp.concatenate([source, z])

    def predict(
        params: Params,
        rows: Latents,
        t: Array,
        text: Array,
        negative: Array,
        poses: Any,
        scale: Array,
        edit: LevelEdits,
    ) -> Any:
        negatives = jnp.broadcast_to(negative, (guided, *negative.shape[1:]))
        bare = poses
        if poses is not None and denoiser.pose_guidance:
            bare = [jnp.zeros_like(pose) for pose in poses]
        if not split:
            batch = jnp.concatenate([rows[-guided:], rows])
            texts = jnp.concatenate([negatives, text])
            if poses is not None:
                poses = [jnp.concatenate([a[-guided:], b]) for a, b in zip(bare, poses, strict=True)]
            out, maps = _apply(denoiser, params, batch, t, texts, poses, edit, map_level)
            return (1 - scale) * out[:guided] + scale * out[-guided:], maps
        conditional = jax.lax.axis_index("data") == 1
        text = jnp.where(conditional, text, jnp.broadcast_to(negative, text.shape))
        if poses is not None:
            poses = [jnp.where(conditional, b, a) for a, b in zip(bare, poses, strict=True)]
        edit = _neutral_unless(conditional, edit)
        out, maps = _apply(denoiser, params, rows, t, text, poses, edit, map_level)
        out = jax.lax.psum(jnp.where(conditional, scale, 1 - scale) * out[-guided:], "data")
        return out, None if maps is None else jax.lax.psum(jnp.where(conditional, maps, 0), "data")

    def spec_of(item: AttentionEdit) -> AttentionEdit:
        spec: Any = AttentionEdit(*[None if x is None else P() for x in item])  # pyright: ignore
        return spec if item.own is None else spec._replace(own=FRAMES)

    edit_specs = {level: spec_of(item) for level, item in edit.items()}
    text, negative, poses, scale = conditions
    specs = (FRAMES, P(), P(), P(), None if poses is None else FRAMES, P(), edit_specs)
    mapped = _on_mesh(predict, params, mesh, specs)
    return mapped(params, rows, t, text, negative, poses, scale, edit)


def _apply(
    denoiser: Denoiser,
    params: Params,
    batch: Latents,
    t: Array,
    text: TextEmbeddings,
    poses: Any,
    edit: LevelEdits,
    map_level: int | None,
) -> tuple[Latents, Float[Array, "r f _ _ m"] | None]:
    """The model's prediction in float32, and the word maps of a level."""
    args = batch, jnp.broadcast_to(t, len(batch)), text, poses, edit
    if map_level is None:
        return denoiser.unet.apply({"params": params}, *args).astype(batch.dtype), None  # pyright: ignore
    out, left = denoiser.unet.apply({"params": params}, *args, mutable=[WORDS])
    frames, height, width = batch.shape[1:4]
    maps = word_maps(left.get(WORDS) or {}, frames, height >> map_level, width >> map_level)
    return out.astype(batch.dtype), maps


def _neutral_unless(condition: Array, edit: LevelEdits) -> LevelEdits:
    """The same edit, or one of the same arrays that changes nothing."""

    def one(level: AttentionEdit) -> AttentionEdit:
        a, b, own = level.source_weights, level.own_weights, level.own
        return level._replace(
            source_weights=None if a is None else jnp.where(condition, a, 0),
            own_weights=None if b is None else jnp.where(condition, b, 1),
            own=None if own is None else own | ~condition,
        )

    return {level: one(item) for level, item in edit.items()}


def _on_mesh(function: Any, params: Params, mesh: Mesh | None, specs: tuple[Any, ...]) -> Any:
    """The function of a model's parameters and of arrays, on the devices of a mesh if there is one."""
    return function if mesh is None else fsdp_shard_map(function, params, mesh, specs, FRAMES)
