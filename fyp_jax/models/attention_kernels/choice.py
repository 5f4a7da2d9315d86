"""The choice of an attention implementation: by name, or by platform and dtype."""

import logging

import jax.numpy as jnp
from jax.typing import DTypeLike

from fyp_jax.errors import UserError
from fyp_jax.models.attention_functions import AttentionFn, blockwise_attention
from fyp_jax.models.attention_kernels.gpu import cudnn_attention, xla_attention
from fyp_jax.models.attention_kernels.tpu_blocks import CHIP_BLOCKS
from fyp_jax.models.attention_kernels.tpu_few_tokens import tpu_attention

log = logging.getLogger(__name__)

GPU_PLATFORMS = ("gpu", "cuda")
"""Names of the platform of NVIDIA GPUs."""


KERNELS_ARE_BETTER = ("TPU v5", "TPU7x")
"""Chips on which XLA keeps few scores in VMEM, so that the kernels move less in HBM than blocks do."""


def choose_attention(implementation: str, dtype: DTypeLike, platform: str, device_kind: str) -> AttentionFn:
    """The attention function of an `attention_implementation` (one of ATTENTION_IMPLEMENTATIONS).

    `platform` and `device_kind` are those of the JAX device that will run it. `auto` takes the Pallas kernels
    on v5p and tpu7x with bfloat16 activations, on a GPU cuDNN with bfloat16 activations and XLA with others,
    and blocks elsewhere. What a kernel does not take goes to another form: to blocks, on a GPU to XLA, and on
    a TPU few tokens to `few_token_attention`. Raises UserError where the platform cannot run what was asked
    for.
    """
    dtype, is_gpu = jnp.dtype(dtype), platform in GPU_PLATFORMS
    is_known_tpu = platform == "tpu" and device_kind in CHIP_BLOCKS
    if implementation == "auto":
        chosen = "blockwise"
        if is_gpu:
            chosen = "cudnn" if dtype == jnp.bfloat16 else "xla"
        elif dtype == jnp.bfloat16 and device_kind in KERNELS_ARE_BETTER:
            chosen = "pallas_tpu"
        log.info("attention_implementation=auto: %s, for %s on %s", chosen, dtype.name, device_kind)
        implementation = chosen
    if implementation == "pallas_tpu":
        if not is_known_tpu:
            known = ", ".join(CHIP_BLOCKS)
            raise UserError(
                f"attention_implementation=pallas_tpu needs one of {known}, and the device is {device_kind}: "
                "set attention_implementation=auto"
            )
        # Pallas takes a second to import, and other platforms do not need it.
        from fyp_jax.models.attention_kernels.tpu import PallasTpuAttention

        return PallasTpuAttention(device_kind)
    if implementation == "cudnn":
        if not is_gpu or dtype == jnp.float32:
            raise UserError(
                "attention_implementation=cudnn needs an NVIDIA GPU and dtype=bfloat16, and this is "
                f"{dtype.name} on {device_kind}: set attention_implementation=auto"
            )
        return cudnn_attention
    if implementation == "blockwise":
        return tpu_attention if platform == "tpu" else blockwise_attention
    return xla_attention
