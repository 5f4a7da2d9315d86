"""Small single files of Stable Diffusion, as the original code writes them, with random numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from conftest import synthesise

VOCABULARY = 514
"""Number of tokens of the tokenizer that the tests use."""


class Sizes(NamedTuple):
    """Sizes of a tiny Stable Diffusion; its UNet has transformers at all levels but the last."""

    widths: tuple[int, ...] = (32, 64)
    layers: int = 1
    text_width: int = 64
    text_layers: int = 2
    vae_widths: tuple[int, ...] = (32, 32)
    channels: int = 4


SD1 = Sizes()
DEEPER = Sizes(widths=(32, 64, 96), layers=2, vae_widths=(32, 64, 64))
SD2 = Sizes(widths=(64, 128), text_layers=3)

Shapes = dict[str, tuple[int, ...]]


def _linear(name: str, into: int, out: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _conv(name: str, into: int, out: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resnet(name: str, into: int, out: int, time: int) -> Shapes:
    skip = _conv(f"{name}.skip_connection", into, out, 1) if into != out else {}
    return {
        **_norm(f"{name}.in_layers.0", into),
        **_conv(f"{name}.in_layers.2", into, out),
        **_linear(f"{name}.emb_layers.1", time, out),
        **_norm(f"{name}.out_layers.0", out),
        **_conv(f"{name}.out_layers.3", out, out),
        **skip,
    }


def _transformer(name: str, width: int, text: int, linear: bool) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = {
        **_norm(f"{name}.norm", width),
        **_linear(f"{block}.ff.net.0.proj", width, 8 * width),
        **_linear(f"{block}.ff.net.2", 4 * width, width),
    }
    for end in ("proj_in", "proj_out"):
        shapes |= (
            _linear(f"{name}.{end}", width, width) if linear else _conv(f"{name}.{end}", width, width, 1)
        )
    for attention, context in (("attn1", width), ("attn2", text)):
        for projection, into in (("to_q", width), ("to_k", context), ("to_v", context)):
            shapes |= _linear(f"{block}.{attention}.{projection}", into, width, bias=False)
        shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
    for i in (1, 2, 3):
        shapes |= _norm(f"{block}.norm{i}", width)
    return shapes


def unet_shapes(sizes: Sizes, linear: bool) -> Shapes:
    """Shapes of the arrays of an `ldm` UNet, by their names without prefix."""
    widths, text = sizes.widths, sizes.text_width
    time, last = 4 * widths[0], len(widths) - 1
    shapes = {
        **_linear("time_embed.0", widths[0], time),
        **_linear("time_embed.2", time, time),
        **_conv("input_blocks.0.0", sizes.channels, widths[0]),
    }
    skips, width, i = [widths[0]], widths[0], 1
    for level, out in enumerate(widths):
        for _ in range(sizes.layers):
            shapes |= _resnet(f"input_blocks.{i}.0", width, out, time)
            if level < last:
                shapes |= _transformer(f"input_blocks.{i}.1", out, text, linear)
            width, i = out, i + 1
            skips.append(width)
        if level < last:
            shapes |= _conv(f"input_blocks.{i}.0.op", width, width)
            skips.append(width)
            i += 1
    shapes |= _resnet("middle_block.0", width, width, time)
    shapes |= _transformer("middle_block.1", width, text, linear)
    shapes |= _resnet("middle_block.2", width, width, time)
    i = 0
    for level, out in reversed(list(enumerate(widths))):
        for layer in range(sizes.layers + 1):
            shapes |= _resnet(f"output_blocks.{i}.0", width + skips.pop(), out, time)
            if level < last:
                shapes |= _transformer(f"output_blocks.{i}.1", out, text, linear)
            if level and layer == sizes.layers:
                shapes |= _conv(f"output_blocks.{i}.{2 if level < last else 1}.conv", out, out)
            width, i = out, i + 1
    return {**shapes, **_norm("out.0", width), **_conv("out.2", width, 4)}


def vae_shapes(sizes: Sizes) -> Shapes:
    """Shapes of the arrays of an `ldm` VAE, by their names without prefix."""

    def resnet(name: str, into: int, out: int) -> Shapes:
        skip = _conv(f"{name}.nin_shortcut", into, out, 1) if into != out else {}
        return {
            **_norm(f"{name}.norm1", into),
            **_conv(f"{name}.conv1", into, out),
            **_norm(f"{name}.norm2", out),
            **_conv(f"{name}.conv2", out, out),
            **skip,
        }

    def middle(name: str, width: int) -> Shapes:
        shapes = {**resnet(f"{name}.block_1", width, width), **resnet(f"{name}.block_2", width, width)}
        shapes |= _norm(f"{name}.attn_1.norm", width)
        for projection in ("q", "k", "v", "proj_out"):
            shapes |= _conv(f"{name}.attn_1.{projection}", width, width, 1)
        return shapes

    widths = sizes.vae_widths
    last, width = len(widths) - 1, widths[0]
    shapes = _conv("encoder.conv_in", 3, width)
    for i, out in enumerate(widths):
        for layer in range(sizes.layers):
            shapes |= resnet(f"encoder.down.{i}.block.{layer}", width, out)
            width = out
        if i < last:
            shapes |= _conv(f"encoder.down.{i}.downsample.conv", width, width)
    shapes |= {**middle("encoder.mid", width), **_norm("encoder.norm_out", width)}
    shapes |= _conv("encoder.conv_out", width, 8)
    shapes |= {**_conv("quant_conv", 8, 8, 1), **_conv("post_quant_conv", 4, 4, 1)}
    shapes |= {**_conv("decoder.conv_in", 4, width), **middle("decoder.mid", width)}
    for i, out in reversed(list(enumerate(widths))):
        for layer in range(sizes.layers + 1):
            shapes |= resnet(f"decoder.up.{i}.block.{layer}", width, out)
            width = out
        if i:
            shapes |= _conv(f"decoder.up.{i}.upsample.conv", width, width)
    return {**shapes, **_norm("decoder.norm_out", width), **_conv("decoder.conv_out", width, 3)}


def clip_shapes(sizes: Sizes) -> Shapes:
    """Shapes of the arrays of CLIP's text encoder, as transformers names them."""
    width = sizes.text_width
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (VOCABULARY, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        **_norm("text_model.final_layer_norm", width),
    }
    for i in range(sizes.text_layers):
        layer = f"text_model.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= {**_norm(f"{layer}.layer_norm1", width), **_norm(f"{layer}.layer_norm2", width)}
        shapes |= _linear(f"{layer}.mlp.fc1", width, 4 * width)
        shapes |= _linear(f"{layer}.mlp.fc2", 4 * width, width)
    return shapes


