"""The names of arrays in a single file of Stable Diffusion (those of CompVis's `ldm`), and diffusers'.

`ldm` numbers the layers of the UNet from end to end (`input_blocks.4.1`), where diffusers has levels
(`down_blocks.1.attentions.0`). The levels are found from the arrays: a level ends where its down- or
upsampling is. So the mapping holds for any number of levels and layers.
"""

import re
from collections.abc import Callable, Mapping

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray

State = Mapping[str, LazyArray]

UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
UNET_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPEN_CLIP = {
    "token_embedding": "embeddings.token_embedding",
    "ln_final": "final_layer_norm",
}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_UNUSED = ("text_projection", "logit_scale", "attn_mask")
WHOLE_OPEN_CLIP = 24
"""Number of layers of OpenCLIP's ViT-H, whose last layer Stable Diffusion 2.x does not use."""


def unet_from_ldm(arrays: State) -> dict[str, LazyArray]:
    """The arrays of an image UNet under diffusers' names, from `ldm`'s without `model.diffusion_model.`.

    Raises TreeMismatch for a name that has no place.
    """
    modules = dict(UNET_ENDS)
    level = layer = 0
    for i in _numbers(arrays, r"input_blocks\.(\d+)\."):
        if i == 0:
            continue
        if f"input_blocks.{i}.0.op.weight" in arrays:
            modules[f"input_blocks.{i}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            level, layer = level + 1, 0
            continue
        modules[f"input_blocks.{i}.0"] = f"down_blocks.{level}.resnets.{layer}"
        modules[f"input_blocks.{i}.1"] = f"down_blocks.{level}.attentions.{layer}"
        layer += 1
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        modules[f"middle_block.{i}"] = f"mid_block.{name}"
    level = layer = 0
    for i in _numbers(arrays, r"output_blocks\.(\d+)\."):
        modules[f"output_blocks.{i}.0"] = f"up_blocks.{level}.resnets.{layer}"
        modules[f"output_blocks.{i}.1"] = f"up_blocks.{level}.attentions.{layer}"
        layer += 1
        for j in (1, 2):  # after the resnet, or after its transformer
            if f"output_blocks.{i}.{j}.conv.weight" in arrays:
                modules[f"output_blocks.{i}.{j}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
                level, layer = level + 1, 0
                break

    def rename(name: str) -> str | None:
        new = _rename_module(name, modules)
        resnet = None if new is None else re.fullmatch(r"(.*\.resnets\.\d+)\.(.*)", new)
        if resnet is None:
            return new
        inner = _rename_module(resnet[2], UNET_RESNET)
        return None if inner is None else f"{resnet[1]}.{inner}"

    return _renamed(arrays, rename, "UNet")


def vae_from_ldm(arrays: State) -> dict[str, LazyArray]:
    """The arrays of a VAE under diffusers' names, from `ldm`'s without `first_stage_model.`.

    Attention keeps `ldm`'s 1x1 convolutions. Raises TreeMismatch for a name that has no place.
    """
    last = max(_numbers(arrays, r"decoder\.up\.(\d+)\."), default=0)

    def rename(name: str) -> str | None:
        attention = re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(.*)", name)
        if attention is not None:
            inner = _rename_module(attention[2], VAE_ATTENTION)
            return None if inner is None else f"{attention[1]}.mid_block.attentions.0.{inner}"
        name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace(".norm_out.", ".conv_norm_out.")
        name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda x: f"decoder.up_blocks.{last - int(x[1])}.", name)
        name = re.sub(r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv.", name)
        name = re.sub(r"(_blocks\.\d+)\.block\.(\d+)\.", r"\1.resnets.\2.", name)
        return re.sub(r"\.mid\.block_([12])\.", lambda x: f".mid_block.resnets.{int(x[1]) - 1}.", name)

    return _renamed(arrays, rename, "VAE")


def text_encoder_from_open_clip(arrays: State) -> dict[str, LazyArray]:
    """The arrays of `CLIPTextModel`, from OpenCLIP's names without `cond_stage_model.model.`.

    The last layer is left out where it is there: Stable Diffusion 2.x was trained on the output of the layer
    before. Files that were made from diffusers' do not have it, nor what OpenCLIP has behind its layers.
    Raises TreeMismatch for a name that has no place.
    """
    layers = _numbers(arrays, r"transformer\.resblocks\.(\d+)\.")
    is_whole = any(name in arrays for name in ("text_projection", "logit_scale"))
    unused = layers[-1] if layers and (is_whole or len(layers) == WHOLE_OPEN_CLIP) else None
    converted = {}
    for name, array in arrays.items():
        if name in OPEN_CLIP_UNUSED:
            continue
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", name)
        if layer is not None and int(layer[1]) == unused:
            continue
        if layer is None:
            if name == "positional_embedding":
                new = "embeddings.position_embedding.weight"
            else:
                new = _rename_module(name, OPEN_CLIP)
            converted[f"text_model.{_known(new, name, 'text encoder')}"] = array
            continue
        prefix = f"text_model.encoder.layers.{layer[1]}."
        joint = re.fullmatch(r"attn\.in_proj_(weight|bias)", layer[2])
        if joint is not None:
            for i, projection in enumerate(("q_proj", "k_proj", "v_proj")):
                converted[f"{prefix}self_attn.{projection}.{joint[1]}"] = _third(array, i)
        else:
            new = _rename_module(layer[2], OPEN_CLIP_LAYER)
            converted[prefix + _known(new, name, "text encoder")] = array
    return converted


def ema_name(name: str) -> str:
    """The name of the moving average of an array of the UNet (`model.diffusion_model...`)."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def count(arrays: State, pattern: str) -> int:
    """How many different numbers the group of `pattern` matches at the start of names."""
    return len(_numbers(arrays, pattern))


def _third(array: LazyArray, i: int) -> LazyArray:
    """The i-th third of the rows: OpenCLIP holds query, key and value in one array."""
    rows = array.shape[0] // 3 if array.shape else 0
    return LazyArray(
        (rows, *array.shape[1:]), array.dtype, lambda: array.read()[i * rows : (i + 1) * rows].copy()
    )


def _numbers(arrays: State, pattern: str) -> list[int]:
    """The numbers that the group of `pattern` matches at the start of names, in order."""
    return sorted({int(match[1]) for name in arrays if (match := re.match(pattern, name))})


def _rename_module(name: str, modules: Mapping[str, str]) -> str | None:
    """The name with its module renamed: the longest start of it, up to a dot, that is in `modules`."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        new = modules.get(".".join(parts[:end]))
        if new is not None:
            return ".".join((new, *parts[end:]))
    return None


def _renamed(arrays: State, rename: Callable[[str], str | None], what: str) -> dict[str, LazyArray]:
    renamed: dict[str, LazyArray] = {}
    for name, array in arrays.items():
        new = _known(rename(name), name, what)
        if new in renamed:
            raise trees.TreeMismatch(f"{what}: two arrays for {new}, one of them {name}")
        renamed[new] = array
    return renamed


def _known(new: str | None, name: str, what: str) -> str:
    if new is None:
        raise trees.TreeMismatch(f"{what}: 1 unexpected ({name})")
    return new
