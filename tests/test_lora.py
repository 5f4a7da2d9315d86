"""LoRA files: merged weights and clips equal PyTorch's, and what fits no layer is refused by name."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from peft import LoraConfig, get_peft_model_state_dict

import style_files
from conftest import synthesise, tagged
from fyp_jax.convert.lora import lora_table, merge_lora, open_lora
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.style_specs import LoraSpec
from fyp_jax.convert.torch_key_mapping import image_unet_to_torch, params_to_torch
from fyp_jax.diffusion import ddim
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.unet import TEMPORAL, UNet3D, unet_shapes
from fyp_jax.pipeline.guidance import cfg_denoiser

RANK = 3
Params = dict[str, Any]
Shapes = dict[str, dict[str, tuple[int, ...]]]


@pytest.fixture(scope="module")
def pytorch(pipeline_folder: Path) -> StableDiffusionPipeline:
    return style_files.pytorch_pipeline(pipeline_folder)


@pytest.fixture(scope="module")
def params(pipeline_folder: Path) -> Params:
    """The same weights in the video UNet, and in our text encoder."""
    folder = PipelineFolder(str(pipeline_folder))
    config = folder.unet_config()
    image = flatten_dict(folder.image_unet(config), sep="/")
    whole = flatten_dict(unet_shapes(config), sep="/")
    unet = {path: image[path] if path in image else synthesise(path, x.shape) for path, x in whole.items()}
    return {"unet": unflatten_dict(unet, sep="/"), **folder.encoder_params(folder.latent_encoders())}


@pytest.fixture(scope="module")
def shapes(pytorch: StableDiffusionPipeline) -> Shapes:
    parts = {"unet": pytorch.unet, "text_encoder": pytorch.text_encoder}
    return {part: {name: tuple(x.shape) for name, x in m.state_dict().items()} for part, m in parts.items()}


def fused(pytorch: StableDiffusionPipeline, file: Path, scale: float) -> StableDiffusionPipeline:
    """PyTorch's pipeline with a LoRA in its weights."""
    pipeline = copy.deepcopy(pytorch)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()
    return pipeline


def assert_close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"relative error {error:.1e}"


def state_dicts(params: Params) -> dict[str, dict[str, np.ndarray]]:
    return {
        "unet": image_unet_to_torch(params["unet"]),
        "text_encoder": params_to_torch(params["text_encoder"]),
    }


def merged(params: Params, file: Path, scale: float = 1.0) -> Params:
    return merge_lora(params, open_lora(LoraSpec(str(file), scale)))[0]


def assert_merged_as_in_pytorch(
    pytorch: StableDiffusionPipeline, params: Params, file: Path, scale: float, layers: Any
) -> None:
    pipeline = fused(pytorch, file, scale)
    before, after = state_dicts(params), state_dicts(merged(params, file, scale))
    for part, model in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        expected = {name: x.numpy() for name, x in model.state_dict().items() if "position_ids" not in name}
        assert sorted(after[part]) == sorted(expected)
        for name, x in expected.items():
            np.testing.assert_allclose(after[part][name], x, rtol=0, atol=1e-6, err_msg=name)
        changed = {name for name, x in after[part].items() if not np.array_equal(x, before[part][name])}
        assert changed == {f"{name}.weight" for name in layers[part]}


FORMS: dict[str, tuple[Callable[[Any], dict[str, np.ndarray]], list[str], list[str], str]] = {
    "kohya": (lambda x: style_files.kohya(x, 2.0), style_files.UNET, style_files.TEXT, ".safetensors"),
    "locon": (
        lambda x: style_files.kohya(x, 1.0),
        style_files.UNET + style_files.CONVOLUTIONS,
        style_files.TEXT,
        ".safetensors",
    ),
    "kohya without alpha": (lambda x: style_files.kohya(x, None), style_files.UNET, style_files.TEXT, ".bin"),
    "peft": (
        style_files.peft,
        style_files.UNET + style_files.CONVOLUTIONS,
        style_files.TEXT,
        ".safetensors",
    ),
    "before peft": (style_files.before_peft, style_files.UNET, style_files.TEXT_ATTENTION, ".safetensors"),
    "attention processors": (
        style_files.processors,
        [name for name in style_files.UNET if ".to_" in name],
        style_files.TEXT_ATTENTION,
        ".bin",
    ),
}
QUICK = {("locon", 0.5), ("peft", 1.0), ("attention processors", 0.5)}


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        pytest.param(form, scale, marks=() if (form, scale) in QUICK else pytest.mark.slow)
        for form in FORMS
        for scale in (0.5, 1.0)
    ],
)
def test_merged_weights_equal_those_of_pytorch(
    pytorch: StableDiffusionPipeline, params: Params, shapes: Shapes, tmp_path: Path, form: str, scale: float
):
    write, unet, text, suffix = FORMS[form]
    layers = style_files.lora(shapes, RANK, unet, text)
    file = style_files.write(tmp_path / f"lora{suffix}", write(layers))
    assert_merged_as_in_pytorch(pytorch, params, file, scale, layers)


