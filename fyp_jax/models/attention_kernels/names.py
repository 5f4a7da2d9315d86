"""The values of `attention_implementation`, for configs: this module imports no JAX."""

from fyp_jax.errors import UserError

ATTENTION_IMPLEMENTATIONS = ("auto", "blockwise", "pallas_tpu", "cudnn", "xla")

ATTENTION_HELP = "how attention is computed: auto (by platform and dtype), blockwise, pallas_tpu, cudnn, xla"


def check_attention(implementation: str) -> None:
    """Raise UserError for an `attention_implementation` that is not known."""
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UserError(
            f"attention_implementation={implementation} is not one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
        )
