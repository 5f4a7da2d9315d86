"""A pipeline folder that PyTorch wrote gives the same results with our models as with PyTorch's."""

import json
import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import jax
import numpy as np
import pytest
import torch
from einops import rearrange
from flax.traverse_util import flatten_dict
from transformers import CLIPTextModel, CLIPTokenizer, CLIPTokenizerFast

import tiny_models
from conftest import fill_torch, tagged
from fake_hub import FakeHub
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.models.unet import UNet3D, UNet3DConfig
from fyp_jax.trees import TreeMismatch

PROMPTS = [
    "",
    "a robot dances on the moon",
    "Two  ASTRONAUTS, surfing!? (4k)",
    "un café à la plage \N{ROBOT FACE}",
    "a very long prompt " * 12,
]


class Encoders(NamedTuple):
    models: LatentEncoders
    params: dict[str, Any]


@pytest.fixture(scope="module")
def encoders(pipeline_folder: Path) -> Encoders:
    folder = PipelineFolder(str(pipeline_folder))
    models = folder.latent_encoders()
    return Encoders(models, folder.encoder_params(models))


@pytest.fixture(scope="module")
def torch_vae(pipeline_folder: Path) -> Any:
    return diffusers.AutoencoderKL.from_pretrained(pipeline_folder / "vae")


def assert_close(found: jax.Array | np.ndarray, expected: torch.Tensor | np.ndarray, what: str) -> None:
    """Shapes are equal, and the largest difference is below 1e-4 of the largest number."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{what}: shape {found.shape}, PyTorch has {expected.shape}"
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{what}: relative error {error:.1e}"


def to_torch(clip: np.ndarray) -> torch.Tensor:
    """b f h w c -> (b f) c h w"""
    return torch.from_numpy(rearrange(clip, "b f h w c -> (b f) c h w").copy())


def from_torch(images: torch.Tensor, clips: int) -> np.ndarray:
    """(b f) c h w -> b f h w c"""
    return rearrange(images.numpy(), "(b f) c h w -> b f h w c", b=clips)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- VAE


def test_decode_latents_equals_pytorch(encoders: Encoders, torch_vae: Any):
    """Ten frames are decoded four at a time. Height, width and channels all differ."""
    latents = tagged("latents", (2, 5, 2, 3, 4))
    with torch.no_grad():
        images = torch_vae.decode(to_torch(latents) / torch_vae.config.scaling_factor).sample
    decoded = jax.jit(lambda p, z: encoders.models.decode_latents(p, z, chunk=4))(encoders.params, latents)
    assert_close(decoded, from_torch(images, clips=2), "decoded video")


def test_encode_images_equals_pytorch(encoders: Encoders, torch_vae: Any):
    """Gives the mean of the posterior, or mean + std * noise."""
    video, scale = tagged("video", (2, 3, 32, 48, 3)), torch_vae.config.scaling_factor
    with torch.no_grad():
        posterior = torch_vae.encode(to_torch(video)).latent_dist
    mean, std = from_torch(posterior.mean, clips=2) * scale, from_torch(posterior.std, clips=2) * scale
    noise = tagged("noise", mean.shape)
    encode = jax.jit(encoders.models.encode_images)
    assert_close(encode(encoders.params, video), mean, "mean of the latents")
    assert_close(encode(encoders.params, video, noise), mean + std * noise, "a sample of the latents")


def test_missing_scaling_factor_is_that_of_sd14(pipeline_folder: Path, tmp_path: Path):
    """Stable Diffusion 1.4's own VAE config has none."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert PipelineFolder(str(folder)).latent_encoders().spec.scaling_factor == 0.18215
    assert PipelineFolder(str(pipeline_folder)).latent_encoders().spec.scaling_factor == 0.13


def test_encoder_spec_has_sizes_of_the_folder(encoders: Encoders):
    assert encoders.models.spec.downscale == 8
    assert encoders.models.spec.text_width == 32


# ---- text


