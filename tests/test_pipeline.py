"""FollowYourPosePipeline, from a prompt and a pose to frames, with a tiny model of random weights."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tiny_models
from conftest import slow
from fyp_jax.config import load_config
from fyp_jax.errors import UserError
from fyp_jax.media.images import image_grid
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import AXES, make_mesh, shard_params
from fyp_jax.pipeline import files
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.files import sample_to_files
from fyp_jax.pipeline.guidance import cfg_denoiser
from fyp_jax.pipeline.loading import checksum
from fyp_jax.pipeline.noise import prepare_latents
from fyp_jax.pipeline.output import PipelineOutput
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.loading import load_pose
from fyp_jax.tpu.flops import count_products, total_flops

FRAMES, HEIGHT, WIDTH = 3, 64, 128
PROMPT = "a robot"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SampleConfig:
    return tiny_models.sample_config(
        tmp_path_factory.mktemp("tiny"),
        prompt=[PROMPT],
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=4,
    )


@pytest.fixture(scope="module")
def pipeline(config: SampleConfig) -> FollowYourPosePipeline:
    return FollowYourPosePipeline.from_config(config)


def dance(start: int = 0) -> np.ndarray:
    return load_pose("dance", num_frames=FRAMES, stride=5, start=start, height=HEIGHT, width=WIDTH)


@pytest.fixture(scope="module")
def pose() -> np.ndarray:
    return dance()


@pytest.fixture(scope="module")
def output(pipeline: FollowYourPosePipeline, pose: np.ndarray) -> PipelineOutput:
    return pipeline(PROMPT, pose)


def difference(one: PipelineOutput, other: PipelineOutput) -> float:
    """Mean absolute difference of two clips, in grey levels of 255."""
    return float(np.abs(one.frames.astype(int) - other.frames).mean())


def rounding(one: PipelineOutput, other: PipelineOutput) -> bool:
    """Whether two clips differ by one grey level at most."""
    return bool(np.abs(one.frames.astype(int) - other.frames).max() <= 1)


def test_output_has_frames_latents_and_pose_of_the_clip(output: PipelineOutput, pose: np.ndarray):
    assert (output.frames.shape, output.frames.dtype) == (pose.shape, np.uint8)
    assert (output.latents.shape, output.latents.dtype) == ((FRAMES, HEIGHT // 8, WIDTH // 8, 4), np.float32)
    np.testing.assert_array_equal(output.pose_images, pose)
    assert output.frames.std() > 5, "a clip is not a plain colour"
    assert np.abs(output.frames[0].astype(int) - output.frames[1]).mean() > 1, "frames differ"


def test_frames_are_the_decoded_latents(pipeline: FollowYourPosePipeline, output: PipelineOutput):
    decoded = pipeline.programs.decode(pipeline.params, jnp.asarray(output.latents)[None], chunk=4)
    np.testing.assert_array_equal(decoded[0], output.frames)


def test_same_seed_gives_the_same_clip(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput
):
    np.testing.assert_array_equal(pipeline(PROMPT, pose).frames, output.frames)


def test_options_of_a_call_may_be_an_object_or_words(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput
):
    sampling = dataclasses.replace(pipeline.defaults, seed=7)
    np.testing.assert_array_equal(pipeline(PROMPT, pose, sampling, seed=0).frames, output.frames)
    other = pipeline(PROMPT, pose, seed=7)
    np.testing.assert_array_equal(pipeline(PROMPT, pose, sampling).frames, other.frames)
    assert difference(other, output) > 0.5


def test_pose_file_gives_the_clip_of_its_frames(pipeline: FollowYourPosePipeline, output: PipelineOutput):
    np.testing.assert_array_equal(pipeline(PROMPT, "dance").frames, output.frames)


@pytest.mark.parametrize(
    "change", [{"prompt": "a panda"}, {"negative_prompt": "blurry"}, {"guidance_scale": 5.0}]
)
def test_other_text_or_guidance_changes_the_clip(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput, change: dict
):
    assert difference(pipeline(**{"prompt": PROMPT, "pose": pose} | change), output) > 0.5


def test_other_pose_changes_the_clip(pipeline: FollowYourPosePipeline, output: PipelineOutput):
    assert difference(pipeline(PROMPT, dance(start=40)), output) > 0.5
    assert difference(pipeline(PROMPT, "dance", pose_start=40), output) > 0.5


@pytest.fixture(scope="module")
def text_pipeline(pipeline: FollowYourPosePipeline) -> FollowYourPosePipeline:
    """The pipeline without the weights of a pose encoder."""
    params = {part: arrays for part, arrays in pipeline.params.items() if part != "pose_encoder"}
    return dataclasses.replace(pipeline, params=params)


@pytest.fixture(scope="module")
def text_output(text_pipeline: FollowYourPosePipeline) -> PipelineOutput:
    return text_pipeline(PROMPT)


def test_clip_from_text_alone_needs_no_pose_encoder(
    text_pipeline: FollowYourPosePipeline, output: PipelineOutput, text_output: PipelineOutput
):
    assert (text_output.frames.shape, text_output.frames.dtype) == (output.frames.shape, np.uint8)
    assert text_output.pose_images is None
    assert difference(text_output, output) > 0.5
    np.testing.assert_array_equal(text_pipeline(PROMPT).frames, text_output.frames)
    assert difference(text_pipeline(PROMPT, seed=1), text_output) > 0.5


def test_no_pose_equals_a_pose_encoder_of_zeros(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, text_output: PipelineOutput
):
    zeros = jax.tree.map(jnp.zeros_like, pipeline.params["pose_encoder"])
    silent = dataclasses.replace(pipeline, params=pipeline.params | {"pose_encoder": zeros})
    assert rounding(silent(PROMPT, pose), text_output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
        ({"height": 60}, "height=60 is not a multiple of 64; 64 is the nearest"),
        ({"width": 100}, "width=100 is not a multiple of 64; 128 is the nearest"),
        ({"height": 0}, "height=0 is not a multiple of 64"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001 is not between 1 and 1000"),
    ],
)
def test_options_that_make_no_clip_are_refused(pipeline: FollowYourPosePipeline, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline(PROMPT, **changes)


def test_sizes_that_do_not_fit_each_other_are_refused(pipeline: FollowYourPosePipeline, pose: np.ndarray):
    with pytest.raises(UserError, match="num_frames=5, but the pose, video or latents have 3"):
        pipeline(PROMPT, pose, num_frames=5)
    with pytest.raises(UserError, match="width=64, but the pose, video or latents have 128"):
        pipeline(PROMPT, pose, dataclasses.replace(pipeline.defaults, width=64))
    with pytest.raises(UserError, match="3 frames of 64x128 against 2 frames of 128x64 pixels"):
        pipeline._sizes(frames=(pose,), latents=np.zeros((2, 16, 8, 4), np.float32))
    with pytest.raises(UserError, match="2 frames of 64x128 against 3 frames of 64x128 pixels"):
        pipeline._sizes(frames=(pose[:2], pose))


def test_sizes_that_do_not_fit_the_model_are_refused(pipeline: FollowYourPosePipeline, pose: np.ndarray):
    for shape in ((3, 8, 8, 8), (3, 8, 8)):
        with pytest.raises(UserError, match=r"latents of this model have the shape \[f h w 4\], not float32"):
            pipeline._sizes(frames=(), latents=np.zeros(shape, np.float32))
    with pytest.raises(UserError, match="height=48 is not a multiple of 64"):
        pipeline(PROMPT, latents=np.zeros((1, 6, 8, 4), np.float32))
    with pytest.raises(UserError, match="height=32 is not a multiple of 64"):
        pipeline(PROMPT, pose[:, :32])
    levels = {"down_block_types": ["DownBlock2D"] * 5, "up_block_types": ["UpBlock2D"] * 5}
    five = dataclasses.replace(pipeline.programs.unet.config, block_out_channels=[16] * 5, **levels)
    deeper = dataclasses.replace(pipeline, programs=dataclasses.replace(pipeline.programs, unet=UNet3D(five)))
    with pytest.raises(UserError, match="height=64 is not a multiple of 128"):
        deeper(PROMPT)


def test_pose_in_memory_that_is_not_uint8_is_refused(pipeline: FollowYourPosePipeline, pose: np.ndarray):
    """Skeletons in [0, 1] would be taken for black ones."""
    for wrong in (pose.astype(np.float32) / 255, pose[..., :1], pose[0]):
        with pytest.raises(
            UserError, match=r"frames in memory are uint8 RGB in 0..255 of the shape \[f h w 3\]"
        ):
            pipeline._sizes(frames=(wrong,))


def test_frames_that_do_not_divide_over_the_mesh_are_refused(pipeline: FollowYourPosePipeline):
    mesh = make_mesh(MeshConfig(data=1, frame=2), jax.devices()[:2])
    on_mesh = dataclasses.replace(pipeline, programs=dataclasses.replace(pipeline.programs, mesh=mesh))
    with pytest.raises(UserError, match="num_frames=3 is not a multiple of mesh.frame=2"):
        on_mesh(PROMPT)


def test_unknown_option_is_a_type_error(pipeline: FollowYourPosePipeline, pose: np.ndarray):
    with pytest.raises(TypeError, match="steps: not an argument, nor a field of SamplingParams"):
        pipeline(PROMPT, pose, steps=2)
    with pytest.raises(TypeError, match="guidance: not an argument"):
        pipeline.invert(pose, guidance=2)


def test_pipeline_prints_where_its_weights_are_from_and_no_array(pipeline: FollowYourPosePipeline):
    assert "'random': True" in repr(pipeline)
    assert len(repr(pipeline)) < 1000


def test_inverted_clip_is_nearer_to_the_clip_than_noise_is(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput
):
    """Guidance is off. The latents are not changed by the call, and eta adds no noise to an inversion."""
    source = pipeline.encode(output.frames)
    latents = pipeline.invert(output.frames, PROMPT, pose=pose, eta=0.5)
    assert (latents.shape, latents.dtype) == (source.shape, np.float32)
    again = pipeline(PROMPT, pose, latents=latents, guidance_scale=1.0)
    from_noise = pipeline(PROMPT, pose, guidance_scale=1.0)
    errors = [np.abs(clip.latents - source).mean() for clip in (again, from_noise)]
    assert errors[0] < 0.2 * errors[1]
    np.testing.assert_array_equal(
        pipeline(PROMPT, pose, latents=latents, guidance_scale=1.0).frames, again.frames
    )


def test_inversion_of_a_file_is_that_of_its_first_frames(
    pipeline: FollowYourPosePipeline, tmp_path: Path, output: PipelineOutput
):
    write_mp4(tmp_path / "clip.mp4", np.concatenate([output.frames, output.frames]), 8)
    frames = read_frames(tmp_path / "clip.mp4", range(FRAMES))
    of_file = pipeline.invert(tmp_path / "clip.mp4", PROMPT, pose="dance")
    np.testing.assert_array_equal(of_file, pipeline.invert(frames, PROMPT, pose="dance"))


def test_inversion_does_not_run_the_programs_compiled_for_sampling(
    pipeline: FollowYourPosePipeline, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SamplingPrograms, "denoise", lambda self, *args, **static: "jitted")
    programs = dataclasses.replace(pipeline.programs, compiled={"denoise": lambda *args: "compiled"})
    assert programs.run("denoise", num_inference_steps=4) == "compiled"
    assert programs.run("denoise", num_inference_steps=4, inverse=True) == "jitted"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "scheduler"),
    [("dpm++2m", "DPMSolverMultistepScheduler"), slow("unipc", "UniPCMultistepScheduler")],
)
def test_solver_makes_the_latents_that_its_scheduler_in_diffusers_makes(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput, solver: str, scheduler: str
):
    """The scheduler of PyTorch calls our UNet with guidance and pose."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    programs, params, sampling = pipeline.programs, pipeline.params, pipeline.defaults
    found = pipeline(PROMPT, pose, solver=solver)
    assert difference(found, output) > 0.5, "another solver makes another clip"

    text, negative = (
        programs.encode_text(params, programs.encoders.tokenize(prompt)[0]) for prompt in (PROMPT, "")
    )
    features = programs.encode_pose(params, pose[None].astype(np.float32) / 255)
    denoise = jax.jit(
        cfg_denoiser(programs.unet, params["unet"], text, negative, features, sampling.guidance_scale)
    )
    theirs = getattr(diffusers, scheduler)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs.set_timesteps(sampling.num_inference_steps)
    noise_key, _ = jax.random.split(jax.random.key(sampling.seed))
    z = torch.from_numpy(
        np.array(prepare_latents(noise_key, programs.latent_shape(FRAMES, HEIGHT, WIDTH), 0.0))
    )
    for t in theirs.timesteps:
        predicted = np.array(denoise(jnp.asarray(z.numpy()), jnp.int32(int(t))))
        z = theirs.step(torch.from_numpy(predicted), t, z).prev_sample
    np.testing.assert_allclose(found.latents, z.numpy()[0], atol=1e-4 * float(z.abs().max()))


