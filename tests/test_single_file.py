"""Single files of Stable Diffusion: converted as diffusers converts them, or refused by what they are."""

import logging
import shutil
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as oracle
from flax.traverse_util import flatten_dict
from transformers import CLIPTextConfig, CLIPTextModel

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.open_pipeline import open_pipeline
from fyp_jax.convert.pipeline_folder import PipelineFolder, PipelineOptions
from fyp_jax.convert.single_file import SingleFile
from fyp_jax.convert.weight_writer import WeightWriter
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError
from single_files import DEEPER, SD1, SD2, save, single_file, with_ema
from tiny_models import TOKENIZER

Tensors = dict[str, torch.Tensor]
EPSILON = PipelineOptions(prediction_type="epsilon")
CASES = {"1.x": (SD1, False), "2.x": (SD2, True), "1.x, other depth": (DEEPER, False)}


@pytest.fixture(scope="module")
def sd1() -> Tensors:
    return single_file(SD1)


@pytest.fixture(scope="module")
def sd2() -> Tensors:
    return single_file(SD2, is_sd2=True)


def assert_bitwise(found: Mapping[str, LazyArray], expected: Mapping[str, torch.Tensor]) -> None:
    """Names, shapes, dtypes and bits are equal."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        array = found[name].read()
        assert array.dtype == found[name].dtype == tensor.numpy().dtype, name
        assert array.shape == found[name].shape == tuple(tensor.shape), name
        assert array.tobytes() == tensor.contiguous().numpy().tobytes(), f"{name} has other values"


def diffusers_parts(arrays: Tensors, pipeline: PipelineFolder, is_sd2: bool) -> dict[str, Tensors]:
    """The three state dicts as diffusers' own conversion makes them."""
    text_config = pipeline.json("text_encoder")
    if is_sd2:
        text_model = types.SimpleNamespace(config=CLIPTextConfig(**text_config))
        text = oracle.convert_open_clip_checkpoint(text_model, dict(arrays))
        # diffusers leaves out layer 23, which is the last one of the published model.
        last = f"text_model.encoder.layers.{text_config['num_hidden_layers']}."
        text = {k: x for k, x in text.items() if not k.startswith(last) and k != "text_projection.weight"}
    else:
        text = oracle.convert_ldm_clip_checkpoint(dict(arrays))
        text = {k: x for k, x in text.items() if not k.endswith("position_ids")}
    return {
        "unet": oracle.convert_ldm_unet_checkpoint(dict(arrays), pipeline.json("unet")),
        "vae": oracle.convert_ldm_vae_checkpoint(dict(arrays), pipeline.json("vae")),
        "text_encoder": text,
    }


# ---- the conversion


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("case", CASES)
def test_conversion_equals_diffusers_bitwise(case: str, suffix: str, tmp_path: Path):
    sizes, is_sd2 = CASES[case]
    arrays = single_file(sizes, is_sd2)
    file = save(arrays, tmp_path / f"model{suffix}", {"state_dict": arrays, "epoch": 3, "global_step": 7})
    pipeline = open_pipeline(str(file), options=EPSILON)
    expected = diffusers_parts(arrays, pipeline, is_sd2)
    for part, tensors in expected.items():
        assert_bitwise(pipeline.lazy_state_dict(part), tensors)


