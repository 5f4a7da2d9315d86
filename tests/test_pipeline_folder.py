"""A pipeline folder that PyTorch wrote, through our models, against PyTorch's own."""

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

from conftest import fill_torch, tagged
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


class Frozen(NamedTuple):
    models: LatentEncoders
    params: dict[str, Any]


@pytest.fixture(scope="module")
def frozen(pipeline_folder: Path) -> Frozen:
    folder = PipelineFolder(str(pipeline_folder))
    models = folder.latent_encoders()
    return Frozen(models, folder.encoder_params(models))


@pytest.fixture(scope="module")
def torch_vae(pipeline_folder: Path) -> Any:
    return diffusers.AutoencoderKL.from_pretrained(pipeline_folder / "vae")


def assert_close(ours: jax.Array | np.ndarray, theirs: torch.Tensor | np.ndarray, what: str) -> None:
    """Within 1e-4 of the largest number, in the same shape."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, PyTorch has {theirs.shape}"
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
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


def test_decode_latents(frozen: Frozen, torch_vae: Any):
    """Ten frames by four at a time; height, width and channels all differ."""
    latents = tagged("latents", (2, 5, 2, 3, 4))
    with torch.no_grad():
        images = torch_vae.decode(to_torch(latents) / torch_vae.config.scaling_factor).sample
    ours = jax.jit(lambda p, z: frozen.models.decode_latents(p, z, chunk=4))(frozen.params, latents)
    assert_close(ours, from_torch(images, clips=2), "decoded video")


def test_encode_images(frozen: Frozen, torch_vae: Any):
    """The posterior's mean and, with noise, mean + std * noise."""
    video, scale = tagged("video", (2, 3, 32, 48, 3)), torch_vae.config.scaling_factor
    with torch.no_grad():
        posterior = torch_vae.encode(to_torch(video)).latent_dist
    mean, std = from_torch(posterior.mean, clips=2) * scale, from_torch(posterior.std, clips=2) * scale
    noise = tagged("noise", mean.shape)
    encode = jax.jit(frozen.models.encode_images)
    assert_close(encode(frozen.params, video), mean, "mean of the latents")
    assert_close(encode(frozen.params, video, noise), mean + std * noise, "a draw of the latents")


def test_scaling_factor_of_old_configs(pipeline_folder: Path, tmp_path: Path):
    """Stable Diffusion 1.4's own VAE config has none."""
    folder = shutil.copytree(pipeline_folder, tmp_path / "copy")
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert PipelineFolder(str(folder)).latent_encoders().spec.scaling_factor == 0.18215
    assert PipelineFolder(str(pipeline_folder)).latent_encoders().spec.scaling_factor == 0.13


def test_sizes_of_frozen_models(frozen: Frozen):
    assert frozen.models.spec.downscale == 8
    assert frozen.models.spec.text_width == 32


# ---- text


