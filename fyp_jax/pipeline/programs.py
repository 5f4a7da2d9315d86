"""The compiled programs that sampling consists of. They hold models, and take all weights as arguments."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from fyp_jax.compilation_cache import Fingerprint, Programs, environment_fingerprint
from fyp_jax.diffusion import solvers
from fyp_jax.diffusion.multistep import History
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.layer_forms import DEFAULT_FORMS, LayerForms
from fyp_jax.models.pose_encoder import DOWNSCALE, PoseEncoder
from fyp_jax.models.unet import UNet3D, UNet3DConfig
from fyp_jax.parallel.mesh import replicate
from fyp_jax.parallel.sharded_params import fsdp_shard_map
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.guidance import cfg_denoiser
from fyp_jax.pipeline.params import TRAINED_FRAMES, SamplingParams
from fyp_jax.pipeline.window_programs import add_key_window, add_windows, solve
from fyp_jax.types import FeatureMaps, Latents, Params, TextEmbeddings

STEP_PARAMS = ("num_inference_steps", "solver", "timestep_spacing", "pose_guidance", "eta")
"""Fields of SamplingParams that the program of a step is compiled for."""
STATIC_PARAMS = (*STEP_PARAMS, "decode_chunk_size")
"""Fields of SamplingParams that the programs are compiled for; the others are arguments of theirs."""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingPrograms:
    """Text encoding, pose encoding, one denoising step, decoding, and encoding of frames, each a jitted
    method. The step of a long clip is several (`pipeline/window_programs.py`).

    `params` is {"unet", "pose_encoder", "vae", "text_encoder"} throughout; a clip from text alone needs no
    "pose_encoder".
    """

    encoders: LatentEncoders
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder
    mesh: Mesh | None = None
    """Devices that compute a clip together; None: one device computes all of it."""
    trained_frames: int = TRAINED_FRAMES
    """Frames of the clips that the temporal layers were trained on."""
    compiled: Programs = dataclasses.field(default_factory=dict)
    """Programs by their method's name that were compiled before, and run in its place."""
    compiled_for: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The STATIC_PARAMS that `compiled` was compiled for."""

    add_key_window, add_windows, solve = add_key_window, add_windows, solve

    def __post_init__(self):
        """Raises UserError where the UNet does not fit the VAE or the text encoder."""
        config, spec = self.unet.config, self.encoders.spec
        for what, ours, theirs in (
            ("text width", config.cross_attention_dim, spec.text_width),
            ("latent channels", config.in_channels, spec.latent_channels),
            ("pixels per latent", DOWNSCALE, spec.downscale),
        ):
            if ours != theirs:
                raise UserError(
                    f"the UNet does not fit the VAE and text encoder: {what} {ours} against {theirs}"
                )

    def run(self, name: str, *args: Any, **static: Any) -> Any:
        """Call a program by name. One that was compiled before already holds its static arguments.

        No program is compiled before for inversion, so `inverse` calls the jitted method.
        """
        program = None if static.get("inverse") else self.compiled.get(name)
        return getattr(self, name)(*args, **static) if program is None else program(*args)

    def solver_schedule(self, sampling: SamplingParams) -> solvers.SolverSchedule:
        """The steps of a clip. Raises UserError where the model's noise schedule has no such steps."""
        return solvers.make_solver_schedule(
            self.schedule, sampling.num_inference_steps, sampling.solver, sampling.timestep_spacing
        )

    def on_host(self, array: jax.Array) -> np.ndarray:
        """What a program gave, whole in each process of a mesh."""
        return np.asarray(array if self.mesh is None else replicate(array, self.mesh))

    def check_compiled_for(self, sampling: SamplingParams) -> None:
        """Raise UserError where `compiled` is for other sampling options."""
        for name, value in self.compiled_for.items():
            if getattr(sampling, name) != value:
                raise UserError(
                    f"the compiled programs are for {name}={value}, not {getattr(sampling, name)}"
                )

    @functools.partial(jax.jit, static_argnames=("self",))
    def encode_text(self, params: Params, input_ids: Int[Array, "b l"]) -> TextEmbeddings:
        text = self.encoders.encode_text(params, input_ids)
        if self.mesh is None:
            return text
        return jax.lax.with_sharding_constraint(text, NamedSharding(self.mesh, P()))

    @functools.partial(jax.jit, static_argnames=("self",))
    def encode_pose(self, params: Params, pose_images: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
        """Feature maps of RGB in [0, 1]. They do not depend on the timestep, so they are computed once a
        clip."""

        def encode(params: Params, pose_images: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
            return self.pose_encoder.apply({"params": params}, pose_images)  # pyright: ignore

        maps = self._shard_over_frames(encode, pose_images.shape[1])(params["pose_encoder"], pose_images)
        if self.mesh is None:
            return maps
        # Both branches of guidance get all maps.
        return jax.lax.with_sharding_constraint(maps, NamedSharding(self.mesh, P(None, "frame")))

    @functools.partial(
        jax.jit,
        static_argnames=("self", *STEP_PARAMS, "inverse"),
        donate_argnames=("z", "history"),
    )
    def denoise(
        self,
        params: Params,
        z: Latents,
        history: History,
        step_index: Int[Array, ""],
        text: TextEmbeddings,
        negative: TextEmbeddings,
        pose_features: Sequence[FeatureMaps] | None,
        guidance_scale: Float[Array, ""],
        key: Array,
        *,
        num_inference_steps: int,
        solver: str = "ddim",
        timestep_spacing: str | None = None,
        pose_guidance: bool = False,
        eta: float = 0.0,
        inverse: bool = False,
    ) -> tuple[Latents, History]:
        """Latents and history (`solvers.init_history`) after one step of the solver, counted from 0.

        `inverse` makes a step of DDIM towards noise. `z` and `history` are donated.
        """
        denoise = cfg_denoiser(
            self.unet,
            params["unet"],
            text,
            negative,
            pose_features,
            guidance_scale,
            pose_guidance,
            self.mesh,
        )
        steps = solvers.make_solver_schedule(self.schedule, num_inference_steps, solver, timestep_spacing)
        if inverse:
            steps = solvers.reverse(steps)
        z, history = solvers.step(denoise, z, history, step_index, steps, self.schedule, eta, key)
        if self.mesh is not None and history:
            history = jax.lax.with_sharding_constraint(history, NamedSharding(self.mesh, P(None, "frame")))
        return z, history

    @functools.partial(jax.jit, static_argnames=("self", "chunk"))
    def decode(self, params: Params, latents: Latents, *, chunk: int) -> UInt8[Array, "b f H W 3"]:
        """RGB in 0..255 of latents, `chunk` frames at a time."""

        def decode(vae: Params, latents: Latents) -> Any:
            return self.encoders.decode_latents({"vae": vae}, latents, chunk)

        video = self._shard_over_frames(decode, latents.shape[1])(params["vae"], latents)
        return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)

    @functools.partial(jax.jit, static_argnames=("self",))
    def encode_frames(self, params: Params, video: Float[Array, "b f H W 3"]) -> Latents:
        """Latents of RGB in [-1, 1]: the mean of the VAE's posterior, times the scaling factor."""

        def encode(vae: Params, video: Array) -> Latents:
            return self.encoders.encode_images({"vae": vae}, video)

        return self._shard_over_frames(encode, video.shape[1])(params["vae"], video)

    def _shard_over_frames(
        self, function: Callable[[Params, Any], Any], frames: int
    ) -> Callable[[Params, Any], Any]:
        """A function of a model's parameters and a clip, computed frame by frame on the mesh's devices.

        Where the frames do not divide over both axes of the mesh, the devices along `data` compute the same.
        """
        if self.mesh is None:
            return function
        mesh = self.mesh
        axes = ("frame", "data") if frames % mesh.size == 0 else ("frame",)

        def on_mesh(params: Params, clip: Any) -> Any:
            spec = P(None, axes)
            return fsdp_shard_map(function, params, mesh, (spec,), spec)(params, clip)

        return on_mesh

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
        """The shape of the latents of a clip of so many pixels."""
        return (1, frames, height // DOWNSCALE, width // DOWNSCALE, self.unet.config.in_channels)

    def check(self, sampling: SamplingParams, whole: bool = False) -> None:
        """Raise UserError for options that this model, its noise schedule or the mesh cannot take.

        `whole` is for a clip that is never made in windows, as an edit.
        """
        grid = DOWNSCALE * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name in ("height", "width"):
            if getattr(sampling, name) % grid:
                raise UserError(f"{name}={getattr(sampling, name)} is not a multiple of {grid}")
        self.solver_schedule(sampling)
        frames = sampling.num_frames
        window = frames if whole else self.window(sampling)
        if not whole and sampling.window_overlap >= window:
            raise UserError(f"window_overlap={sampling.window_overlap} is not less than window={window}")
        if self.mesh is None:
            return
        data, frame = self.mesh.shape["data"], self.mesh.shape["frame"]
        if min(frames, window) % frame:
            name = f"window={window}" if frames > window else f"num_frames={frames}"
            raise UserError(f"{name} is not a multiple of mesh.frame={frame}")
        if data > 2 and frames <= window:
            raise UserError(
                f"mesh.data={data}: a clip of {frames} frames is one window, which takes mesh.data=1 or 2"
            )

    def window(self, sampling: SamplingParams) -> int:
        """How many frames of a clip are denoised together; a longer clip is made in windows."""
        return sampling.window or self.trained_frames


def make_programs(
    config: SampleConfig,
    encoders: LatentEncoders,
    schedule: ScheduleConfig,
    unet_config: UNet3DConfig,
    mesh: Mesh | None,
    forms: LayerForms = DEFAULT_FORMS,
    trained_frames: int = TRAINED_FRAMES,
) -> SamplingPrograms:
    """The programs of a config, on a mesh or on one device."""
    dtype = jnp.dtype(config.dtype)
    frame_axis = "frame" if mesh is not None and mesh.shape["frame"] > 1 else None
    unet = UNet3D(unet_config, ExecutionConfig(dtype, frame_axis=frame_axis, forms=forms))
    pose_encoder = PoseEncoder(unet_config, dtype)
    return SamplingPrograms(encoders, schedule, unet, pose_encoder, mesh, trained_frames=trained_frames)


def sampling_fingerprint(
    config: SampleConfig, programs: SamplingPrograms, devices: Sequence[Any]
) -> Fingerprint:
    """All that the compiled programs of a config depend on."""
    clip = f"{config.num_frames} frames of {config.height}x{config.width}"
    mesh = {} if programs.mesh is None else programs.mesh.shape
    if config.num_frames > programs.window(config):
        clip += f" in windows of {programs.window(config)}"
    return {
        "clip": clip + (" from text alone" if config.pose.path is None else " with a pose"),
        **{
            name: str(getattr(config, name)) for name in (*STATIC_PARAMS, "dtype", "attention_implementation")
        },
        "unet": str(programs.unet.config.sizes()),
        **programs.encoders.spec.sizes,
        "schedule": str(programs.schedule),
        "mesh": f"data={mesh.get('data', 1)} frame={mesh.get('frame', 1)}",
        **environment_fingerprint(devices),
    }