@pytest.mark.parametrize("case", ["1.x", "2.x", pytest.param("1.x, other depth", marks=pytest.mark.slow)])
def test_configs_build_the_models_of_pytorch(case: str, tmp_path: Path):
    """PyTorch's models of the inferred configs take the converted arrays, with none missing or left over."""
    sizes, is_sd2 = CASES[case]
    pipeline = open_pipeline(
        str(save(single_file(sizes, is_sd2), tmp_path / "model.safetensors")), options=EPSILON
    )
    models = {
        "unet": UNet2DConditionModel(**_without_class(pipeline.json("unet"))),
        "vae": AutoencoderKL(**_without_class(pipeline.json("vae"))),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**pipeline.json("text_encoder"))),
    }
    for part, model in models.items():
        tensors = {k: torch.from_numpy(x.read().copy()) for k, x in pipeline.lazy_state_dict(part).items()}
        model.load_state_dict(tensors, strict=True)
    heads = pipeline.json("unet")["attention_head_dim"]
    assert heads == ([width // 64 for width in sizes.widths] if is_sd2 else 8)
    assert pipeline.json("text_encoder")["hidden_act"] == ("gelu" if is_sd2 else "quick_gelu")


def _without_class(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "_class_name"}


@pytest.mark.slow
def test_conversion_of_24_open_clip_layers_equals_diffusers_bitwise(tmp_path: Path):
    """The number of layers of the published 2.x, of which diffusers leaves out the last by its name."""
    arrays = single_file(SD2._replace(text_layers=24), is_sd2=True)
    pipeline = open_pipeline(str(save(arrays, tmp_path / "model.safetensors")), options=EPSILON)
    text_model = types.SimpleNamespace(config=CLIPTextConfig(**pipeline.json("text_encoder")))
    expected = oracle.convert_open_clip_checkpoint(text_model, dict(arrays))
    assert pipeline.json("text_encoder")["num_hidden_layers"] == 23
    assert_bitwise(pipeline.lazy_state_dict("text_encoder"), expected)


def test_file_without_the_last_open_clip_layer_keeps_all(sd2: Tensors, tmp_path: Path):
    """Files that were made from a diffusers folder have neither that layer nor what comes after it."""
    unused = (".text_projection", ".logit_scale", ".resblocks.2.")
    cut = {name: x for name, x in sd2.items() if not any(word in name for word in unused)}
    whole, short = (
        SingleFile(str(save(arrays, tmp_path / f"{name}.safetensors")), options=EPSILON)
        for name, arrays in (("whole", sd2), ("cut", cut))
    )
    expected = {name: torch.from_numpy(x.read()) for name, x in whole.lazy_state_dict("text_encoder").items()}
    assert whole.json("text_encoder")["num_hidden_layers"] == 2
    assert_bitwise(short.lazy_state_dict("text_encoder"), expected)


@pytest.mark.slow
def test_parameters_have_the_shapes_of_our_models(sd1: Tensors, tmp_path: Path):
    """float16 becomes float32 unchanged."""
    half = {name: x.half() if x.is_floating_point() else x for name, x in sd1.items()}
    pipeline = open_pipeline(
        str(save(half, tmp_path / "model.safetensors")), options=PipelineOptions(tokenizer=str(TOKENIZER))
    )
    encoders = pipeline.latent_encoders()
    params = pipeline.encoder_params(encoders)
    unet = pipeline.image_unet(pipeline.unet_config())
    kernel = flatten_dict(unet, sep="/")["conv_in/kernel"]
    expected = half["model.diffusion_model.input_blocks.0.0.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)
    flat = flatten_dict(params, sep="/")
    trees.check_same(flat, flatten_dict(encoders.spec.shapes, sep="/"), "encoders")
    assert {str(x.dtype) for x in flat.values()} == {"float32"}


@pytest.mark.parametrize("case", [pytest.param("1.x", marks=pytest.mark.slow), "2.x"])
def test_single_file_is_written_as_a_folder_that_reads_the_same(case: str, tmp_path: Path):
    """So that a model which was trained from a single file can be exported."""
    sizes, is_sd2 = CASES[case]
    file = save(single_file(sizes, is_sd2), tmp_path / "model.safetensors")
    options = PipelineOptions(tokenizer=str(TOKENIZER), prediction_type="v_prediction")
    pipeline = open_pipeline(str(file), options=options)
    WeightWriter().write_folder(pipeline.export_plan({}, {}), tmp_path / "folder", {})
    folder = PipelineFolder(str(tmp_path / "folder"))
    assert folder.schedule() == pipeline.schedule() == ScheduleConfig(prediction_type="v_prediction")
    assert folder.unet_config() == pipeline.unet_config()
    for part in ("unet", "vae", "text_encoder"):
        expected = {k: torch.from_numpy(x.read().copy()) for k, x in pipeline.lazy_state_dict(part).items()}
        assert_bitwise(folder.lazy_state_dict(part), expected)
    ids = [each.latent_encoders().tokenize("a robot")[0].tolist() for each in (folder, pipeline)]
    assert ids[0] == ids[1], "the folder pads with another token"
    _, info = UNet2DConditionModel.from_pretrained(tmp_path / "folder" / "unet", output_loading_info=True)
    assert not info["missing_keys"] + info["unexpected_keys"]


# ---- wrappers, names of text encoders, moving averages


def test_objects_of_a_trainer_beside_the_weights_are_passed_over(
    sd1: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The published 1.x files hold a callback's class and state; nothing of the trainer is run."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    ran = []

    class ModelCheckpoint:
        def __setstate__(self, _: object) -> None:
            ran.append("set")

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # pyright: ignore
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    state = ModelCheckpoint()
    state.best = 3  # pyright: ignore
    wrapped = {"state_dict": sd1, "callbacks": {ModelCheckpoint: state}}
    file = save(sd1, tmp_path / "model.ckpt", wrapped)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    pipeline = open_pipeline(str(file))
    assert_bitwise(
        {"conv_in.weight": pipeline.lazy_state_dict("unet")["conv_in.weight"]},
        {"conv_in.weight": sd1["model.diffusion_model.input_blocks.0.0.weight"]},
    )
    assert not ran


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod.", "_orig_mod."])
def test_prefixes_of_training_are_taken_off(sd1: Tensors, prefix: str, tmp_path: Path):
    file = save({prefix + name: x for name, x in sd1.items()}, tmp_path / "model.safetensors")
    plain = save(sd1, tmp_path / "plain.safetensors")
    for part in ("unet", "vae", "text_encoder"):
        found, expected = (open_pipeline(str(x)).lazy_state_dict(part) for x in (file, plain))
        assert_bitwise(found, {name: torch.from_numpy(x.read()) for name, x in expected.items()})


def test_text_encoder_without_text_model_prefix_is_read(sd1: Tensors, tmp_path: Path):
    short = {name.replace(".transformer.text_model.", ".transformer."): x for name, x in sd1.items()}
    assert short.keys() != sd1.keys()
    files = [save(x, tmp_path / f"{i}.safetensors") for i, x in enumerate((sd1, short))]
    found, expected = (open_pipeline(str(file)).lazy_state_dict("text_encoder") for file in files[::-1])
    assert_bitwise(found, {name: torch.from_numpy(x.read()) for name, x in expected.items()})


@pytest.mark.parametrize(("variant", "added"), [(None, 0), ("non_ema", 0), ("ema", 1)])
def test_variant_chooses_the_moving_average(
    sd1: Tensors, variant: str | None, added: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The same arrays as diffusers' `extract_ema`; a message says which were taken, and the other's flag."""
    file = save(with_ema(sd1), tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        pipeline = open_pipeline(str(file), options=PipelineOptions(variant))
    expected = oracle.convert_ldm_unet_checkpoint(
        with_ema(sd1), pipeline.json("unet"), extract_ema=bool(added)
    )
    assert_bitwise(pipeline.lazy_state_dict("unet"), expected)
    taken, other = ("ema", "non_ema") if added else ("non_ema", "ema")
    assert f"the UNet's variant {taken} is taken, not variant={other}" in caplog.text


def test_arrays_of_no_part_are_told(sd1: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    extra = {**sd1, "embedding_manager.token": torch.zeros(3)}
    with caplog.at_level(logging.WARNING):
        open_pipeline(str(save(extra, tmp_path / "model.safetensors")))
    assert "1 arrays are of no part and left out (embedding_manager.token)" in caplog.text
    caplog.clear()
    open_pipeline(str(save(sd1, tmp_path / "plain.safetensors")))
    assert not caplog.text


# ---- what the arrays do not say


def write(arrays: Tensors, folder: Path, metadata: dict[str, str] | None = None) -> str:
    from safetensors.torch import save_file

    save_file(arrays, folder / "model.safetensors", metadata)
    return str(folder / "model.safetensors")


def test_prediction_type_of_sd2_has_to_be_told(sd1: Tensors, sd2: Tensors, tmp_path: Path):
    """A 2.x file fits both kinds. What says it: options, metadata, a mark, or the original config."""
    name = write(sd2, tmp_path)
    with pytest.raises(UserError, match="give prediction_type=epsilon or prediction_type=v_prediction"):
        open_pipeline(name).schedule()
    v = ScheduleConfig(prediction_type="v_prediction")
    assert open_pipeline(name, options=PipelineOptions(prediction_type="v_prediction")).schedule() == v
    assert open_pipeline(name, options=EPSILON).schedule() == ScheduleConfig()
    assert open_pipeline(write(sd2, tmp_path, {"modelspec.prediction_type": "v"})).schedule() == v
    assert open_pipeline(write({**sd2, "v_pred": torch.tensor([])}, tmp_path)).schedule() == v
    write(sd2, tmp_path)
    config = tmp_path / "model.yaml"
    config.write_text("model: {params: {parameterization: v}}")
    assert open_pipeline(name).schedule() == v
    config.write_text("model: {params: {timesteps: 1000}}")
    assert open_pipeline(name).schedule() == ScheduleConfig()
    config.write_text("[")
    with pytest.raises(UserError, match=r"model\.yaml: no config of a Stable Diffusion"):
        open_pipeline(name).schedule()
    config.unlink()
    assert open_pipeline(write(sd1, tmp_path)).schedule() == ScheduleConfig()
    with pytest.raises(UserError, match="prediction_type='noise' is not supported"):
        open_pipeline(name, options=PipelineOptions(prediction_type="noise")).schedule()


def test_betas_in_the_file_count(sd1: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """float16 betas are the usual ones too; others are taken, and told."""
    half = {**sd1, "betas": sd1["betas"].half()}
    assert open_pipeline(write(half, tmp_path)).schedule() == ScheduleConfig()
    linear = torch.linspace(1e-4, 2e-2, 1000)
    with caplog.at_level(logging.WARNING):
        schedule = open_pipeline(write({**sd1, "betas": linear}, tmp_path)).schedule()
    np.testing.assert_allclose(schedule.alphas_cumprod(), torch.cumprod(1 - linear, 0), rtol=1e-3)
    assert "its own betas are taken" in caplog.text
    with pytest.raises(UserError, match="betas are not all between 0 and 1"):
        open_pipeline(write({**sd1, "betas": linear - 1}, tmp_path)).schedule()


def test_tokenizer_is_given_or_beside_the_file_or_named(
    sd1: Tensors, sd2: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no hub"))
    name = write(sd1, tmp_path)
    with pytest.raises(UserError, match=r"openai/clip-vit-large-patch14 .* give tokenizer=FOLDER"):
        open_pipeline(name).latent_encoders()
    for folder in (TOKENIZER, TOKENIZER.parent):
        given = open_pipeline(name, options=PipelineOptions(tokenizer=str(folder)))
        assert given.tokenizer_folder == TOKENIZER
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    assert open_pipeline(name).latent_encoders().tokenize("a")[0][0, -1] == 513, "1.x pads with the end token"
    second = open_pipeline(write(sd2, tmp_path), options=EPSILON)
    assert second.latent_encoders().tokenize("a")[0][0, -1] == 0, "2.x pads with 0"


def test_tokenizer_of_another_vocabulary_is_refused(sd1: Tensors, tmp_path: Path):
    """Its ids would choose wrong rows of the embedding without a word."""
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    name = write({**sd1, key: torch.zeros(600, SD1.text_width)}, tmp_path)
    with pytest.raises(UserError, match="tokenizer of 514 tokens, but the text encoder of .* has 600"):
        open_pipeline(name, options=PipelineOptions(tokenizer=str(TOKENIZER))).latent_encoders()


# ---- what is refused


def read_configs(name: str, options: PipelineOptions) -> None:
    pipeline = open_pipeline(name, options=options)
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        pipeline.json(part)


def refused(name: Path, *words: str, **options: str) -> None:
    with pytest.raises(UserError) as caught:
        read_configs(str(name), PipelineOptions(**options))
    message = str(caught.value)
    assert message.startswith(str(name)), message
    assert "\n" not in message, message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA, not a pipeline"),
        (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "a LoRA, not a pipeline"),
        (["unet.down_blocks.0.attentions.0.to_q.lora.up.weight"], "a LoRA, not a pipeline"),
        (["lora_unet_mid_block.hada_w1_a"], "a LoRA, not a pipeline"),
        (["emb_params"], "a textual inversion embedding"),
        (
            ["conditioner.embedders.0.transformer.text_model.x", "model.diffusion_model.out.0.bias"],
            "Diffusion XL",
        ),
        (["model.diffusion_model.joint_blocks.0.x"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["down_blocks.0.motion_modules.0.x"], "AnimateDiff"),
        (["body.0.block1.weight"], "--pose-encoder"),
        (["down_blocks.0.attentions.0.transformer_blocks.0.attn_temp.to_q.weight"], "a video UNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "the UNet of a diffusers folder alone"),
        (["encoder.down.0.block.0.conv1.weight"], "a VAE alone"),
        (["text_model.final_layer_norm.weight"], "a text encoder alone"),
        (["something.else"], "it lacks the vae and the text encoder and the unet"),
    ],
)
def test_other_models_are_named(names: list[str], words: str, tmp_path: Path):
    refused(save({name: torch.zeros(1) for name in names}, tmp_path / "file.safetensors"), words)


def test_file_without_a_part_is_refused(sd1: Tensors, tmp_path: Path):
    no_vae = {name: x for name, x in sd1.items() if not name.startswith("first_stage_model.")}
    refused(save(no_vae, tmp_path / "model.safetensors"), "lacks the vae (first_stage_model.*)")


def test_inpainting_model_is_refused(tmp_path: Path):
    refused(
        save(single_file(SD1._replace(channels=9)), tmp_path / "model.ckpt"), "takes 9 channels", "inpainting"
    )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "model.safetensors",
            POINTER,
            "git lfs pull",
        ),
        ("model.ckpt", POINTER, "git lfs pull"),
        ("model.ckpt", "<!DOCTYPE html><html>Log in</html>", "a web page"),
        ("model.safetensors", "", "not a complete safetensors file"),
        ("model.ckpt", "", "damaged"),
        ("model.txt", "weights", "not a weight file"),
    ],
)
def test_file_of_another_kind_is_named(name: str, content: str, words: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, words)


def test_missing_file_is_refused(tmp_path: Path):
    refused(tmp_path / "model.safetensors", "no such file")


def test_variant_of_folders_is_refused(sd1: Tensors, tmp_path: Path):
    file = save(sd1, tmp_path / "model.safetensors")
    refused(file, "variant=fp16 is of pipeline folders; a single file has ema and non_ema", variant="fp16")
    refused(file, "has no moving average", variant="ema")


def test_safetensors_under_the_name_of_a_pickle_are_read(sd1: Tensors, tmp_path: Path):
    file = save(sd1, tmp_path / "model.safetensors").rename(tmp_path / "model.ckpt")
    assert open_pipeline(str(file)).json("text_encoder")["hidden_size"] == SD1.text_width


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("unet", "model.diffusion_model.input_blocks.1.0.extra.weight"),
        ("unet", "model.diffusion_model.other"),
        ("vae", "first_stage_model.encoder.mid.attn_1.extra.weight"),
    ],
)
def test_array_without_a_place_is_named(sd1: Tensors, part: str, name: str, tmp_path: Path):
    file = save({**sd1, name: torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(trees.TreeMismatch, match="unexpected") as caught:
        open_pipeline(str(file)).lazy_state_dict(part)
    assert str(caught.value).startswith(str(file))
    assert name.split(".", 1)[1].removeprefix("diffusion_model.") in str(caught.value)
