"""The pipeline: a prompt, and a pose sequence or none, become a clip. It holds its models and its weights."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from fyp_jax.convert.style_specs import Styles, style_list
from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.options import EditOptions
from fyp_jax.errors import UserError
from fyp_jax.media.clips import read_clip
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.editing import ClipEditor, EditOutput, edit_clip, invert_clip
from fyp_jax.pipeline.loading import load_components
from fyp_jax.pipeline.output import Frames, PipelineOutput
from fyp_jax.pipeline.params import (
    SAMPLING_FIELDS,
    SamplingParams,
    check_edit_params,
    ddim_params,
    sampling_params,
)
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.pipeline.sampling_loop import decode, denoise, start_clip, tokenize
from fyp_jax.pipeline.sizes import clip_sizes
from fyp_jax.pose.loading import load_pose
from fyp_jax.types import Latents

PoseSource = str | os.PathLike[str] | Frames
"""A bundled pose sequence, a skeleton video, a folder of skeleton images, a keypoint file, or RGB frames on
black."""

OF_A_RUN = ("prompt", "pose", "invert", "invert_stride", "invert_start", "fps", "output_dir")
"""Fields of SampleConfig that say nothing of a pipeline."""


@dataclasses.dataclass(frozen=True, eq=False)
class FollowYourPosePipeline:
    """Pose-guided text-to-video: Follow Your Pose on a Stable Diffusion, with its weights."""

    programs: SamplingPrograms = dataclasses.field(repr=False)
    params: dict[str, Any] = dataclasses.field(repr=False)
    """Parameters of "unet", "pose_encoder", "vae" and "text_encoder"."""
    defaults: SamplingParams
    """Options of a call that gives none: those that suit the model, or those of the config."""
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Where the weights are from, with a checksum."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        lora: Styles = None,
        embedding: Styles = None,
        dtype: str = "float32",
        mesh: MeshConfig | None = None,
        **options: Any,
    ) -> "FollowYourPosePipeline":
        """Load a pipeline by the name of a bundled model ("mini"), a folder, a Hub id, a single file, or a
        checkpoint of ours.

        A Stable Diffusion alone has no trained pose encoder and temporal layers: `checkpoint` then names a
        checkpoint that has them. `lora` is FILE, FILE:SCALE, a Hub id, or a list of these; `embedding` names
        textual inversions, FILE or FILE:TOKEN. `dtype` is that of UNet and pose encoder, float32 or bfloat16.
        `mesh` divides a clip over devices. `options` are other fields of SampleConfig: those that say which
        weights are read (step, variant, tokenizer, prediction_type), and fields of SamplingParams
        (num_frames=24), which become `defaults` of calls. Raises UserError where weights are missing, cannot
        be read, or do not fit each other.
        """
        if wrong := sorted(set(options) & set(OF_A_RUN)):
            raise TypeError(f"{wrong[0]}: is of a run of sample.py, and no option of a pipeline")
        config = SampleConfig(
            pretrained=os.fspath(name),
            checkpoint=None if checkpoint is None else os.fspath(checkpoint),
            lora=style_list(lora),
            embedding=style_list(embedding),
            dtype=dtype,
            mesh=mesh or MeshConfig(data=1),
            **{key: os.fspath(x) if isinstance(x, os.PathLike) else x for key, x in options.items()},
        )
        components = load_components(config)
        sampling = {name: x for name, x in options.items() if name in SAMPLING_FIELDS}
        defaults = dataclasses.replace(components.defaults, **sampling)
        defaults.check()
        return cls(*components._replace(defaults=defaults))

    @classmethod
    def from_config(cls, config: SampleConfig, use_cache: bool = False) -> "FollowYourPosePipeline":
        """The pipeline of a config of sample.py, whose sampling options become the pipeline's `defaults`.

        `use_cache` and errors as for `load_components`.
        """
        components = load_components(config, use_cache)
        return cls(*components._replace(defaults=sampling_params(config)))

    def __call__(
        self,
        prompt: str,
        pose: PoseSource | None = None,
        sampling: SamplingParams | None = None,
        *,
        latents: Float32[np.ndarray, "f h w c"] | None = None,
        pose_stride: int = 5,
        pose_start: int = 0,
        on_step: Callable[[], Any] | None = None,
        **changes: Any,
    ) -> PipelineOutput:
        """Make a clip of a prompt that follows a pose sequence, or of the prompt alone.

        Options are `sampling`, or else the pipeline's `defaults`; `changes` are fields of SamplingParams
        (num_frames=24, seed=1). Of a pose in files, frames pose_start, pose_start + pose_stride, ... are
        taken, scaled to cover height x width and cropped to the centre. A pose of frames in memory (uint8,
        RGB on black) and `latents` to start from (instead of noise from the seed; see `invert`) bring their
        own size. `on_step` is called after each step. A prompt that is too long for the text encoder is cut,
        with a warning. Raises UserError where the pose cannot be read, or where sizes do not fit each other
        or the model.
        """
        sampling = self._sampling(sampling, changes, self._sizes((pose,), latents))
        self.programs.check_compiled_for(sampling)
        pose_images = self._pose_images(pose, sampling, pose_stride, pose_start)
        z, step_key = start_clip(self.programs, sampling)
        if latents is not None:
            z = jnp.asarray(latents, jnp.float32)[None]
        z = self._denoise(z, prompt, pose_images, sampling, step_key, on_step)
        frames = decode(self.programs, self.params, z, sampling)[0]
        return PipelineOutput(frames, self._on_host(z), pose_images)

    def invert(
        self,
        video: str | os.PathLike[str] | Frames,
        prompt: str = "",
        sampling: SamplingParams | None = None,
        *,
        pose: PoseSource | None = None,
        pose_stride: int = 5,
        pose_start: int = 0,
        trajectory: bool = False,
        map_level: int = 2,
        on_step: Callable[[], Any] | None = None,
        **changes: Any,
    ) -> Any:
        """DDIM inversion (Song et al. 2021): the noise from which the pipeline makes about this clip again.

        `video` is a file, of which the first num_frames frames are taken, scaled and cropped to the centre,
        or frames in memory. Give the result, float32 [f h w c], as `latents`, with the same prompt, pose and
        steps. Guidance is off unless guidance_scale is among `changes`, eta is 0, and the solver is DDIM.
        Other arguments and errors are those of a call.

        With `trajectory` it gives the latents of all steps, and the maps of the prompt's tokens at a level of
        the UNet: an `Inversion`, from which `edit` makes any number of edits. It is without guidance.
        """
        changes = {"guidance_scale": 1.0, **changes, "eta": 0.0}
        sizes = self._sizes((video, pose))
        sampling = ddim_params(self._sampling(sampling, changes, sizes, whole=trajectory))
        if isinstance(video, (str, os.PathLike)):
            size = {name: getattr(sampling, name) for name in ("num_frames", "height", "width")}
            video = read_clip(video, stride=1, start=0, **size)
        pose_images = self._pose_images(pose, sampling, pose_stride, pose_start)
        z = self._encode(np.asarray(video))
        if trajectory:
            args = np.asarray(video), z, prompt, pose_images, map_level, on_step
            return invert_clip(self.editor(sampling), *args)
        key = jax.random.key(sampling.seed)
        return self._on_host(self._denoise(z, prompt, pose_images, sampling, key, on_step, inverse=True))

    def edit(
        self,
        inversion: Inversion | None,
        source: str,
        prompt: str,
        options: EditOptions | None = None,
        sampling: SamplingParams | None = None,
        *,
        source_pose: PoseSource | None = None,
        pose: PoseSource | None = None,
        pose_stride: int = 5,
        pose_start: int = 0,
        on_step: Callable[[], Any] | None = None,
        **changes: Any,
    ) -> EditOutput:
        """Change what a clip shows: from the source prompt, which describes it, to another prompt.

        `inversion` is what `invert(..., trajectory=True)` gave for the clip, with the same source prompt and
        `source_pose`; None for options.method "generate". The edit follows `pose`, or else the source's; a
        source that is generated without a pose of its own follows `pose`, too. Other arguments are those of a
        call. Raises UserError as a call, where words or prompts do not fit the options, where the inversion
        was made for something else, and for a solver but DDIM, eta and windows.
        """
        clip = None if inversion is None else inversion.latents[0]
        sizes = self._sizes((source_pose, pose), clip)
        sampling = self._sampling(sampling, changes, sizes, whole=True)
        check_edit_params(sampling)
        images = [self._pose_images(x, sampling, pose_stride, pose_start) for x in (source_pose, pose)]
        options = options or EditOptions()
        return edit_clip(self.editor(sampling), inversion, (source, prompt), options, images, on_step)

    def editor(self, sampling: SamplingParams) -> ClipEditor:
        """What runs inversions and edits with the models and parameters of this pipeline."""
        return ClipEditor(self.programs, self.params, sampling, self.weights.get("crc32"))

    def encode(self, video: Frames) -> Float32[np.ndarray, "f h w c"]:
        """VAE latents of frames (RGB in 0..255): the posterior's mean, times the scaling factor."""
        return self._on_host(self._encode(video))

    def _encode(self, video: Frames) -> Latents:
        # On the host: inside of a program XLA would multiply by the inverse, which rounds otherwise.
        return self.programs.run("encode_frames", self.params, video[None].astype(np.float32) / 127.5 - 1)

    def _sampling(
        self,
        sampling: SamplingParams | None,
        changes: dict[str, Any],
        sizes: dict[str, int],
        whole: bool = False,
    ) -> SamplingParams:
        """The options of a call, with the size of what it brings along; `whole` for a clip that is never in
        windows. Raises UserError where sizes differ, and where the model or the mesh cannot take them."""
        if unknown := set(changes) - set(SAMPLING_FIELDS):
            raise TypeError(f"{sorted(unknown)[0]}: not an argument, nor a field of SamplingParams")
        stated = {} if sampling is None else {name: getattr(sampling, name) for name in SAMPLING_FIELDS}
        for name, value in ((stated | changes) if sizes else {}).items():
            if name in sizes and sizes[name] != value:
                raise UserError(f"{name}={value}, but the pose, video or latents have {sizes[name]}")
        sampling = dataclasses.replace(sampling or self.defaults, **changes | sizes)
        sampling.check()
        self.programs.check(sampling, whole)
        return sampling

    def _sizes(self, frames: Sequence[Any], latents: Any = None) -> dict[str, int]:
        return clip_sizes(frames, latents, self.programs.unet.config.in_channels)

    def _pose_images(
        self, pose: PoseSource | None, sampling: SamplingParams, stride: int, start: int
    ) -> Frames | None:
        if pose is None:
            return None
        if not isinstance(pose, (str, os.PathLike)):
            return np.asarray(pose)
        return load_pose(
            pose,
            num_frames=sampling.num_frames,
            stride=stride,
            start=start,
            height=sampling.height,
            width=sampling.width,
        )

    def _denoise(
        self,
        z: Latents,
        prompt: str,
        pose_images: Frames | None,
        sampling: SamplingParams,
        key: jax.Array,
        on_step: Callable[[], Any] | None,
        **options: Any,
    ) -> Latents:
        encoders = self.programs.encoders
        input_ids = tokenize(encoders, prompt)
        negative_ids = tokenize(encoders, sampling.negative_prompt)
        images = None if pose_images is None else pose_images[None]
        scale = np.float32(sampling.guidance_scale)
        args = z, input_ids, negative_ids, images, sampling, scale, key, on_step
        return denoise(self.programs, self.params, *args, **options)

    def _on_host(self, array: jax.Array) -> Any:
        return self.programs.on_host(array)[0]