def test_alpha_of_diffusers_metadata_counts(pytorch: StableDiffusionPipeline, params: Params, tmp_path: Path):
    """`save_lora_weights` notes alpha, and that of single layers, only in the metadata of the file."""
    pipeline = copy.deepcopy(pytorch)
    adapters = {
        "unet": LoraConfig(
            r=4, lora_alpha=2, target_modules=["to_q", "conv1"], alpha_pattern={"attn2.to_q": 7}
        ),
        "text_encoder": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_rslora=True),
    }
    saved: dict[str, Any] = {}
    for part, config in adapters.items():
        model = getattr(pipeline, part)
        model.add_adapter(config)
        with torch.no_grad():
            for name, x in model.named_parameters():
                if "lora_" in name:
                    x.copy_(torch.from_numpy(style_files.numbers(name, *x.shape)))
        saved[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
        saved[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **saved)
    expected = fused(pytorch, tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    found = state_dicts(merged(params, tmp_path))  # the folder names its file
    for part in adapters:
        for name, x in getattr(expected, part).state_dict().items():
            if "position_ids" not in name:
                np.testing.assert_allclose(found[part][name], x.numpy(), rtol=0, atol=1e-6, err_msg=name)


def test_tucker_form_equals_three_convolutions(params: Params, tmp_path: Path):
    """LyCORIS' LoCon with use_tucker: 1x1 down, the kernel between ranks, 1x1 up."""
    name, rank = "down_blocks.0.resnets.0.conv1", 2
    weight = state_dicts(params)["unet"][f"{name}.weight"]
    out, into, *kernel = weight.shape
    down, mid, up = (
        style_files.numbers(f"{name} {role}", *shape)
        for role, shape in (
            ("down", (rank, into, 1, 1)),
            ("mid", (rank, rank, *kernel)),
            ("up", (out, rank, 1, 1)),
        )
    )
    module = f"lora_unet_{name.replace('.', '_')}"
    arrays = {f"{module}.lora_{role}.weight": x for role, x in (("down", down), ("mid", mid), ("up", up))}
    file = style_files.write(tmp_path / "tucker.safetensors", arrays | {f"{module}.alpha": np.float32(1.0)})
    image = torch.from_numpy(tagged("image", (1, into, 6, 6)))
    expected = torch.nn.functional.conv2d(image, torch.from_numpy(weight.copy()))
    for x in (down, mid, up):
        image = torch.nn.functional.conv2d(image, torch.from_numpy(x))
    expected += 0.8 * 1.0 / rank * image
    after = state_dicts(merged(params, file, 0.8))["unet"][f"{name}.weight"]
    found = torch.nn.functional.conv2d(
        torch.from_numpy(tagged("image", (1, into, 6, 6))), torch.from_numpy(after.copy())
    )
    assert_close(found, expected)


def test_temporal_layers_and_base_weights_stay_as_they_are(params: Params, shapes: Shapes, tmp_path: Path):
    own = flatten_dict(params["unet"], sep="/")
    before = {path: np.array(x) for path, x in own.items()}
    layers = style_files.lora(shapes, RANK, style_files.UNET, [])
    file = style_files.write(tmp_path / "lora.safetensors", style_files.peft(layers))
    after = flatten_dict(merged(params, file)["unet"], sep="/")
    for path, x in before.items():
        np.testing.assert_array_equal(own[path], x)
        if TEMPORAL.search(path):
            np.testing.assert_array_equal(after[path], x)


def test_several_loras_add_up_with_their_scales(params: Params, shapes: Shapes, tmp_path: Path):
    one, two = (
        style_files.write(
            tmp_path / f"{rank}.safetensors",
            style_files.kohya(style_files.lora(shapes, rank, style_files.UNET[:2], []), 1.0),
        )
        for rank in (2, 5)
    )
    both = merged(merged(params, one, 0.7), two, -0.4)["unet"]
    alone = [
        flatten_dict(merged(params, file, scale)["unet"], sep="/")
        for file, scale in ((one, 0.7), (two, -0.4))
    ]
    before = flatten_dict(params["unet"], sep="/")
    for path, x in flatten_dict(both, sep="/").items():
        base = before[path]
        np.testing.assert_allclose(x - base, alone[0][path] + alone[1][path] - 2 * base, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_sampling_with_a_merged_lora_equals_that_of_pytorch(
    pytorch: StableDiffusionPipeline,
    params: Params,
    shapes: Shapes,
    pipeline_folder: Path,
    tmp_path: Path,
    scale: float,
):
    """Five steps on one frame without a pose, with the temporal layers at 0."""
    layers = style_files.lora(shapes, RANK, style_files.UNET + style_files.CONVOLUTIONS, style_files.TEXT)
    file = style_files.write(tmp_path / "lora.safetensors", style_files.kohya(layers, 2.0))
    pipeline = fused(pytorch, file, scale)
    pipeline.set_progress_bar_config(disable=True)
    noise = tagged("noise", (1, 1, 8, 8, 4))
    image = torch.from_numpy(rearrange(noise, "b 1 h w c -> b c h w").copy())
    options: dict[str, Any] = {"guidance_scale": 7.5, "height": 64, "width": 64, "output_type": "latent"}
    expected = pipeline("a robot", latents=image, num_inference_steps=5, **options).images

    folder = PipelineFolder(str(pipeline_folder))
    models, config = folder.latent_encoders(), folder.unet_config()
    ours = merged(params, file, scale)
    text, negative = (
        jax.jit(models.encode_text)(ours, models.tokenize(prompt)[0]) for prompt in ("a robot", "")
    )
    flat = flatten_dict(ours["unet"], sep="/")
    unet = unflatten_dict({path: 0 * x if TEMPORAL.search(path) else x for path, x in flat.items()}, sep="/")

    def run(unet: Any) -> jax.Array:
        denoise = cfg_denoiser(UNet3D(config, ExecutionConfig()), unet, text, negative, None, 7.5)
        return ddim.sample(denoise, jnp.asarray(noise), 5, folder.schedule())

    latents = jax.jit(run)(unet)
    assert_close(rearrange(np.asarray(latents), "b 1 h w c -> b c h w"), expected)


# ---- what is told


def test_report_counts_layers_by_part(params: Params, shapes: Shapes, tmp_path: Path):
    layers = style_files.lora(shapes, RANK, style_files.UNET + style_files.CONVOLUTIONS, style_files.TEXT)
    layers["unet"] |= {"conv_out": style_files.layer("conv_out", shapes["unet"]["conv_out.weight"], 2)}
    file = style_files.write(tmp_path / "style.safetensors", style_files.kohya(layers, 2.0))
    _, report = merge_lora(params, open_lora(LoraSpec(str(file), 0.7)))
    header, row = lora_table([report])
    assert header.split("  ")[0] == "LoRA"
    counts = [len(style_files.UNET), len(style_files.CONVOLUTIONS) + 1, len(style_files.TEXT)]
    assert row.split() == ["style.safetensors", "0.7", "2", "to", "3", *map(str, counts)]
    assert len(header) == len(row)


Arrays = dict[str, np.ndarray]


def rename(arrays: Arrays, old: str, new: str) -> Arrays:
    return {key.replace(old, new): x for key, x in arrays.items()}


def key(name: str, shape: tuple[int, ...] = (1, 1)) -> Callable[[Arrays], Arrays]:
    """A file with a single array."""
    return lambda arrays: {name: np.ones(shape, np.float32)}


def replace(role: str, value: np.ndarray) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, f"{Q}.{role}": value}


Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
FLUX = "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"
MISTAKES: dict[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "other layer": (
        lambda x: rename(x, "attn1_to_q", "attn3_to_q"),
        "to no layer of the model: .*attn3_to_q.alpha, .*attn3_to_q.lora_down.weight, .*; a LoRA fits the",
    ),
    "temporal layer": (lambda x: rename(x, "attn1_to_q", "attn_temp_to_q"), "to no layer .*attn_temp_to_q"),
    "many layers": (lambda x: rename(x, "blocks_1", "blocks_7"), r"to no layer .*blocks_7.*, and 16 more; "),
    "unknown role": (replace("scalar", np.ones(1)), "these are no names of a LoRA: .*scalar; LoRA and LoCon"),
    "bias": (key("unet.conv_in.lora_B.bias"), "these are no names of a LoRA: .*lora_B.bias"),
    "no up": (
        lambda x: {name: v for name, v in x.items() if name != f"{Q}.lora_up.weight"},
        "layers without their .*to_q.alpha",
    ),
    "other width": (
        replace("lora_down.weight", np.ones((3, 768), np.float32)),
        r"shapes do not fit: .*to_q.lora_down.weight float32\[3, 768\].* for a layer of \[64, 64\]",
    ),
    "other rank": (replace("lora_up.weight", np.ones((64, 5), np.float32)), "shapes do not fit: .*to_q"),
    "integers": (
        replace("lora_up.weight", np.ones((64, 3), np.int8)),
        r"shapes do not fit: .*to_q.lora_up.weight int8\[64, 3\]",
    ),
    "not finite": (
        replace("lora_up.weight", np.full((64, 3), np.nan, np.float32)),
        "to_q.lora_down.weight holds numbers that are not finite",
    ),
    "infinite alpha": (replace("alpha", np.asarray(np.inf)), "not finite"),
    "twice": (replace("lora_A.weight", np.ones((3, 64), np.float32)), "two arrays for one .*to_q.lora_"),
    "nothing": (lambda x: {}, "holds no arrays"),
    "LoHa": (key(f"{Q}.hada_w1_a"), "is a LoHa .*hada_w1_a.*LoCon"),
    "LoKr": (replace("lokr_w1", np.ones((2, 2))), "is a LoKr .*lokr_w1"),
    "DoRA": (replace("dora_scale", np.ones((2, 2))), "is a DoRA .*dora_scale"),
    "IA3": (key(f"{Q}.on_input"), "is an IA3"),
    "OFT": (key(f"{Q}.oft_blocks"), "is an OFT"),
    "GLoRA": (key(f"{Q}.a1.weight"), "is a GLoRA"),
    "full": (key(f"{Q}.diff"), "is a file of full differences"),
    "SDXL": (
        lambda x: {**x, **rename(x, "lora_unet_", "lora_te2_")},
        "is a LoRA of Stable Diffusion XL .*lora_te2_",
    ),
    "SDXL's UNet": (lambda x: rename(x, "down_blocks_1", "input_blocks_4"), "as for Stable Diffusion XL"),
    "Flux": (key(FLUX), "is a LoRA of Flux or another transformer"),
    "SD3": (key(FLUX.replace("single_", "")), "is a LoRA of Flux or another transformer"),
    "checkpoint": (key("model.diffusion_model.out.2.bias"), "is a checkpoint of Stable Diffusion"),
    "embedding": (key("emb_params"), "is a textual inversion, which is given as embedding=FILE"),
    "AnimateDiff": (key("down_blocks.0.motion_modules.0.to_q_lora.up.weight"), "of AnimateDiff"),
    "PEFT": (key("base_model.model.conv_in.lora_A.weight"), "is a PEFT adapter, whose alpha is in another"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_lora_of_this_model_is_refused_by_name(
    params: Params, shapes: Shapes, tmp_path: Path, mistake: str
):
    change, message = MISTAKES[mistake]
    arrays = style_files.kohya(style_files.lora(shapes, RANK, style_files.UNET[:8], []), 1.0)
    file = style_files.write(tmp_path / "lora.safetensors", change(arrays))
    with pytest.raises(UserError, match=message) as caught:
        merged(params, file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"unet.use_dora": true}', "is a DoRA"),
        (
            '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(q|k)": 2}}',
            "alpha_pattern has regular expressions",
        ),
        ('{"unet.lora_alpha": "x"}', "lora_adapter_metadata cannot be read"),
        ("[", "lora_adapter_metadata cannot be read"),
        ("[1]", "lora_adapter_metadata cannot be read"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(tmp_path: Path, metadata: str, message: str):
    arrays = {f"unet.conv_in.lora_{x}.weight": np.ones((2, 2), np.float32) for x in "AB"}
    file = style_files.write(tmp_path / "x.safetensors", arrays, {"lora_adapter_metadata": metadata})
    with pytest.raises(UserError, match=message):
        open_lora(LoraSpec(str(file)))
