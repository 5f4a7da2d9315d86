"""Names of the arrays of VAE and text encoder: those of PyTorch today, of old files, of the Flax models."""

from collections.abc import Mapping

from fyp_jax.convert.lazy import LazyArray

VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names in the VAE's attention: in PyTorch today, and in old PyTorch files and the Flax model."""


def present_text_names(state_dict: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The arrays of a text encoder under the names of `CLIPTextModel` today.

    Old files also hold the position ids, which are constants. New files may lack the prefix `text_model.`.
    """
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": x
        for name, x in state_dict.items()
        if not name.endswith("position_ids")
    }


def flax_vae_name(name: str) -> str:
    """The name of an array of the VAE in its Flax model, of its name in PyTorch today."""
    return _with_vae_attention(name, VAE_ATTENTION)


def torch_vae_name(name: str) -> str:
    """The name of an array of the VAE in PyTorch today, of an old name or that of the Flax model."""
    return _with_vae_attention(name, {old: new for new, old in VAE_ATTENTION.items()})


def _with_vae_attention(name: str, names: Mapping[str, str]) -> str:
    for before, after in names.items():
        name = name.replace(f".attentions.0.{before}.", f".attentions.0.{after}.")
    return name


def as_dense_kernel(name: str, value: LazyArray) -> LazyArray:
    """The kernel of a dense layer: old files hold the VAE's attention as 1x1 convolutions."""
    is_convolution = len(value.shape) > 2 and set(value.shape[2:]) == {1}
    shape = value.shape[:2] if ".attentions." in name and is_convolution else value.shape
    return LazyArray(shape, value.dtype, lambda: value.read().reshape(shape))