@pytest.mark.parametrize("gelu", ["quick_gelu", "gelu"], ids=["as in SD 1.x", "as in SD 2.x"])
def test_encode_text(frozen: Frozen, pipeline_folder: Path, tmp_path: Path, gelu: str):
    ids = np.concatenate([frozen.models.tokenize(prompt)[0] for prompt in PROMPTS])
    shutil.copytree(pipeline_folder, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "text_encoder" / "config.json", hidden_act=gelu)
    model = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).last_hidden_state
    models = PipelineFolder(str(tmp_path)).latent_encoders()
    assert_close(jax.jit(models.encode_text)(frozen.params, ids), theirs, "text embedding")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens(frozen: Frozen, pipeline_folder: Path, prompt: str):
    """As the tokenizer of a PyTorch pipeline gives them, and as transformers' Rust one does."""
    ids, _ = frozen.models.tokenize(prompt)
    assert ids.dtype == np.int32
    assert ids.shape == (1, 77)
    for kind in (CLIPTokenizer, CLIPTokenizerFast):
        theirs = kind.from_pretrained(pipeline_folder / "tokenizer")
        wanted = theirs(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np")
        assert ids.tolist() == wanted.input_ids.tolist(), f"{kind.__name__} gives other ids"


def test_tokens_of_any_text():
    """Ideographs, pictures, marks without width, upper case and spaces of all kinds."""
    folder, draw = PipelineFolder("mini", parts=()), random.Random(0)
    theirs = CLIPTokenizer.from_pretrained(folder.path / "tokenizer")
    models = folder.latent_encoders()
    for _ in range(200):
        text = "".join(draw.choice("abc XYZ.,!'\"é0😀漢ﬁ\u200b\u00a0-\n") for _ in range(draw.randint(0, 60)))
        wanted = theirs(text, padding="max_length", max_length=models.spec.tokens, truncation=True)
        assert models.tokenize(text)[0].tolist() == [wanted.input_ids], repr(text)


@pytest.mark.parametrize(("length", "cut"), [(0, ""), (74, ""), (75, ""), (76, "x"), (80, "abcdx")])
def test_what_is_cut_from_a_prompt(frozen: Frozen, length: int, cut: str):
    """One token a letter here, and 75 of them fit between the two marks."""
    ids, rest = frozen.models.tokenize(("y" * 75 + "abcdx" if length == 80 else "y" * 75 + "x")[:length])
    assert rest == cut
    assert ids.shape == (1, 77)
    assert (ids[0, 0], ids[0, -1]) == (512, 513)
    assert (ids[0] == 513).sum() == max(77 - 1 - length, 1), "padding begins at another place"


def test_no_tokenizer(pipeline_folder: Path, tmp_path: Path):
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
    """Linear projections, and another number of heads on each level; two levels are enough."""
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
    """UNet3D with the folder's weights does to each frame what UNet2DConditionModel does to it."""
    clips, frames = latents.shape[:2]
    t, text = np.array([7, 801])[:clips], tagged("text", (clips, 7, unet.config.cross_attention_dim))
    theirs = diffusers.UNet2DConditionModel.from_pretrained(unet.folder / "unet")
    with torch.no_grad():
        eps = theirs(
            to_torch(latents),
            torch.from_numpy(np.repeat(t, frames)),
            encoder_hidden_states=torch.from_numpy(np.repeat(text, frames, axis=0)),
        ).sample
    ours = jax.jit(lambda *inputs: UNet3D(unet.config).apply({"params": unet.params}, *inputs))
    assert_close(ours(latents, t, text), from_torch(eps, clips), "predicted noise")


def test_image_unet_on_one_frame(like_sd1: ImageUNet):
    """Two clips of one frame each, at other timesteps and texts, higher than wide."""
    assert_unet_agrees(like_sd1, tagged("one frame", (2, 1, 16, 8, 4)))


def test_image_unet_on_a_still_clip(like_sd2: ImageUNet):
    """Where all frames are equal, attention across frames is that of one frame to itself."""
    assert_unet_agrees(like_sd2, np.repeat(tagged("still", (2, 1, 6, 8, 4)), 3, axis=1))


def test_inflation_draws_temporal_parameters_from_the_seed(like_sd2: ImageUNet):
    first = flatten_dict(like_sd2.params, sep="/")
    other = flatten_dict(PipelineFolder(str(like_sd2.folder)).inflate_unet(like_sd2.config, seed=1), sep="/")
    drawn = {path for path in first if not np.array_equal(first[path], other[path])}
    down, up = "conv_temporal/down/kernel", "conv_temporal/up/kernel"
    random = ("attn_temp/to_q/kernel", "attn_temp/to_k/kernel", "attn_temp/to_v/kernel", down)
    assert drawn == {path for path in first if path.endswith(random)}
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
def test_unets_that_we_do_not_build(pipeline_folder: Path, tmp_path: Path, field: str, value: Any):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", **{field: value})
    with pytest.raises(UserError, match=field):
        PipelineFolder(str(tmp_path)).unet_config()


def test_unet_weights_of_another_config(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    edit_json(tmp_path / "unet" / "config.json", cross_attention_dim=48)
    pipeline = PipelineFolder(str(tmp_path))
    with pytest.raises(TreeMismatch, match=r"image UNet: .* wrong shape .*attn2.to_k.weight is \(32, 32\)"):
        pipeline.inflate_unet(pipeline.unet_config(), seed=0)


# ---- scheduler


def test_schedule(pipeline_folder: Path):
    schedule = PipelineFolder(str(pipeline_folder)).schedule()
    assert schedule == ScheduleConfig()
    theirs = diffusers.DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
    theirs.set_timesteps(50)
    np.testing.assert_allclose(schedule.alphas_cumprod(), theirs.alphas_cumprod.numpy(), rtol=1e-4)
    assert schedule.timesteps(50).tolist() == theirs.timesteps.tolist()


def test_schedule_of_a_v_prediction_model(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "scheduler", tmp_path / "scheduler")
    edit_json(tmp_path / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert PipelineFolder(str(tmp_path)).schedule() == ScheduleConfig(prediction_type="v_prediction")


def test_a_schedule_that_we_do_not_build(tmp_path: Path):
    """diffusers' own defaults, which clip samples."""
    diffusers.DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UserError, match="clip_sample=True"):
        PipelineFolder(str(tmp_path)).schedule()


# ---- folders and names


def test_no_scheduler_config(pipeline_folder: Path, tmp_path: Path):
    shutil.copytree(pipeline_folder / "unet", tmp_path / "unet")
    with pytest.raises(UserError, match=r"not a diffusers pipeline folder .*scheduler_config\.json"):
        PipelineFolder(str(tmp_path)).schedule()


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_damaged_config(tmp_path: Path, content: str):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        PipelineFolder(str(tmp_path)).unet_config()


def test_empty_folder(tmp_path: Path):
    folder = PipelineFolder(str(tmp_path))
    with pytest.raises(UserError, match="not a diffusers pipeline folder"):
        folder.latent_encoders()


@pytest.mark.parametrize("name", ["no-such-size", "./none", "/none/at/all", "~/none", "a/b/c"])
def test_nonexistent_folder(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match=r"no such folder.*we have: mini, sd14"):
        PipelineFolder(name)


@pytest.mark.parametrize(("name", "predicts"), [("mini", "v_prediction"), ("sd14", "epsilon")])
def test_sizes_of_our_own(name: str, predicts: str):
    folder = PipelineFolder(name)
    assert folder.latent_encoders().spec.text_width == folder.unet_config().cross_attention_dim
    assert folder.schedule() == ScheduleConfig(prediction_type=predicts)


def test_hub_id_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Quick, one line, and says what to do; conftest sets HF_HUB_OFFLINE."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^nobody/nothing: no such folder.*hf download nobody/nothing"):
        PipelineFolder("nobody/nothing")


class Hub:
    """A repository on the Hub, and what has been downloaded of it."""

    def __init__(self, repository: Path, cache: Path):
        self.repository, self.cache = repository, cache

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str]) -> str:
        from huggingface_hub.utils import filter_repo_objects

        files = (file for file in self.repository.rglob("*") if file.is_file())
        names = [str(file.relative_to(self.repository)) for file in files]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.cache / name)
        return str(self.cache)

    def weights(self) -> set[str]:
        files = (file.relative_to(self.cache) for file in self.cache.rglob("*"))
        return {str(file) for file in files if file.suffix in {".safetensors", ".bin"}}


