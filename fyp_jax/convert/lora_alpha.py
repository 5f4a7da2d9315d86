"""The alpha of a LoRA that diffusers notes in a file's metadata, and not in an array (`save_lora_adapter`).

It is the JSON of PEFT's LoraConfig, with the part as a prefix: {"unet.r": 8, "unet.lora_alpha": 16, ...}.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from fyp_jax.convert.lora_keys import READ
from fyp_jax.convert.safetensors_files import WeightsError

ADAPTER_METADATA = "lora_adapter_metadata"
ADAPTER_PARTS = ("unet", "text_encoder")


class AdapterConfig(NamedTuple):
    """The fields of PEFT's LoraConfig on which the scale of a layer depends."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float]
    """Alpha of single layers, by the end of their path with underscores."""
    use_rslora: bool

    def alpha(self, module: str, rank: int) -> float:
        """The alpha of a layer, so that its scale is alpha / rank."""
        alpha = self.lora_alpha
        for end, value in self.alpha_pattern.items():
            if module == end or module.endswith("_" + end):
                alpha = value
                break
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha  # rank-stabilised: alpha / sqrt(rank)


def adapter_configs(metadata: Mapping[str, str], what: str) -> dict[str, AdapterConfig]:
    """The configs of a file's metadata by part; empty where it has none.

    Raises WeightsError, which starts with `what`, where they cannot be read, or where they say that the file
    is more than a LoRA.
    """
    if ADAPTER_METADATA not in metadata:
        return {}
    try:
        fields: dict[str, Any] = json.loads(metadata[ADAPTER_METADATA])
        configs = {}
        for part in ADAPTER_PARTS:
            own = {key.removeprefix(f"{part}."): x for key, x in fields.items() if key.startswith(f"{part}.")}
            if own:
                configs[part] = _config(own, what)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{what}: its {ADAPTER_METADATA} cannot be read ({error})") from error
    return configs


def _config(own: dict[str, Any], what: str) -> AdapterConfig:
    if own.get("use_dora"):
        raise WeightsError(f"{what}: is a DoRA (use_dora in its metadata); {READ}")
    pattern = {str(end).replace(".", "_"): float(x) for end, x in (own.get("alpha_pattern") or {}).items()}
    if odd := [end for end in pattern if not end.replace("_", "").isalnum()]:
        raise ValueError(f"alpha_pattern has regular expressions: {odd[0]}")
    alpha = own.get("lora_alpha")
    return AdapterConfig(None if alpha is None else float(alpha), pattern, bool(own.get("use_rslora")))