def test_inversion_is_that_of_ddim_whatever_the_solver(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput
):
    found = pipeline.invert(output.frames, PROMPT, pose=pose, solver="unipc", timestep_spacing="linspace")
    np.testing.assert_array_equal(found, pipeline.invert(output.frames, PROMPT, pose=pose))


def test_save_writes_the_format_of_the_suffix(output: PipelineOutput, tmp_path: Path):
    assert output.save(tmp_path / "new" / "clip.mp4") == tmp_path / "new" / "clip.mp4"
    read = read_frames(tmp_path / "new" / "clip.mp4", range(FRAMES))
    assert read.shape == output.frames.shape
    means = [clip.mean(axis=(1, 2, 3)) for clip in (read, output.frames)]
    np.testing.assert_allclose(*means, atol=5)  # H.264 loses the noise of random weights, and keeps the rest
    output.save(tmp_path / "clip.GIF", fps=4.0)
    with Image.open(tmp_path / "clip.GIF") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (FRAMES, (WIDTH, HEIGHT), 250)
    output.save(str(tmp_path / "clip.png"))
    with Image.open(tmp_path / "clip.png") as grid:
        np.testing.assert_array_equal(np.asarray(grid), image_grid([output.pose_images, output.frames]))


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.txt"])
def test_save_refuses_other_suffixes(output: PipelineOutput, tmp_path: Path, name: str):
    with pytest.raises(UserError, match="a clip is saved as .mp4, .gif or .png"):
        output.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_refuses_a_path_that_cannot_be_written(output: PipelineOutput, tmp_path: Path):
    (tmp_path / "file").touch()
    for suffix in (".mp4", ".gif", ".png"):
        with pytest.raises(UserError, match="cannot be written"):
            output.save(tmp_path / "file" / f"clip{suffix}")