@pytest.fixture
def hub(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """With more than a pipeline needs, as real repositories have it."""
    repository = shutil.copytree(pipeline_folder, tmp_path / "repository")
    for part in ("vae", "text_encoder", "unet"):
        (weights,) = (repository / part).glob("*.safetensors")
        for ending in (".bin", ".fp16.safetensors", ".fp16.bin", ".non_ema.safetensors"):
            weights.with_name(weights.stem + ending).write_bytes(b"not asked for")
    (repository / "v1-5-pruned.safetensors").write_bytes(b"not asked for")
    hub = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    return hub


def test_download_without_the_unet(hub: Hub, frozen: Frozen):
    folder = PipelineFolder("somebody/diffusion")
    assert hub.weights() == {
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
    }, "not what the VAE and the text encoder need"  # fmt: skip
    params = folder.encoder_params(folder.latent_encoders())
    jax.tree.map(np.testing.assert_array_equal, params, frozen.params)
    assert folder.unet_config().block_out_channels == (32, 64, 64, 64)
    assert folder.schedule() == ScheduleConfig()


def test_download_of_the_unet_alone(hub: Hub):
    PipelineFolder("somebody/diffusion", parts=("unet",))
    assert hub.weights() == {"unet/diffusion_pytorch_model.safetensors"}


def test_download_of_no_weights(hub: Hub):
    assert PipelineFolder("somebody/diffusion", parts=()).unet_config().cross_attention_dim == 32
    assert hub.weights() == set()


def test_download_of_fp16_where_there_is_nothing_else(hub: Hub):
    for file in hub.repository.rglob("*"):
        if file.name.endswith(("model.safetensors", "model.bin")):
            file.unlink()
    PipelineFolder("somebody/diffusion")
    assert hub.weights() == {
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_download_of_shards(hub: Hub, pipeline_folder: Path, variant: str | None):
    """The index is of no use without the files that it names."""
    shutil.rmtree(hub.repository / "unet")
    unet = diffusers.UNet2DConditionModel.from_pretrained(pipeline_folder / "unet")
    unet.save_pretrained(hub.repository / "unet", max_shard_size="1MB", variant=variant)
    folder = PipelineFolder("somebody/diffusion", parts=("unet",))
    assert len(hub.weights()) > 1, "not sharded"
    assert len(folder._read("unet")) == len(unet.state_dict())


def test_download_of_a_repository_without_weights(hub: Hub):
    for file in hub.repository.rglob("*model*"):
        file.unlink()
    with pytest.raises(UserError, match=r"somebody/diffusion: .*no weights for vae, text_encoder"):
        PipelineFolder("somebody/diffusion")


def test_a_pipeline_that_we_write_is_one_for_pytorch(pipeline_folder: Path, tmp_path: Path):
    """Every weight comes back bit for bit, and PyTorch's classes open the folder without a complaint."""
    theirs = PipelineFolder(str(pipeline_folder))
    config, models = theirs.unet_config(), theirs.latent_encoders()
    params = {"unet": theirs.inflate_unet(config, seed=0), **theirs.encoder_params(models)}
    theirs.write_with(params, tmp_path / "ours", {"vae": {"scaling_factor": 0.5}})
    ours = PipelineFolder(str(tmp_path / "ours"))
    again = {"unet": ours.inflate_unet(config, seed=0), **ours.encoder_params(models)}
    for path, x in flatten_dict(params, sep="/").items():
        np.testing.assert_array_equal(
            np.asarray(x), np.asarray(flatten_dict(again, sep="/")[path]), err_msg=path
        )
    assert ours.json("vae")["scaling_factor"] == 0.5
    for part, kind in (("vae", diffusers.AutoencoderKL), ("unet", diffusers.UNet2DConditionModel)):
        _, info = kind.from_pretrained(tmp_path / "ours" / part, output_loading_info=True)
        assert not info["missing_keys"], part
        assert not info["unexpected_keys"], part
