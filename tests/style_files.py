"""LoRA and textual inversions of random numbers, in the forms of those who train them."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.numpy import save_file
from transformers import CLIPTextModel, CLIPTokenizer

ATTENTION = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_v")
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = [
    *(f"{BLOCK}.{name}" for name in (*ATTENTION, "ff.net.0.proj", "ff.net.2")),
    "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
]
CONVOLUTIONS = [
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.time_emb_proj",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.resnets.0.conv_shortcut",
    "conv_in",
]
TEXT = [
    f"text_model.encoder.layers.{i}.{name}"
    for i in (0, 1)
    for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
]
TEXT_ATTENTION = [name for name in TEXT if "self_attn" in name]
PROCESSOR_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "0": "to_out"}


def pytorch_pipeline(folder: Path) -> StableDiffusionPipeline:
    """PyTorch's pipeline of a folder."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler", clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def numbers(name: str, *shape: int) -> np.ndarray:
    """Numbers that depend on a name alone, so that a LoRA is the same in each form."""
    return (np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape) / 4).astype(np.float32)


def layer(name: str, weight: tuple[int, ...], rank: int) -> dict[str, np.ndarray]:
    """`down` and `up` of a layer whose weight has this shape in PyTorch."""
    out, into, *kernel = weight
    return {
        "down": numbers(f"{name} down", rank, into, *kernel),
        "up": numbers(f"{name} up", out, rank, *(1 for _ in kernel)),
    }


def lora(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], rank: int, unet: list[str], text: list[str]
) -> Any:
    """{"unet" or "text_encoder": {module: {"down", "up"}}} for layers of these names."""
    names = {"unet": unet, "text_encoder": text}
    return {
        part: {name: layer(name, shapes[part][f"{name}.weight"], rank) for name in names[part]}
        for part in names
    }


def kohya(layers: Any, alpha: float | None) -> dict[str, np.ndarray]:
    arrays = {}
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for name, own in layers[part].items():
            module = prefix + name.replace(".", "_")
            arrays |= {f"{module}.lora_{role}.weight": x for role, x in own.items()}
            if alpha is not None:
                arrays[f"{module}.alpha"] = np.asarray(alpha, np.float32)
    return arrays


def dotted(layers: Any, unet: str, text: str) -> dict[str, np.ndarray]:
    """diffusers' names; `unet` and `text` are templates of a layer and its role."""
    roles = {"down": "A", "up": "B"}
    templates = {"unet": unet, "text_encoder": text}
    return {
        f"{part}.{name}.{templates[part].format(role=role, letter=roles[role])}": x
        for part in templates
        for name, own in layers[part].items()
        for role, x in own.items()
    }


def peft(layers: Any) -> dict[str, np.ndarray]:
    return dotted(layers, "lora_{letter}.weight", "lora_{letter}.weight")


def before_peft(layers: Any) -> dict[str, np.ndarray]:
    return dotted(layers, "lora.{role}.weight", "lora_linear_layer.{role}.weight")


def processors(layers: Any) -> dict[str, np.ndarray]:
    """The names of diffusers' attention processors, for layers of attentions only."""
    arrays = {}
    for part in ("unet", "text_encoder"):
        for name, own in layers[part].items():
            attention, _, last = name.removesuffix(".0").rpartition(".")
            last = PROCESSOR_NAMES.get(last, last)
            middle = ".processor" if part == "unet" else ""
            arrays |= {f"{part}.{attention}{middle}.{last}_lora.{role}.weight": x for role, x in own.items()}
    return arrays


def write(file: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """A LoRA file, safetensors or a pickle by its suffix."""
    if file.suffix == ".safetensors":
        save_file({name: np.asarray(x) for name, x in arrays.items()}, file, metadata)
    else:
        torch.save({name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}, file)
    return file


def write_embedding(file: Path, form: str, token: str, vectors: np.ndarray) -> Path:
    """A textual inversion in the form of diffusers ("diffusers"), or of AUTOMATIC1111 ("a1111")."""
    if file.suffix == ".safetensors":
        save_file({token if form == "diffusers" else "emb_params": vectors}, file)
        return file
    tensor = torch.from_numpy(vectors)
    a1111 = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(tensor)},
        "name": token,
        "step": 499,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
    torch.save({token: tensor} if form == "diffusers" else a1111, file)
    return file
