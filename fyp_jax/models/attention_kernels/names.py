"""The values of `attention_implementation`, for configs: this module imports no JAX."""

from fyp_jax.errors import UserError

ATTENTION_IMPLEMENTATIONS = ("auto", "blockwise", "pallas_tpu", "cudnn", "xla")

ATTENTION_HELP = (
    f"how attention is computed: {', '.join(ATTENTION_IMPLEMENTATIONS)}; auto: by platform, dtype"
)


def check_attention(implementation: str) -> None:
    """Raise UserError for an `attention_implementation` that is not known."""
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise UserError(
            f"attention_implementation={implementation} is not one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
        )