def open_clip_shapes(sizes: Sizes) -> Shapes:
    """Shapes of the arrays of OpenCLIP's text encoder, as it names them."""
    width = sizes.text_width
    shapes: Shapes = {
        "token_embedding.weight": (VOCABULARY, width),
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        **_norm("ln_final", width),
    }
    for i in range(sizes.text_layers):
        layer = f"transformer.resblocks.{i}"
        shapes |= {
            f"{layer}.attn.in_proj_weight": (3 * width, width),
            f"{layer}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= _linear(f"{layer}.attn.out_proj", width, width)
        shapes |= {**_norm(f"{layer}.ln_1", width), **_norm(f"{layer}.ln_2", width)}
        shapes |= {
            **_linear(f"{layer}.mlp.c_fc", width, 4 * width),
            **_linear(f"{layer}.mlp.c_proj", 4 * width, width),
        }
    return shapes


def single_file(sizes: Sizes, is_sd2: bool = False) -> dict[str, torch.Tensor]:
    """The arrays of a whole Stable Diffusion by their names in a single file."""
    parts = {
        "model.diffusion_model.": unet_shapes(sizes, linear=is_sd2),
        "first_stage_model.": vae_shapes(sizes),
    }
    if is_sd2:
        parts["cond_stage_model.model."] = open_clip_shapes(sizes)
    else:
        parts["cond_stage_model.transformer."] = clip_shapes(sizes)
    named = {prefix + name: shape for prefix, part in parts.items() for name, shape in part.items()}
    arrays = {name: torch.from_numpy(np.array(synthesise(name, shape))) for name, shape in named.items()}
    if not is_sd2:
        name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        arrays[name] = torch.arange(77)[None]
    arrays["betas"] = torch.from_numpy(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).float()
    return arrays


def with_ema(arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The arrays, with a moving average of the UNet beside it, as training code writes it."""
    unet = {name: x for name, x in arrays.items() if name.startswith("model.diffusion_model.")}
    flat = {"model_ema." + "".join(name.split(".")[1:]): x + 1 for name, x in unet.items()}
    return {**arrays, **flat, "model_ema.decay": torch.tensor(0.9999)}


def save(arrays: Mapping[str, Any], file: Path, wrapped: Any = None) -> Path:
    """Write the arrays as safetensors, or as a pickle (with `wrapped`: of that object)."""
    if file.suffix == ".safetensors":
        save_file({name: x.contiguous() for name, x in arrays.items()}, file)
    else:
        torch.save(arrays if wrapped is None else wrapped, file)
    return file
