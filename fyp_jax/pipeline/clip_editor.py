"""The loops of inversions and edits, on the host around compiled steps."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.masks import Blend, word_mask
from fyp_jax.editing.null_text import null_text_step
from fyp_jax.editing.plan import EditPlan
from fyp_jax.editing.steps import Conditions, Denoiser, EditState, edit_step, invert_step
from fyp_jax.editing.words import TokenizedPrompt
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.pipeline.sampling_loop import tokenize
from fyp_jax.types import FeatureMaps, Latents, TextEmbeddings

OnStep = Callable[[], Any] | None


class EditRun(NamedTuple):
    """The result of an edit in latents."""

    z: Float32[np.ndarray, "k f h w c"]
    """Clean latents of the targets."""
    source: Float32[np.ndarray, "f h w c"]
    """Clean latents of the source: of the inversion, or as it was generated."""
    masks: Bool[np.ndarray, "f h w"] | None
    """The mask of the source's blend words at the step in the middle, as large as the latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClipEditor:
    """Runs inversions and edits with the models and the parameters of a pipeline."""

    programs: SamplingPrograms
    params: dict[str, Any]
    sampling: SamplingParams
    weights: int | None = None
    """Checksum of the parameters, by which an inversion knows them again."""

    @property
    def denoiser(self) -> Denoiser:
        programs, sampling = self.programs, self.sampling
        steps, pose_guidance = sampling.num_inference_steps, sampling.pose_guidance
        return Denoiser(programs.unet, programs.schedule, steps, programs.mesh, pose_guidance)

    def encode_text(self, prompts: Sequence[str]) -> TextEmbeddings:
        """The embeddings of prompts. One that is too long for the text encoder is cut, with a warning."""
        rows = [tokenize(self.programs.encoders, prompt) for prompt in prompts]
        return jnp.concatenate([self.programs.encode_text(self.params, row) for row in rows])

    def encode_pose(self, pose_images: np.ndarray | None) -> list[FeatureMaps] | None:
        """The feature maps of a pose sequence (RGB in 0..255); None for none."""
        if pose_images is None:
            return None
        return self.programs.encode_pose(self.params, pose_images[None].astype(np.float32) / 255)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """The frames (RGB in 0..255) of the latents of one clip."""
        chunk = self.sampling.decode_chunk_size
        return self.programs.on_host(self.programs.decode(self.params, jnp.asarray(z)[None], chunk=chunk))[0]

    def invert(
        self,
        z: Latents,
        prompt: TokenizedPrompt,
        text: TextEmbeddings,
        pose_features: Sequence[FeatureMaps] | None,
        map_level: int,
        on_step: OnStep = None,
    ) -> tuple[Float32[np.ndarray, "times f h w c"], Float32[np.ndarray, "steps f _ _ m"]]:
        """The trajectory of DDIM inversion from clean latents, and the maps of all of the prompt's tokens."""
        tokens = len(prompt.ids)
        words = np.eye(text.shape[1], tokens, dtype=np.float32)[None]
        trajectory, maps = [self.programs.on_host(z)[0]], []
        for index in range(self.sampling.num_inference_steps):
            args = np.int32(index), text, pose_features, words, map_level
            z, step_maps = invert_step(self.denoiser, self.params["unet"], z, *args)
            trajectory.append(self.programs.on_host(z)[0])
            maps.append(self.programs.on_host(step_maps[None])[0])
            if on_step is not None:
                on_step()
        return np.stack(trajectory), np.stack(maps)

    def edit(
        self,
        plan: EditPlan,
        text: TextEmbeddings,
        negative: Float[Array, "1 l d"],
        pose_features: Sequence[FeatureMaps] | None,
        inversion: Inversion | None,
        noise: Float[Array, "1 f h w c"] | None = None,
        on_step: OnStep = None,
    ) -> EditRun:
        """Run a plan. `text` are the embeddings of source and targets, `pose_features` have as many rows.

        The source is `inversion`, or is generated from `noise` beside its targets.
        """
        targets = len(text) - 1
        start = noise if inversion is None else jnp.asarray(inversion.noise)[None]
        assert start is not None
        embeddings = None
        if plan.options.null_text and inversion is not None:
            embeddings = self.fit_null_text(inversion, text[:1], negative, pose_features, on_step)
        z = jnp.concatenate([start] * (targets + plan.generated))
        height, width = z.shape[2:4]
        maps = None
        if plan.reads_words:
            level = plan.options.map_level
            summed = targets + (plan.options.method != "fatezero")
            maps = jnp.zeros((summed, z.shape[1], height >> level, width >> level))
        state, scale = EditState(z, maps), jnp.float32(self.sampling.guidance_scale)
        for index in range(self.sampling.num_inference_steps):
            source, blend = None, None
            source_map = self._source_map(plan, inversion, index)
            if inversion is not None and not plan.generated:
                source = jnp.asarray(inversion.latents[-2 - index])[None]
            if plan.reads_words:
                blend = self._blend(plan, inversion, index, source_map)
            own = self._own(plan, targets, source_map, (height, width), z.shape[1], index)
            edit = plan.level_edits(index, own)
            empty = negative if embeddings is None else embeddings[index]
            state = edit_step(
                self.denoiser,
                self.params["unet"],
                state,
                source,
                np.int32(index),
                Conditions(text, empty, pose_features, scale),
                edit,
                blend,
                plan.options.map_level if plan.reads_words else None,
            )
            if on_step is not None:
                state.z.block_until_ready()
                on_step()
        clean = self.programs.on_host(state.z)
        shown = self._source_map(plan, inversion, self.sampling.num_inference_steps // 2)
        masks = None
        if shown is not None:
            masks = np.asarray(word_mask(shown, height, width, plan.options.blend_threshold))
        original = inversion.latents[0] if inversion is not None else clean[0]
        return EditRun(clean[-targets:], original, masks)

    def fit_null_text(
        self,
        inversion: Inversion,
        text: TextEmbeddings,
        negative: Float[Array, "1 l d"],
        pose_features: Sequence[FeatureMaps] | None,
        on_step: OnStep = None,
    ) -> list[TextEmbeddings]:
        """Embeddings of the empty text, one for each step, with which guidance gives the inverted clip."""
        poses = None if pose_features is None else [pose[:1] for pose in pose_features]
        z, embedding, fitted = jnp.asarray(inversion.noise)[None], negative, []
        scale = jnp.float32(self.sampling.guidance_scale)
        for index in range(self.sampling.num_inference_steps):
            target = jnp.asarray(inversion.latents[-2 - index])[None]
            args = z, embedding, np.int32(index), target, text, poses, scale
            step = null_text_step(self.denoiser, self.params["unet"], *args)
            z, embedding = step.z, step.embedding
            fitted.append(embedding)
            if on_step is not None:
                z.block_until_ready()
                on_step()
        return fitted

    def _source_map(self, plan: EditPlan, inversion: Inversion | None, step: int) -> np.ndarray | None:
        """The inversion's map of the source's blend words at this timestep, if there is one."""
        if inversion is None or plan.words is None:
            return None
        return inversion.word_map(step, plan.words[0])

    def _own(
        self,
        plan: EditPlan,
        targets: int,
        source_map: np.ndarray | None,
        size: tuple[int, int],
        frames: int,
        step: int,
    ) -> dict[int, Any]:
        """Where targets keep their own attention, by level: nowhere, or inside of the mask."""
        if not plan.self_replaced(step):
            return {}
        own = {}
        for level in range(plan.options.self_level, plan.levels):
            mask = np.zeros((frames, 1), bool)
            if plan.options.blend_self_attention and source_map is not None:
                height, width = (side >> level for side in size)
                mask = word_mask(source_map, height, width, plan.options.blend_threshold).reshape(frames, -1)
            own[level] = np.broadcast_to(np.asarray(mask), (targets, *mask.shape))
        return own

    def _blend(
        self, plan: EditPlan, inversion: Inversion | None, step: int, source_map: np.ndarray | None
    ) -> Blend:
        active = jnp.asarray(plan.keeps_latents(step))
        threshold = jnp.float32(plan.options.blend_threshold)
        if plan.generated or inversion is None:
            return Blend(active, threshold)
        if plan.options.method == "fatezero":
            # As published, the latents mixed in are one level noisier than those that they are mixed into.
            background = jnp.asarray(inversion.latents[-1 - step])[None]
            return Blend(active, threshold, background, jnp.asarray(source_map))
        return Blend(active, threshold, jnp.asarray(inversion.latents[-2 - step])[None])