def test_run_without_a_pose_repeats_from_its_config(
    config: SampleConfig,
    pipeline: FollowYourPosePipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Denoising is left out: the tests above are about clips, this one is about what a run writes."""
    monkeypatch.setattr(
        files.FollowYourPosePipeline,
        "from_config",
        lambda config, use_cache: dataclasses.replace(pipeline, defaults=config),
    )
    monkeypatch.setattr(FollowYourPosePipeline, "_denoise", lambda self, z, *args, **static: z)
    config = dataclasses.replace(config, pose=PoseConfig(path=None), output_dir=str(tmp_path))
    (first,) = sample_to_files(config)
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["pose"] is None
    assert record["config"] == dataclasses.asdict(config)
    again = load_config(SampleConfig, first.with_name("config.yaml"), [])
    assert again == config
    (second,) = sample_to_files(again)
    assert second.parent != first.parent
    assert second.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("chunk", [slow(1), 2])
def test_decoding_in_chunks_gives_the_same_clip(
    pipeline: FollowYourPosePipeline, output: PipelineOutput, chunk: int
):
    latents = jnp.asarray(output.latents)[None]
    frames = pipeline.programs.decode(pipeline.params, latents, chunk=chunk)[0]
    assert np.abs(frames.astype(int) - output.frames).max() <= 1  # rounding


def test_on_step_is_called_after_each_step(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, output: PipelineOutput
):
    steps: list[int] = []
    result = pipeline(PROMPT, pose, on_step=lambda: steps.append(1))
    np.testing.assert_array_equal(result.frames, output.frames)
    assert len(steps) == pipeline.defaults.num_inference_steps


def test_long_prompt_is_cut_with_a_warning(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        pipeline("robot " * 30 + "umbrella", pose)
    assert f"{pipeline.programs.encoders.spec.tokens} tokens" in caplog.text
    assert "umbrella" in caplog.text


@pytest.mark.slow
def test_denoising_step_has_the_flops_of_the_unet_on_two_branches(pipeline: FollowYourPosePipeline):
    """No pose encoder, no text encoder and no VAE is in it."""
    programs, params = pipeline.programs, pipeline.params
    config = programs.unet.config
    z, text = jnp.zeros((1, 2, 8, 8, config.in_channels)), jnp.zeros((1, 77, config.cross_attention_dim))
    maps = jax.eval_shape(programs.encode_pose, params, jnp.zeros((1, 2, 64, 64, 3)))
    features = [jnp.zeros(leaf.shape) for leaf in maps]

    def step(z: jax.Array) -> jax.Array:
        args = params, z, (), jnp.int32(3), text, text, features, jnp.float32(2.0), jax.random.key(0)
        return programs.denoise(*args, num_inference_steps=7)[0]

    def unet(z: jax.Array) -> jax.Array:
        twice = lambda x: jnp.concatenate([x, x])  # noqa: E731
        variables = {"params": params["unet"]}
        return programs.unet.apply(
            variables, twice(z), jnp.zeros(2, jnp.int32), twice(text), [twice(f) for f in features]
        )

    assert total_flops(count_products(step, z)) == total_flops(count_products(unet, z))


def test_pose_encoder_runs_once_and_text_encoder_twice(
    pipeline: FollowYourPosePipeline, pose: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    calls: list[str] = []
    run = SamplingPrograms.run

    def counted(self: SamplingPrograms, name: str, *args: Any, **static: Any) -> Any:
        calls.append(name)
        return run(self, name, *args, **static)

    monkeypatch.setattr(SamplingPrograms, "run", counted)
    pipeline(PROMPT, pose)
    assert calls == ["encode_text", "encode_text", "encode_pose", *["denoise"] * 4, "decode"]


class LinearUNet(UNet3D):
    """A sum of all that the UNet is given, whose guidance is known without a network."""

    @nn.compact
    def __call__(self, latents: Any, timesteps: Any, text: Any, pose_features: Any = None) -> Any:
        BATCHES.append(len(latents))
        weight = self.param("weight", nn.initializers.zeros, (2**17,)).mean()
        total = weight * latents + (timesteps / 1000 + text.mean(axis=(1, 2)))[:, None, None, None, None]
        return total if pose_features is None else total + pose_features[0]


BATCHES: list[int] = []


class Inputs(NamedTuple):
    """Arguments of `cfg_denoiser`, and latents; text, negative text and pose have other values."""

    unet: UNet3D
    params: dict[str, Any]
    text: jax.Array
    negative: jax.Array
    features: list[jax.Array]
    z: jax.Array


@pytest.fixture
def inputs() -> Inputs:
    keys = jax.random.split(jax.random.key(0), 4)
    text, negative = (jax.random.normal(key, (1, 7, 8)) for key in keys[:2])
    z, feature = (jax.random.normal(key, (1, 4, 8, 8, 4)) for key in keys[2:])
    params = {"weight": jnp.linspace(0.0, 1.0, 2**17)}  # long enough to be sharded
    return Inputs(LinearUNet(tiny_models.UNET), params, text, negative, [feature], z)


def test_guidance_is_linear_and_runs_as_one_batch(inputs: Inputs):
    unet, params, text, negative, _, z = inputs
    BATCHES.clear()

    @jax.jit
    def predict(scale: jax.Array) -> jax.Array:
        return cfg_denoiser(unet, params, text, negative, None, scale)(z, jnp.int32(500))

    only_negative, only_text, double = (predict(jnp.float32(scale)) for scale in (0, 1, 2))
    assert BATCHES == [2]
    assert jnp.abs(only_text - only_negative).max() > 1e-3
    np.testing.assert_allclose(double, 2 * only_text - only_negative, rtol=1e-5)


def test_pose_guidance_leaves_the_pose_out_of_the_unconditional_branch(inputs: Inputs):
    """Compared with separate calls of the UNet: the prompt with the pose, the negative prompt without."""
    unet, params, text, negative, features, z = inputs

    def predict(pose_guidance: bool) -> jax.Array:
        denoise = cfg_denoiser(unet, params, text, negative, features, 3.0, pose_guidance)
        return denoise(z, jnp.int32(500))

    def call(text: jax.Array, features: list[jax.Array] | None) -> Any:
        return unet.apply({"params": params}, z, jnp.array([500]), text, features)

    without, posed, conditional = call(negative, None), call(negative, features), call(text, features)
    np.testing.assert_allclose(predict(True), without + 3 * (conditional - without), atol=1e-5)
    np.testing.assert_allclose(predict(False), posed + 3 * (conditional - posed), atol=1e-5)
    assert jnp.abs(predict(True) - predict(False)).max() > 1e-2


@pytest.mark.parametrize("pose_guidance", [False, True])
def test_guidance_on_a_mesh_is_that_of_one_device(inputs: Inputs, pose_guidance: bool):
    """The cheap sibling of the test of whole clips on a mesh, below."""
    unet, params, *args, z = inputs
    mesh = make_mesh(MeshConfig(data=2, frame=2), jax.devices()[:4])
    sharded = shard_params(params, mesh, AXES)
    assert sharded["weight"].addressable_shards[0].data.shape == (2**17 // 4,)
    BATCHES.clear()
    on_mesh = cfg_denoiser(unet, sharded, *args, 3.0, pose_guidance, mesh)
    on_one = cfg_denoiser(unet, params, *args, 3.0, pose_guidance)
    predicted = jax.jit(on_mesh)(z, jnp.int32(500))
    assert BATCHES[-1] == 1, "one branch per device"
    np.testing.assert_allclose(predicted, on_one(z, jnp.int32(500)), rtol=1e-4)


@pytest.mark.slow
def test_mesh_of_branches_and_frames_makes_the_same_clip(config: SampleConfig):
    """Each branch of guidance, and each two frames, on a device of their own; parameters are sharded."""
    pose = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    outputs, held = [], []
    for mesh in (MeshConfig(data=1), MeshConfig(data=2, frame=2)):
        changes = {"pretrained": "mini", "num_frames": 4, "width": 64, "mesh": mesh}
        changed = dataclasses.replace(config, pose_guidance=True, guidance_scale=3.0, **changes)
        pipeline = FollowYourPosePipeline.from_config(changed)
        outputs.append(pipeline(PROMPT, pose))
        shards = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(pipeline.params)]
        held.append((sum(shards), pipeline.weights["crc32"]))
    assert rounding(*outputs)
    assert held[1][0] < held[0][0] / 3
    assert held[0][1] == held[1][1]


@pytest.mark.parametrize(("frames", "per_device"), [(8, 2), (6, 3)])
def test_frame_wise_models_use_all_devices_where_frames_divide(
    pipeline: FollowYourPosePipeline, frames: int, per_device: int
):
    """Six frames do not divide over two by two devices: the devices of both branches compute the same."""
    mesh = make_mesh(MeshConfig(data=2, frame=2), jax.devices()[:4])
    seen = []

    def double(params: Any, clip: jax.Array) -> jax.Array:
        seen.append(clip.shape[1])
        return clip * params["factor"]

    sharded = dataclasses.replace(pipeline.programs, mesh=mesh)._shard_over_frames(double, frames)
    clip = jnp.arange(float(frames)).reshape(1, frames)
    np.testing.assert_array_equal(sharded({"factor": jnp.full((), 2.0)}, clip), 2 * clip)
    assert seen == [per_device]


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_noise_correlation_is_that_of_two_frames(correlation: float):
    """Each frame remains standard normal."""
    z = np.asarray(prepare_latents(jax.random.key(0), (1, 3, 64, 64, 4), correlation))[0]
    covariance = np.cov(z.reshape(3, -1))
    np.testing.assert_allclose(covariance, correlation + (1 - correlation) * np.eye(3), atol=0.04)


@pytest.mark.slow
def test_memory_of_decoding_does_not_grow_with_the_clip(pipeline: FollowYourPosePipeline):
    programs, params = pipeline.programs, pipeline.params

    def temporaries(frames: int) -> int:
        latents = jnp.zeros((1, frames, 16, 16, programs.unet.config.in_channels))
        decode = jax.jit(lambda p, z: programs.encoders.decode_latents(p, z, 2))
        return decode.lower(params, latents).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(4), temporaries(32)
    video = 28 * 128 * 128 * 3 * 4  # bytes of the 28 frames that the longer clip has more
    assert many - few < 3 * video, f"{few} bytes for 4 frames, {many} for 32"


def test_bfloat16_halves_the_weights_of_unet_and_pose_encoder(
    config: SampleConfig, pipeline: FollowYourPosePipeline
):
    half = FollowYourPosePipeline.from_config(dataclasses.replace(config, dtype="bfloat16"))

    def size(pipeline: FollowYourPosePipeline, *parts: str) -> int:
        return sum(leaf.nbytes for part in parts for leaf in jax.tree.leaves(pipeline.params[part]))

    for part in ("unet", "pose_encoder"):
        assert size(half, part) == size(pipeline, part) / 2
        assert {leaf.dtype for leaf in jax.tree.leaves(half.params[part])} == {jnp.dtype(jnp.bfloat16)}
    for part in ("vae", "text_encoder"):
        assert size(half, part) == size(pipeline, part)
        assert {leaf.dtype for leaf in jax.tree.leaves(half.params[part])} == {jnp.dtype(jnp.float32)}
    assert half.weights["parameters"] == pipeline.weights["parameters"]
    assert half.weights["crc32"] != pipeline.weights["crc32"]


def test_checksum_changes_with_a_single_bit(pipeline: FollowYourPosePipeline):
    params = pipeline.params
    assert checksum(params) == pipeline.weights["crc32"]
    conv_out = params["unet"]["conv_out"]
    changed = conv_out | {"bias": conv_out["bias"].at[0].set(1e-30)}
    assert checksum(params | {"unet": params["unet"] | {"conv_out": changed}}) != checksum(params)


def test_models_of_other_widths_are_refused(pipeline: FollowYourPosePipeline):
    programs = pipeline.programs
    other = dataclasses.replace(programs.unet.config, cross_attention_dim=48)
    with pytest.raises(UserError, match="text width 48 against 8"):
        dataclasses.replace(programs, unet=UNet3D(other))


def test_defaults_of_a_pipeline_from_a_config_are_those_of_the_config(pipeline: FollowYourPosePipeline):
    assert pipeline.defaults == SamplingParams(
        num_frames=FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=4, guidance_scale=2.0
    )
