"""From a prompt, and a pose clip or none, to a video: text, pose features, DDIM, VAE."""

import dataclasses
import functools
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float32, Int, UInt8
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fyp_jax import compiled
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.compiled import Fingerprint, kept_programs, load_programs
from fyp_jax.config import SampleConfig, save_config
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig, correlated_noise
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import DOWNSCALE, PoseEncoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, UNet3DConfig
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.mesh import AXES, make_mesh, replicate, shard_params
from fyp_jax.parallel.sharded_params import fsdp_shard_map
from fyp_jax.pipeline.files import new_run_folder, write_clip
from fyp_jax.pose.loading import configured_pose, pose_path
from fyp_jax.types import DenoiseFn, FeatureMaps, Latents, Params, TextEmbeddings
from fyp_jax.versions import versions

log = logging.getLogger(__name__)


def cfg_denoiser(
    unet: UNet3D,
    params: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    pose_features: Sequence[FeatureMaps] | None,
    guidance: float | Float[Array, ""],
    pose_guidance: bool = False,
    mesh: Mesh | None = None,
) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2022): negative + guidance * (text - negative).

    Both halves run as one batch and both see the pose: guidance acts on the text alone. With `pose_guidance`
    the negative half sees none, so that guidance acts on the pose as well (guess mode of Zhang et al. 2023).
    On a mesh, devices of its axis `data` have a half each, those of `frame` (the UNet's `frame_axis`) some
    of the frames; parameters stand as `shard_params` has put them.
    """
    texts = jnp.concatenate([negative, text])
    poses = None
    if pose_features is not None:
        poses = [
            jnp.concatenate([jnp.zeros_like(pose) if pose_guidance else pose, pose]) for pose in pose_features
        ]

    # negative + guidance * (text - negative), as a sum over halves, wherever they are.
    shares = jnp.stack([1 - jnp.asarray(guidance), jnp.asarray(guidance)])

    def predict(
        params: Params, z: Latents, t: Array, texts: Float[Array, "halves l d"], poses: Any, shares: Array
    ) -> Latents:
        here = jnp.concatenate([z] * len(texts))
        halves = unet.apply({"params": params}, here, jnp.broadcast_to(t, len(here)), texts, poses)
        weighted = shares.reshape(-1, 1, 1, 1, 1) * jnp.asarray(halves, z.dtype)
        return weighted.sum(axis=0, keepdims=True)

    def denoise(z: Latents, t: Int[Array, ""]) -> Latents:
        if mesh is None:
            return predict(params, z, t, texts, poses, shares)

        def on_device(params: Params, *given: Any) -> Latents:
            return jax.lax.psum(predict(params, *given), "data")

        halves, frames = P("data"), P(None, "frame")
        given = (frames, P(), halves, None if poses is None else P("data", "frame"), halves)
        mapped = fsdp_shard_map(on_device, params, mesh, given, frames)
        return mapped(params, z, t, texts, poses, shares)

    return denoise


def prepare_latents(key: jax.Array, shape: tuple[int, int, int, int, int], shared: float) -> Latents:
    """Standard normal [b f h w c]; `shared` of its variance is the same in all frames of a clip."""
    own = jax.random.normal(key, shape)
    if not shared:
        return own
    same = jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 1, *shape[2:]))
    return correlated_noise(same, own, shared)


class AbstractCall(NamedTuple):
    """Of one of a sampler's programs."""

    args: tuple[Any, ...]
    static: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FollowYourPosePipeline:
    """The models of one pipeline without their weights, and its four compiled programs.

    `params` is {"unet", "pose_encoder", "vae", "text_encoder"} throughout; a clip of the text alone needs no
    "pose_encoder".
    """

    frozen: LatentEncoders
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder
    mesh: Mesh | None = None
    """Devices that share a clip; None: one does it all."""
    compiled: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    """Programs by their method's name, compiled before, to be used in its place ..."""
    compiled_for: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """... by calls that give these arguments no other value."""

    def __post_init__(self):
        """Raises UserError where the UNet does not fit the VAE or the text encoder."""
        config = self.unet.config
        for what, ours, theirs in (
            ("text width", config.cross_attention_dim, self.frozen.spec.text_width),
            ("latent channels", config.in_channels, self.frozen.spec.latent_channels),
            ("pixels for one latent", DOWNSCALE, self.frozen.spec.downscale),
        ):
            if ours != theirs:
                raise UserError(
                    f"the UNet does not fit the VAE and text encoder: {what} {ours} against {theirs}"
                )

    def __call__(
        self,
        params: Params,
        prompt: str,
        skeleton: Float32[np.ndarray, "f H W 3"] | None,
        *,
        size: tuple[int, int, int] | None = None,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int = 50,
        guidance: float = 12.5,
        pose_guidance: bool = False,
        noise_correlation: float = 0.0,
        eta: float = 0.0,
        decode_chunk_size: int = 4,
        on_step: Callable[[], Any] | None = None,
    ) -> UInt8[np.ndarray, "f H W 3"]:
        """A clip of the prompt that moves as the skeleton (RGB in [0, 1] on black) does; RGB in 0..255.

        Without a skeleton the text alone makes it, and `size` is its frames, height and width. ValueError
        unless one of the two is given, with frames and with sides that are multiples of 8 pixels.
        `on_step` is called behind each step. A prompt that is too long for the text encoder is cut, with a
        warning that says what went. UserError where the sampler's compiled programs are for another clip.
        """
        given = {
            "steps": steps,
            "pose_guidance": pose_guidance,
            "eta": eta,
            "decode_chunk_size": decode_chunk_size,
        }
        for name, value in self.compiled_for.items():
            if given[name] != value:
                raise UserError(f"the compiled programs are for {name}={value}, not {given[name]}")
        shape = size if skeleton is None else skeleton.shape[:3]
        if shape is None or (skeleton is not None and size is not None):
            raise ValueError("give a skeleton or a size, one of them")
        frames, height, width = shape
        if min(shape) < 1 or height % DOWNSCALE or width % DOWNSCALE:
            raise ValueError(
                f"no clip has {frames} frames of {height}x{width}: sides are multiples of {DOWNSCALE}"
            )
        text = self._run("encode_text", params, self._tokenize(prompt))
        negative = self._run("encode_text", params, self._tokenize(negative_prompt))
        features = None if skeleton is None else self._run("encode_pose", params, skeleton[None])
        noise_key, step_key = jax.random.split(jax.random.key(seed))
        latents = (1, frames, height // DOWNSCALE, width // DOWNSCALE, self.unet.config.in_channels)
        z = prepare_latents(noise_key, latents, noise_correlation)
        static: dict[str, Any] = {"steps": steps, "pose_guidance": pose_guidance, "eta": eta}
        for number in range(steps):
            given = params, z, np.int32(number), text, negative, features, np.float32(guidance), step_key
            z = self._run("denoise", *given, **static)
            if on_step is not None:
                z.block_until_ready()
                on_step()
        video = self._run("decode", params, z, chunk=decode_chunk_size)
        return np.asarray((video if self.mesh is None else replicate(video, self.mesh))[0])

    def _shard_over_frames(
        self, function: Callable[[Params, Any], Any], frames: int
    ) -> Callable[[Params, Any], Any]:
        """A function of a model's parameters and a clip whose frames do not meet, each frame on one device.

        Where they cannot be shared over both axes, devices of `data` do the same.
        """
        if self.mesh is None:
            return function
        mesh = self.mesh
        axes = ("frame", "data") if frames % mesh.size == 0 else ("frame",)

        def on_mesh(params: Params, clip: Any) -> Any:
            shared = P(None, axes)
            return fsdp_shard_map(function, params, mesh, (shared,), shared)(params, clip)

        return on_mesh

    def _run(self, name: str, *args: Any, **static: Any) -> Any:
        """One of the four programs; one compiled before knows its static arguments."""
        program = self.compiled.get(name)
        return getattr(self, name)(*args, **static) if program is None else program(*args)

    def _tokenize(self, prompt: str) -> Int[np.ndarray, "1 l"]:
        ids, cut = self.frozen.tokenize(prompt)
        if cut:
            log.warning(
                "a prompt is longer than %d tokens; this part of it is not seen: %r", ids.shape[1], cut
            )
        return ids

    def calls(self, config: SampleConfig, params: Params, devices: Sequence[Any]) -> dict[str, AbstractCall]:
        """How a config's clips call the four programs, or three without a pose; shapes in place of arrays.

        `params` are arrays or their shapes, where they stand.
        """

        def shaped(
            shape: tuple[int, ...], dtype: Any = jnp.float32, spec: P | None = None
        ) -> jax.ShapeDtypeStruct:
            place = NamedSharding(self.mesh, spec or P()) if self.mesh else SingleDeviceSharding(devices[0])
            return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
        frames, height, width = config.pose.frames, config.height, config.width
        by_frames, spec = P(None, "frame"), self.frozen.spec
        sides = (height // DOWNSCALE, width // DOWNSCALE)
        noise = shaped((1, frames, *sides, self.unet.config.in_channels), spec=by_frames)
        ids = shaped((1, spec.tokens), jnp.int32)
        text = shaped((1, spec.tokens, spec.text_width))
        number, guidance, key = shaped((), jnp.int32), shaped(()), shaped((), jax.random.key(0).dtype)
        found, features = {"encode_text": AbstractCall((params, ids), {})}, None
        if config.pose.path is not None:
            skeleton = shaped((1, frames, height, width, 3), spec=by_frames)
            found["encode_pose"] = AbstractCall((params, skeleton), {})
            maps = jax.eval_shape(self.pose_encoder.apply, {"params": params["pose_encoder"]}, skeleton)
            features = [shaped(x.shape, x.dtype, by_frames) for x in maps]
        how = {"steps": config.steps, "pose_guidance": config.pose_guidance, "eta": config.eta}
        found["denoise"] = AbstractCall((params, noise, number, text, text, features, guidance, key), how)
        found["decode"] = AbstractCall((params, noise), {"chunk": config.decode_chunk_size})
        return found

    def lower(self, name: str, call: AbstractCall) -> jax.stages.Lowered:
        """One of the four programs, traced for a call and not yet compiled."""
        return getattr(type(self), name).lower(self, *call.args, **call.static)

    @functools.partial(jax.jit, static_argnames=("self",))
    def encode_text(self, params: Params, ids: Int[Array, "b l"]) -> TextEmbeddings:
        text = self.frozen.encode_text(params, ids)
        if self.mesh is None:
            return text
        return jax.lax.with_sharding_constraint(text, NamedSharding(self.mesh, P()))

    @functools.partial(jax.jit, static_argnames=("self",))
    def encode_pose(self, params: Params, skeleton: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
        """Once a clip: the maps do not depend on the timestep."""

        def encode(params: Params, skeleton: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
            return self.pose_encoder.apply({"params": params}, skeleton)  # pyright: ignore

        maps = self._shard_over_frames(encode, skeleton.shape[1])(params["pose_encoder"], skeleton)
        if self.mesh is None:
            return maps
        # Each half of guidance has all of them.
        return jax.lax.with_sharding_constraint(maps, NamedSharding(self.mesh, P(None, "frame")))

    @functools.partial(
        jax.jit, static_argnames=("self", "steps", "pose_guidance", "eta"), donate_argnames="z"
    )
    def denoise(
        self,
        params: Params,
        z: Latents,
        number: Int[Array, ""],
        text: TextEmbeddings,
        negative: TextEmbeddings,
        features: Sequence[FeatureMaps] | None,
        guidance: Float[Array, ""],
        key: Array,
        *,
        steps: int,
        pose_guidance: bool = False,
        eta: float = 0.0,
    ) -> Latents:
        """Step `number` of so many, from 0; `z` is used up."""
        denoise = cfg_denoiser(
            self.unet, params["unet"], text, negative, features, guidance, pose_guidance, self.mesh
        )
        moves = ddim.make_ddim_schedule(self.schedule, steps)
        return ddim.step(denoise, z, number, moves, self.schedule, eta, key)

    @functools.partial(jax.jit, static_argnames=("self", "chunk"))
    def decode(self, params: Params, latents: Latents, *, chunk: int) -> UInt8[Array, "b f H W 3"]:

        def decode(vae: Params, latents: Latents) -> Any:
            return self.frozen.decode_latents({"vae": vae}, latents, chunk)

        video = self._shard_over_frames(decode, latents.shape[1])(params["vae"], latents)
        return jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def sampling_mesh(config: SampleConfig, devices: Sequence[Any]) -> Mesh | None:
    """The first devices, as many as a config asks for; None for a single one.

    Raises UserError where there are fewer, or frames cannot be shared out evenly.
    """
    size = config.mesh.data * config.mesh.frame
    if size == 1:
        return None
    if size > len(devices):
        raise UserError(
            f"mesh.data={config.mesh.data} mesh.frame={config.mesh.frame} is {size} devices; "
            f"there are {len(devices)}"
        )
    if config.pose.frames % config.mesh.frame:
        raise UserError(
            f"pose.frames={config.pose.frames} is not a multiple of mesh.frame={config.mesh.frame}"
        )
    return make_mesh(config.mesh, devices[:size])


def used_devices(mesh: Mesh | None, devices: Sequence[Any]) -> list[Any]:
    """Those of a mesh; without one the first."""
    return list(devices[:1] if mesh is None else mesh.devices.flatten())


def make_sampler(
    config: SampleConfig,
    frozen: LatentEncoders,
    schedule: ScheduleConfig,
    unet_config: UNet3DConfig,
    mesh: Mesh | None,
) -> FollowYourPosePipeline:
    """A config's models on a mesh, or on one device."""
    dtype = jnp.dtype(config.dtype)
    frame_axis = "frame" if mesh is not None and mesh.shape["frame"] > 1 else None
    unet = UNet3D(unet_config, ExecutionConfig(dtype, frame_axis=frame_axis))
    return FollowYourPosePipeline(frozen, schedule, unet, PoseEncoder(unet_config, dtype), mesh)


def sampling_fingerprint(
    config: SampleConfig, sampler: FollowYourPosePipeline, devices: Sequence[Any]
) -> Fingerprint:
    """All that the compiled programs of a sampler depend on."""
    clip = f"{config.pose.frames} frames of {config.height}x{config.width}"
    return {
        "clip": clip + (" from text alone" if config.pose.path is None else " with a pose"),
        **{
            name: str(getattr(config, name))
            for name in ("steps", "pose_guidance", "eta", "dtype", "decode_chunk_size")
        },
        "unet": str(sampler.unet.config.sizes()),
        **sampler.frozen.spec.sizes,
        "schedule": str(sampler.schedule),
        "mesh": f"data={config.mesh.data} frame={config.mesh.frame}",
        **compiled.here(devices),
    }


def load_sampler(
    config: SampleConfig, keep: bool = False
) -> tuple[FollowYourPosePipeline, dict[str, Any], dict[str, Any]]:
    """Models and weights of a config, and a record of the weights for whoever repeats the run.

    With `keep` the programs are compiled for clips of just this config, or are those that an earlier start
    kept (fyp_jax.kept); otherwise each is compiled when it is first called.
    Raises UserError where weights are missing, cannot be read, or do not fit each other.
    """
    folder = PipelineFolder(config.pretrained, parts=() if config.random_init else ("vae", "text_encoder"))
    frozen = folder.latent_encoders()
    dtype = jnp.dtype(config.dtype)
    mesh = sampling_mesh(config, jax.devices())

    def build(unet_config: UNet3DConfig) -> FollowYourPosePipeline:
        return make_sampler(config, frozen, folder.schedule(), unet_config, mesh)

    if config.random_init:
        sampler, provenance = build(folder.unet_config()), {"random": True}
        drawn = random_params(inference_shapes(sampler.unet.config) | frozen.spec.shapes, seed=0)
        params = drawn | {part: _cast(drawn[part], dtype) for part in ("unet", "pose_encoder")}
    else:
        if config.checkpoint is not None:
            found = load_inference(Path(config.checkpoint), dtype)
        elif (found := read_delta_weights(folder, dtype)) is None:
            raise UserError(
                "no trained weights: give checkpoint=FOLDER (scripts/import_pytorch.py makes one), "
                "or random_init=true for a first look"
            )
        unet_config, trained, provenance = found
        sampler = build(unet_config)
        read = tuple(part for part in ENCODERS if part not in trained)
        params = trained | folder.encoder_params(frozen, read)
    record = {
        "pretrained": config.pretrained,
        "folder": str(folder.path),
        "checkpoint": config.checkpoint,
        "provenance": provenance,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "crc32": checksum(params),
    }
    params = jax.tree.map(jnp.asarray, params) if mesh is None else shard_params(params, mesh, AXES)
    devices = used_devices(mesh, jax.local_devices())
    fingerprint = sampling_fingerprint(config, sampler, devices)
    programs = {}
    if config.compiled is not None:
        programs = load_programs(config.compiled, fingerprint, devices)
    elif keep:
        fingerprint["parameters"] = str({part: sorted(_dtypes(params[part])) for part in params})

        def make() -> dict[str, jax.stages.Compiled]:
            calls = sampler.calls(config, params, devices)
            return {name: sampler.lower(name, call).compile() for name, call in calls.items()}

        programs = kept_programs("sampler", fingerprint, devices, make)
    if programs:
        names = ("steps", "pose_guidance", "eta", "decode_chunk_size")
        compiled_for = {name: getattr(config, name) for name in names}
        sampler = dataclasses.replace(sampler, compiled=programs, compiled_for=compiled_for)
    return sampler, params, record


def _dtypes(tree: Params) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def checksum(params: Params) -> int:
    """CRC-32 of all arrays, in the order of their paths."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc


def _cast(tree: Params, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def sample_to_files(config: SampleConfig) -> Iterator[Path]:
    """Make the clips of a config, one for each prompt, in a new folder below `config.out`.

    Yields the mp4 of each when its four files are written. Raises UserError as its parts do. Of several hosts
    the first writes.
    """
    initialize(config.mesh)
    poses = configured_pose(config.pose, config.height, config.width)
    sampler, params, weights = load_sampler(config, keep=True)
    sampler.schedule.timesteps(config.steps)  # tell of a wrong number before a folder is made
    folder = new_run_folder(Path(config.out)) if jax.process_index() == 0 else None
    pose, provenance = config.pose, None
    if pose.path is not None and poses is not None:
        pose_file = pose_path(pose.path).absolute()
        provenance = {"file": str(pose_file), "crc32": zlib.crc32(poses.data)}
        # The pose by its whole path, so that the run can be made again from another folder.
        own_clip = not Path(pose.path).exists()
        pose = pose if own_clip else dataclasses.replace(pose, path=str(pose_file))
    if folder is not None:
        save_config(dataclasses.replace(config, pose=pose), folder / "config.yaml")
    record = {
        "pose": provenance,
        "weights": weights,
        "versions": versions(),
        "config": dataclasses.asdict(config),
    }
    with tqdm(total=config.steps * len(config.prompt), unit="step") as bar, logging_redirect_tqdm():
        for number, prompt in enumerate(config.prompt):
            bar.set_description(prompt[:32])
            video = sampler(
                params,
                prompt,
                poses,
                size=(pose.frames, config.height, config.width) if poses is None else None,
                negative_prompt=config.negative_prompt,
                seed=config.seed,
                steps=config.steps,
                guidance=config.guidance,
                pose_guidance=config.pose_guidance,
                noise_correlation=config.noise_correlation,
                eta=config.eta,
                decode_chunk_size=config.decode_chunk_size,
                on_step=bar.update,
            )
            of_this = {"prompt": prompt, "seed": config.seed} | record
            if folder is not None:
                yield write_clip(folder, number, prompt, video, poses, config.fps, of_this)
