"""VAE, CLIP text encoder and tokenizer of Stable Diffusion: the Flax models of diffusers and transformers.

Only this module and evaluation/clip_score.py import these two libraries. Their axes and units do not leave
this module: its callers see clips as b f h w c, pixels in [-1, 1], and latents of about unit variance.
"""

import dataclasses
import functools
import json
import logging
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fyp_jax.compilation_cache import cached
from fyp_jax.errors import UserError
from fyp_jax.types import Latents, Params, TextEmbeddings

TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps"),
)
"""Fields of a text encoder's config on which its last hidden states depend."""

TOKEN_TABLE = "text_model/embeddings/token_embedding/embedding"
"""The text encoder's parameter with one row for each token."""

Video = Float[Array, "b f H W 3"]

ENCODERS = ("vae", "text_encoder")
"""Names of the two models in a dict that holds the parameters of several models."""


class EncoderSpec(NamedTuple):
    """Sizes, shapes and the tokenizer of both models: what a start needs before it computes with them.

    The compilation cache holds it, so that a later start need not import diffusers and transformers.
    """

    latent_channels: int
    """Number of channels of the latents."""
    scaling_factor: float
    """Factor by which the VAE's latents are multiplied, so that they have about unit variance."""
    downscale: int
    """Pixels per latent, in height and in width."""
    text_width: int
    """Channels of a text embedding."""
    tokens: int
    """Length of a tokenized text, with the start token, the end token and padding."""
    padding: int
    """Id of the padding token."""
    tokenizer: str
    """CLIP's tokenizer, in the JSON of the `tokenizers` library."""
    sizes: dict[str, str]
    """Description of each model: all of its config on which a compiled program depends."""
    shapes: dict[str, Any]
    """Nested shapes of the parameters of each model."""


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEncoders:
    """VAE and text encoder without their parameters; methods take these as {"vae": ..., "text_encoder": ...}.

    The modules are created when they are first used, since importing diffusers and transformers takes longer
    than sampling a small clip. A start that finds its programs and `spec` in the cache never creates them.
    """

    vae_config: Mapping[str, Any]
    text_config: Mapping[str, Any]
    tokenizer_folder: Path
    dtype: jnp.dtype
    padding: int | None = None
    """Id of the padding token, where it is not the tokenizer's own."""
    added_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Tokens that the tokenizer has besides those of its folder, each with its number of vectors."""
    extended_spec: EncoderSpec | None = None
    """The spec with the added tokens; None where there are none."""

    @classmethod
    def build(
        cls,
        vae_config: Mapping[str, Any],
        text_config: Mapping[str, Any],
        tokenizer_folder: Path,
        dtype: DTypeLike = jnp.float32,
        padding: int | None = None,
    ) -> "LatentEncoders":
        """The encoders of two `config.json` files, of a VAE and of a text encoder, and of a tokenizer folder.

        Both models compute in `dtype`, whatever the dtype of their parameters. `padding` replaces the
        tokenizer's padding token. Raises UserError where the folder has no CLIP vocabulary.
        """
        encoders = cls(vae_config, text_config, tokenizer_folder, jnp.dtype(dtype), padding)
        _ = encoders.spec
        return encoders

    @functools.cached_property
    def vae(self) -> nn.Module:
        from diffusers.models.vae_flax import FlaxAutoencoderKL

        # diffusers warns at every call that version 0.40 drops Flax; setup.py pins a version that has it.
        logging.getLogger("diffusers.models.vae_flax").setLevel(logging.ERROR)
        known = {field.name for field in dataclasses.fields(FlaxAutoencoderKL)} - {"parent", "name", "dtype"}
        config = {key: value for key, value in self.vae_config.items() if key in known}
        return FlaxAutoencoderKL(**config, dtype=self.dtype)

    @functools.cached_property
    def text_encoder(self) -> nn.Module:
        from transformers import CLIPTextConfig
        from transformers.models.clip.modeling_flax_clip import FlaxCLIPTextModule

        return FlaxCLIPTextModule(CLIPTextConfig(**self.text_config), dtype=self.dtype)

    @functools.cached_property
    def spec(self) -> EncoderSpec:
        if self.extended_spec is not None:
            return self.extended_spec
        vocabulary = [file for file in sorted(self.tokenizer_folder.glob("*")) if file.is_file()]
        fingerprint = {
            "vae": json.dumps(self.vae_config),
            "text_encoder": json.dumps(self.text_config),
            "dtype": str(self.dtype),
            "padding": str(self.padding),
            **{f"tokenizer/{file.name}": f"{zlib.crc32(file.read_bytes()):08x}" for file in vocabulary},
        }
        return EncoderSpec(**cached("latent_encoders", fingerprint, lambda: self._make_spec()._asdict()))

    def _make_spec(self) -> EncoderSpec:
        from transformers import CLIPTokenizerFast

        folder, vae, text = self.tokenizer_folder, self.vae, self.text_encoder.config
        try:
            tokenizer = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: holds no CLIP tokenizer that can be read ({error})") from error
        unused = ("parent", "name", "sample_size")
        vae_fields = [field.name for field in dataclasses.fields(vae) if field.name not in unused]
        text_sizes = [f"{name}={getattr(text, name)}" for name in TEXT_SIZES] + [f"dtype={self.dtype}"]
        key = jax.random.key(0)
        return EncoderSpec(
            latent_channels=vae.latent_channels,
            scaling_factor=vae.scaling_factor,
            downscale=2 ** (len(vae.block_out_channels) - 1),
            text_width=text.hidden_size,
            tokens=min(tokenizer.model_max_length, text.max_position_embeddings),
            padding=tokenizer.pad_token_id if self.padding is None else self.padding,
            tokenizer=_match_slow_tokenizer(tokenizer.backend_tokenizer).to_str(),
            sizes={
                "vae": " ".join(f"{name}={getattr(vae, name)}" for name in vae_fields),
                "text_encoder": " ".join(text_sizes),
            },
            shapes={name: jax.eval_shape(functools.partial(self.init, name), key) for name in ENCODERS},
        )

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.spec.tokenizer)

    @functools.cached_property
    def _vectors(self) -> dict[int, int]:
        return {self.token_id(token): count for token, count in self.added_tokens.items()}

    def token_id(self, token: str) -> int:
        """The id of a token that the tokenizer has; the ids of an added token's further vectors follow it."""
        index = self.tokenizer.token_to_id(token)
        assert index is not None
        return index

    def add_tokens(self, tokens: Mapping[str, int]) -> "LatentEncoders":
        """The same encoders with new tokens, each with its number of vectors, and a larger vocabulary.

        Raises UserError where the tokenizer has a token, or a word, of that name already.
        """
        known = set(self.tokenizer.get_vocab())
        for token, count in tokens.items():
            new = _names_of_vectors(token, count)
            if taken := [name for name in new if name in known or f"{name.lower()}</w>" in known]:
                raise UserError(
                    f"the tokenizer already has {taken[0]!r}; choose another token: embedding=FILE:TOKEN"
                )
            known.update(new)
        tokenizer = tokenizers.Tokenizer.from_str(self.spec.tokenizer)
        # As in PyTorch's pipelines, they are found anywhere in a text, and in their own case only.
        names = [name for token, count in tokens.items() for name in _names_of_vectors(token, count)]
        tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
        shapes: dict[str, Any] = flatten_dict(self.spec.shapes["text_encoder"], sep="/")
        rows, width = shapes[TOKEN_TABLE].shape
        rows = max(rows, tokenizer.get_vocab_size())
        shapes[TOKEN_TABLE] = jax.ShapeDtypeStruct((rows, width), shapes[TOKEN_TABLE].dtype)
        sizes = re.sub(r"vocab_size=\d+", f"vocab_size={rows}", self.spec.sizes["text_encoder"])
        return dataclasses.replace(
            self,
            text_config={**self.text_config, "vocab_size": rows},
            added_tokens={**self.added_tokens, **tokens},
            extended_spec=self.spec._replace(
                tokenizer=tokenizer.to_str(),
                sizes={**self.spec.sizes, "text_encoder": sizes},
                shapes={**self.spec.shapes, "text_encoder": unflatten_dict(shapes, sep="/")},
            ),
        )

    def init(self, name: str, key: Array) -> dict[str, Any]:
        """Newly initialised float32 parameters of the model "vae" or "text_encoder"."""
        if name == "vae":
            side = 2 ** (len(self.vae.block_out_channels) - 1)
            pixels = jnp.zeros((1, 3, side, side))
            return dict(jax.jit(self.vae.init)(key, pixels)["params"])
        ids = jnp.zeros((1, 1), jnp.int32)
        return dict(jax.jit(self.text_encoder.init)(key, ids, ids, ids)["params"])

    def tokenize(self, prompt: str) -> tuple[Int[np.ndarray, "1 l"], str]:
        """Token ids, padded to the length that the text encoder was trained with, and the end of the prompt
        that was cut off as it did not fit ("" where nothing was)."""
        length, encoding = self.spec.tokens, self.tokenizer.encode(prompt)
        # A token of several vectors stands for all of its ids, which follow its own.
        pieces = [
            (index + i, start)
            for index, (start, _) in zip(encoding.ids, encoding.offsets, strict=True)
            for i in range(self._vectors.get(index, 1))
        ]
        ids, cut_off = [index for index, _ in pieces], ""
        if len(ids) > length:  # the end token stays
            ids, cut_off = [*ids[: length - 1], ids[-1]], prompt[pieces[length - 1][1] :]
        return np.asarray([ids + [self.spec.padding] * (length - len(ids))], np.int32), cut_off

    def encode_text(self, params: Params, ids: Int[Array, "b l"] | Int[np.ndarray, "b l"]) -> TextEmbeddings:
        """Last hidden states after the final LayerNorm. Padding is attended to, as in SD's training."""
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        out = self.text_encoder.apply({"params": params["text_encoder"]}, ids, jnp.ones_like(ids), positions)
        return out.last_hidden_state  # pyright: ignore[reportAttributeAccessIssue]

    def encode_images(self, params: Params, video: Video, noise: Latents | None = None) -> Latents:
        """RGB in [-1, 1] -> latents times the scaling factor.

        The latents are a sample of the VAE's posterior, made with standard normal `noise` of their shape, or
        the posterior's mean where `noise` is None.
        """
        mean, std = self.posterior(params, video)
        return (mean if noise is None else mean + std * noise) * self.spec.scaling_factor

    def posterior(self, params: Params, video: Video) -> tuple[Latents, Latents]:
        """RGB in [-1, 1] -> mean and standard deviation of the latents, *not* multiplied by the scaling
        factor."""
        images = rearrange(video, "b f h w c -> (b f) c h w")
        posterior = self._vae(params, images, self.vae.encode).latent_dist
        mean, std = (
            rearrange(t, "(b f) h w c -> b f h w c", b=len(video)) for t in (posterior.mean, posterior.std)
        )
        return mean, std

    def decode_latents(self, params: Params, latents: Latents, chunk: int) -> Video:
        """Latents times the scaling factor -> RGB, mostly in [-1, 1], decoded `chunk` frames at a time."""

        def decode(frames: Float[Array, "n h w c"]) -> Float[Array, "n 3 H W"]:
            return self._vae(params, frames, self.vae.decode).sample

        frames = rearrange(latents / self.spec.scaling_factor, "b f h w c -> (b f) h w c")
        if chunk >= len(frames):
            images = decode(frames)
        else:
            images = jax.lax.map(lambda latent: decode(latent[None])[0], frames, batch_size=chunk)
        return rearrange(images, "(b f) c h w -> b f h w c", b=len(latents))

    def _vae(self, params: Params, x: Array, method: Any) -> Any:
        return self.vae.apply({"params": params["vae"]}, x, method=method)


def _names_of_vectors(token: str, count: int) -> list[str]:
    """The names of a token's vectors, as diffusers gives them: cat, cat_1, cat_2."""
    return [token, *(f"{token}_{i}" for i in range(1, count))]


def _match_slow_tokenizer(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """CLIP's tokenizer in Rust, changed so that it gives the ids of `CLIPTokenizer`, which is in Python.

    PyTorch pipelines use `CLIPTokenizer`. It makes each ideograph a word, and drops characters of no width.
    """
    cleans = tokenizers.normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.normalizer = tokenizers.normalizers.Sequence([cleans, tokenizer.normalizer])
    return tokenizer