@pytest.mark.parametrize("gelu", ["quick_gelu", "gelu"], ids=["as in SD 1.x", "as in SD 2.x"])
def test_encode_text_equals_pytorch(encoders: Encoders, pipeline_folder: Path, tmp_path: Path, gelu: str):
    ids = np.concatenate([encoders.models.tokenize(prompt)[0] for prompt in PROMPTS])
    shutil.copytree(pipeline_folder, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "text_encoder" / "config.json", hidden_act=gelu)
    model = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    with torch.no_grad():
        expected = model(torch.from_numpy(ids).long()).last_hidden_state
    models = PipelineFolder(str(tmp_path)).latent_encoders()
    assert_close(jax.jit(models.encode_text)(encoders.params, ids), expected, "text embedding")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokenize_equals_transformers(encoders: Encoders, pipeline_folder: Path, prompt: str):
    """Both tokenizers of transformers give the same ids, the one in Python and the one in Rust."""
    ids, _ = encoders.models.tokenize(prompt)
    assert ids.dtype == np.int32
    assert ids.shape == (1, 77)
    for kind in (CLIPTokenizer, CLIPTokenizerFast):
        tokenizer = kind.from_pretrained(pipeline_folder / "tokenizer")
        expected = tokenizer(
            prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np"
        )
        assert ids.tolist() == expected.input_ids.tolist(), f"{kind.__name__} has other ids"


def test_tokenize_random_text_equals_transformers():
    """The texts have ideographs, emoji, zero-width characters, upper case and all kinds of spaces."""
    folder, rng = PipelineFolder("mini", parts=()), random.Random(0)
    tokenizer = CLIPTokenizer.from_pretrained(folder.path / "tokenizer")
    models = folder.latent_encoders()
    for _ in range(200):
        text = "".join(rng.choice("abc XYZ.,!'\"é0😀漢ﬁ\u200b\u00a0-\n") for _ in range(rng.randint(0, 60)))
        expected = tokenizer(text, padding="max_length", max_length=models.spec.tokens, truncation=True)
        assert models.tokenize(text)[0].tolist() == [expected.input_ids], repr(text)


@pytest.mark.parametrize(("length", "cut"), [(0, ""), (74, ""), (75, ""), (76, "x"), (80, "abcdx")])
def test_tokenize_returns_the_truncated_text(encoders: Encoders, length: int, cut: str):
    """Each letter is one token here, and 75 fit between start token and end token."""
    ids, rest = encoders.models.tokenize(("y" * 75 + "abcdx" if length == 80 else "y" * 75 + "x")[:length])
    assert rest == cut
    assert ids.shape == (1, 77)
    assert (ids[0, 0], ids[0, -1]) == (512, 513)
    assert (ids[0] == 513).sum() == max(77 - 1 - length, 1), "padding starts at another position"


def test_folder_without_vocabulary_is_refused(pipeline_folder: Path, tmp_path: Path):
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("vocab.json"))
    with pytest.raises(UserError, match="tokenizer"):
        PipelineFolder(str(folder)).latent_encoders()


# ---- image UNet


class ImageUNet(NamedTuple):
    folder: Path
    config: UNet3DConfig
    params: dict[str, Any]


@pytest.fixture(scope="module")
def like_sd1(pipeline_folder: Path) -> ImageUNet:
    pipeline = PipelineFolder(str(pipeline_folder))
    return ImageUNet(
        pipeline_folder, pipeline.unet_config(), pipeline.inflate_unet(pipeline.unet_config(), seed=0)
    )


@pytest.fixture(scope="module")
def like_sd2(tmp_path_factory: pytest.TempPathFactory) -> ImageUNet:
    """An image UNet with linear projections, and another number of heads at each of its two levels."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[32, 64],
        layers_per_block=1,
        cross_attention_dim=48,
        attention_head_dim=[2, 8],
        norm_num_groups=16,
        use_linear_projection=True,
    )
    fill_torch(unet)
    folder = tmp_path_factory.mktemp("like_sd2")
    unet.save_pretrained(folder / "unet")
    pipeline = PipelineFolder(str(folder))
    return ImageUNet(folder, pipeline.unet_config(), pipeline.inflate_unet(pipeline.unet_config(), seed=0))


def assert_unet_agrees(unet: ImageUNet, latents: np.ndarray) -> None:
    """UNet3D with the folder's weights gives for each frame what UNet2DConditionModel gives."""
    clips, frames = latents.shape[:2]
    t, text = np.array([7, 801])[:clips], tagged("text", (clips, 7, unet.config.cross_attention_dim))
    reference = diffusers.UNet2DConditionModel.from_pretrained(unet.folder / "unet")
    with torch.no_grad():
        eps = reference(
            to_torch(latents),
            torch.from_numpy(np.repeat(t, frames)),
            encoder_hidden_states=torch.from_numpy(np.repeat(text, frames, axis=0)),
        ).sample
    predict = jax.jit(lambda *inputs: UNet3D(unet.config).apply({"params": unet.params}, *inputs))
    assert_close(predict(latents, t, text), from_torch(eps, clips), "predicted noise")


