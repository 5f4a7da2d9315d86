"""The names of arrays in LoRA files: kohya's, and diffusers' from its first attention processors to PEFT's.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight          kohya, LoCon (.lora_mid, .alpha)
    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight                  diffusers with PEFT
    unet.down_blocks.0.attentions.0.proj_in.lora.down.weight               diffusers without PEFT
    down_blocks.0.attentions.0....attn1.processor.to_q_lora.down.weight    its attention processors
    text_encoder.text_model....q_proj.lora_linear_layer.down.weight        its text encoder

Kohya writes the dots of a module's path as underscores. So all names are compared in that form.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fyp_jax.errors import UserError

READ = "LoRA and LoCon of Stable Diffusion 1.x and 2.x are read"


class LoraKey(NamedTuple):
    """What an array of a LoRA file is."""

    part: str
    """The model: unet or text_encoder."""
    module: str
    """The path of the layer, with underscores in place of dots."""
    role: str
    """down, up, mid or alpha."""


PARTS = (
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("", "unet"),  # a file of attention processors alone
)
ROLES = (
    r"\.lora_(down|up|mid)\.weight",
    r"\.lora_(A|B)(?:\.\w+)?\.weight",
    r"\.lora\.(down|up)\.weight",
    r"\.lora_linear_layer\.(down|up)\.weight",
    r"_lora\.(down|up)\.weight",
    r"\.(alpha)",
)
ROLE_NAMES = {"A": "down", "B": "up"}
PROCESSOR_LAYERS = {
    "unet": {"to_out": "to_out.0"},
    "text_encoder": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}
"""The layers of an attention, by the names that attention processors have for them (`to_q_lora`)."""

OTHER_KINDS = (
    (r"hada_[wt]", "a LoHa"),
    (r"lokr_[wt]", "a LoKr"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA"),
    (r"on_input$", "an IA3"),
    (r"oft_(blocks|diag|R)", "an OFT"),
    (r"\.[ab][12]\.weight$", "a GLoRA"),
    (r"custom_diffusion", "a Custom Diffusion"),
    (r"motion_modules", "a motion LoRA of AnimateDiff"),
    (r"^lora_te[12]_|^text_encoder_2\.", "a LoRA of Stable Diffusion XL"),
    (r"(input|middle|output)_block", "a LoRA with the original UNet's names, as for Stable Diffusion XL"),
    (r"^lora_te3_|^text_encoder_3\.|joint_|^lora_prior_", "a LoRA of Stable Diffusion 3 or Stable Cascade"),
    (r"(double|single)_(block|tran)|^(lora_)?transformer[._]", "a LoRA of Flux or another transformer"),
    (r"^base_model\.", "a PEFT adapter, whose alpha is in another file"),
    (r"\.diff(_b)?$|\.[wb]_norm$", "a file of full differences of weights"),
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.", "a checkpoint of Stable Diffusion"),
    (r"^string_to_param$|^emb_params$", "a textual inversion, which is given as embedding=FILE"),
)  # fmt: skip
"""Regular expressions that are found in the names of files of other kinds."""


def refuse_other_kinds(keys: Iterable[str], what: str) -> None:
    """Raise UserError, which starts with `what`, where the names are those of another kind of file."""
    for key in keys:
        for pattern, kind in OTHER_KINDS:
            if re.search(pattern, key):
                raise UserError(f"{what}: is {kind} ({key}); {READ}")


def parse_key(key: str) -> LoraKey | None:
    """What the name of an array says; None where it is no name of a LoRA."""
    for pattern in ROLES:
        match = re.fullmatch(r"(.+?)" + pattern, key)
        if match is None:
            continue
        (part, module), role = _part(match[1]), match[2]
        module = re.sub(r"\.processor\b", "", module)
        if pattern.startswith("_lora"):
            module = _processor_layer(part, module)
        elif role == "alpha" and module.endswith("_lora"):
            module = _processor_layer(part, module.removesuffix("_lora"))
        return LoraKey(part, module.replace(".", "_"), ROLE_NAMES.get(role, role))
    return None


def _part(name: str) -> tuple[str, str]:
    for prefix, part in PARTS:
        if name.startswith(prefix):
            return part, name.removeprefix(prefix)
    raise AssertionError("the last prefix is empty")


def _processor_layer(part: str, module: str) -> str:
    attention, dot, layer = module.rpartition(".")
    return attention + dot + PROCESSOR_LAYERS[part].get(layer, layer)