@pytest.mark.slow
def test_inflated_unet_on_one_frame_equals_pytorch(like_sd1: ImageUNet):
    """Two clips of one frame each have different timesteps and texts, and are higher than wide."""
    assert_unet_agrees(like_sd1, tagged("one frame", (2, 1, 16, 8, 4)))


def test_inflated_unet_on_a_still_clip_equals_pytorch(like_sd2: ImageUNet):
    """If all frames are equal, cross-frame attention equals self-attention of one frame."""
    assert_unet_agrees(like_sd2, np.repeat(tagged("still", (2, 1, 6, 8, 4)), 3, axis=1))


def test_inflation_initialises_temporal_parameters_from_the_seed(like_sd2: ImageUNet):
    first = flatten_dict(like_sd2.params, sep="/")
    other = flatten_dict(PipelineFolder(str(like_sd2.folder)).inflate_unet(like_sd2.config, seed=1), sep="/")
    differing = {path for path in first if not np.array_equal(first[path], other[path])}
    down, up = "conv_temporal/down/kernel", "conv_temporal/up/kernel"
    random = ("attn_temp/to_q/kernel", "attn_temp/to_k/kernel", "attn_temp/to_v/kernel", down)
    assert differing == {path for path in first if path.endswith(random)}
    for path in first:
        if path.endswith(("attn_temp/to_out_0/kernel", up)):
            assert not np.any(first[path]), f"{path} does not start at 0"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_embed_type", "timestep"),
        ("addition_embed_type", "text_time"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("down_block_types", ["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
        ("attention_head_dim", [4, 4]),
    ],
)
def test_unsupported_unet_is_refused(pipeline_folder: Path, tmp_path: Path, field: str, value: Any):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", **{field: value})
    with pytest.raises(UserError, match=field):
        PipelineFolder(str(tmp_path)).unet_config()


def test_unet_weights_of_another_config_are_refused(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", cross_attention_dim=48)
    pipeline = PipelineFolder(str(tmp_path))
    with pytest.raises(TreeMismatch, match=r"image UNet: .* wrong shape .*attn2.to_k.weight is \(32, 32\)"):
        pipeline.inflate_unet(pipeline.unet_config(), seed=0)


# ---- scheduler


def test_schedule_equals_diffusers(pipeline_folder: Path):
    schedule = PipelineFolder(str(pipeline_folder)).schedule()
    assert schedule == ScheduleConfig()
    scheduler = diffusers.DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
    scheduler.set_timesteps(50)
    np.testing.assert_allclose(schedule.alphas_cumprod(), scheduler.alphas_cumprod.numpy(), rtol=1e-4)
    assert schedule.timesteps(50).tolist() == scheduler.timesteps.tolist()


def test_schedule_of_a_v_prediction_model(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "scheduler", tmp_path / "scheduler")
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert PipelineFolder(str(tmp_path)).schedule() == ScheduleConfig(prediction_type="v_prediction")


# ---- folders and names


def test_missing_scheduler_config_is_named(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    with pytest.raises(UserError, match=r"not a diffusers pipeline folder .*scheduler_config\.json"):
        PipelineFolder(str(tmp_path)).schedule()


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_config_is_refused(tmp_path: Path, content: str):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        PipelineFolder(str(tmp_path)).unet_config()


def test_empty_folder_is_refused(tmp_path: Path):
    folder = PipelineFolder(str(tmp_path))
    with pytest.raises(UserError, match="not a diffusers pipeline folder"):
        folder.latent_encoders()


@pytest.mark.parametrize("name", ["no-such-size", "./none", "/none/at/all", "~/none", "a/b/c"])
def test_unknown_name_lists_the_bundled_models(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match=r"no such folder.*there are: mini, sd14"):
        PipelineFolder(name)


@pytest.mark.parametrize(("name", "predicts"), [("mini", "v_prediction"), ("sd14", "epsilon")])
def test_bundled_model_is_found(name: str, predicts: str):
    folder = PipelineFolder(name)
    assert folder.latent_encoders().spec.text_width == folder.unet_config().cross_attention_dim
    assert folder.schedule() == ScheduleConfig(prediction_type=predicts)


def test_hub_id_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """conftest sets HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^nobody/nothing: no such folder.*hf download nobody/nothing"):
        PipelineFolder("nobody/nothing")


class Hub(NamedTuple):
    """A Hub with the repository `somebody/diffusion`, and the folder that this is a copy of."""

    server: FakeHub
    repository: Path

    def publish(self) -> None:
        """The repository has the files of the folder from now on."""
        self.server.add("somebody/diffusion", self.repository)

    def weights(self) -> set[str]:
        """The weight files that were downloaded since the last call."""
        found = self.server.downloads("somebody/diffusion")
        return {file for file in found if file.endswith((".safetensors", ".bin"))}


@pytest.fixture
def hub(pipeline_folder: Path, tmp_path: Path, fake_hub: FakeHub) -> Hub:
    """A repository with more weight files than a pipeline needs, as real ones have."""
    repository = shutil.copytree(pipeline_folder, tmp_path / "repository")
    for part in ("vae", "text_encoder", "unet"):
        (weights,) = (repository / part).glob("*.safetensors")
        for suffix in (".bin", ".fp16.safetensors", ".fp16.bin", ".non_ema.safetensors"):
            other = weights.with_name(weights.stem + suffix)
            other.write_bytes(f"not needed: {part} {suffix}".encode())  # one content is downloaded once
    (repository / "v1-5-pruned.safetensors").write_bytes(b"not needed")
    hub = Hub(fake_hub, repository)
    hub.publish()
    return hub


def test_download_of_encoders_leaves_the_unet_out(hub: Hub, encoders: Encoders):
    folder = PipelineFolder("somebody/diffusion")
    assert hub.weights() == {
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    }, "other files than the VAE and the text encoder need"  # fmt: skip
    params = folder.encoder_params(folder.latent_encoders())
    jax.tree.map(np.testing.assert_array_equal, params, encoders.params)
    assert folder.unet_config().block_out_channels == (32, 64, 64, 64)
    assert folder.schedule() == ScheduleConfig()


def test_download_of_unet_part_has_no_other_weights(hub: Hub):
    PipelineFolder("somebody/diffusion", parts=("unet",))
    assert hub.weights() == {"unet/diffusion_pytorch_model.safetensors"}


def test_download_without_parts_has_no_weights(hub: Hub):
    assert PipelineFolder("somebody/diffusion", parts=()).unet_config().cross_attention_dim == 32
    assert hub.weights() == set()


def test_download_takes_fp16_if_there_is_nothing_else(hub: Hub):
    for file in hub.repository.rglob("*"):
        if file.name.endswith(("model.safetensors", "model.bin")):
            file.unlink()
    hub.publish()
    PipelineFolder("somebody/diffusion")
    assert hub.weights() == {
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_download_has_all_shards(hub: Hub, pipeline_folder: Path, variant: str | None):
    """The index needs all files that it names."""
    shutil.rmtree(hub.repository / "unet")
    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline_folder / "unet")
    unet.save_pretrained(hub.repository / "unet", max_shard_size="1MB", variant=variant)
    hub.publish()
    folder = PipelineFolder("somebody/diffusion", parts=("unet",))
    assert len(hub.weights()) > 1, "not sharded"
    assert len(folder._read("unet")) == len(unet.state_dict())


def test_download_of_repository_without_weights_is_refused(hub: Hub):
    for file in hub.repository.rglob("*model*"):
        file.unlink()
    hub.publish()
    with pytest.raises(UserError, match=r"somebody/diffusion: .*no weights for vae, text_encoder"):
        PipelineFolder("somebody/diffusion")


@pytest.mark.slow
def test_written_pipeline_is_bitwise_equal_and_opens_in_pytorch(pipeline_folder: Path, tmp_path: Path):
    """PyTorch's classes report no missing and no unexpected keys."""
    source = PipelineFolder(str(pipeline_folder))
    config, models = source.unet_config(), source.latent_encoders()
    params = {"unet": source.inflate_unet(config, seed=0), **source.encoder_params(models)}
    tiny_models.write_with(source, params, tmp_path / "copy", {"vae": {"scaling_factor": 0.5}})
    copy = PipelineFolder(str(tmp_path / "copy"))
    again = {"unet": copy.inflate_unet(config, seed=0), **copy.encoder_params(models)}
    for path, x in flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(
            np.asarray(x), np.asarray(flatten_dict(again, sep="/")[path]), err_msg=path
        )
    assert copy.json("vae")["scaling_factor"] == 0.5
    for part, kind in (("vae", diffusers.AutoencoderKL), ("unet", diffusers.UNet2DConditionModel)):
        _, info = kind.from_pretrained(tmp_path / "copy" / part, output_loading_info=True)
        assert not info["missing_keys"], part
        assert not info["unexpected_keys"], part
