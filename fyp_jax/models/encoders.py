"""The models of other libraries: VAE, CLIP text encoder and tokenizer of Stable Diffusion, frozen as a rule.

Beside clip.py the only module that imports diffusers and transformers, whose Flax models these are. What they
do with axes and units ends here: outside, clips are b f h w c, pixels in [-1, 1], latents of unit variance.
"""

import dataclasses
import functools
import json
import logging
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
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fyp_jax.compilation_cache import cached
from fyp_jax.errors import UserError
from fyp_jax.types import Latents, Params, TextEmbeddings

TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps"),
)
"""Fields of a text encoder's config that its last hidden states depend on."""

Video = Float[Array, "b f H W 3"]

ENCODERS = ("vae", "text_encoder")
"""Names of the two models wherever parameters of several models are together."""


class EncoderSpec(NamedTuple):
    """What is to be known of the models before they compute; kept from one start to the next."""

    latent_channels: int
    scaling_factor: float
    downscale: int
    """Pixels for one latent, in height and in width."""
    text_width: int
    tokens: int
    """Of a text, padding and both ends included."""
    padding: int
    """Token that fills a text up."""
    tokenizer: str
    """CLIP's, in the JSON of the `tokenizers` library."""
    sizes: dict[str, str]
    """All that a compiled program depends on, by model."""
    shapes: dict[str, Any]
    """Names and shapes of the parameters, by model."""


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEncoders:
    """Modules without their parameters, which each method takes as {"vae": ..., "text_encoder": ...}.

    They are made when they first compute: importing diffusers and transformers takes longer than a small
    clip, and a start that has its programs and `facts` from an earlier one never asks for them.
    """

    vae_config: Mapping[str, Any]
    text_config: Mapping[str, Any]
    tokenizer_folder: Path
    dtype: jnp.dtype

    @classmethod
    def build(
        cls,
        vae_config: Mapping[str, Any],
        text_config: Mapping[str, Any],
        tokenizer_folder: Path,
        dtype: DTypeLike = jnp.float32,
    ) -> "LatentEncoders":
        """From the `config.json` of a VAE and of a text encoder, and a folder with a CLIP vocabulary.

        Both networks compute in `dtype`, whatever that of their parameters. Raises UserError where the folder
        has no vocabulary.
        """
        models = cls(vae_config, text_config, tokenizer_folder, jnp.dtype(dtype))
        _ = models.spec
        return models

    @functools.cached_property
    def vae(self) -> nn.Module:
        from diffusers.models.vae_flax import FlaxAutoencoderKL

        # Says at every call that diffusers 0.40 drops Flax; setup.py pins the last version that has it.
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
        vocabulary = [file for file in sorted(self.tokenizer_folder.glob("*")) if file.is_file()]
        fingerprint = {
            "vae": json.dumps(self.vae_config),
            "text_encoder": json.dumps(self.text_config),
            "dtype": str(self.dtype),
            **{f"tokenizer/{file.name}": f"{zlib.crc32(file.read_bytes()):08x}" for file in vocabulary},
        }
        return EncoderSpec(**cached("latent_encoders", fingerprint, lambda: self._make_spec()._asdict()))

    def _make_spec(self) -> EncoderSpec:
        from transformers import CLIPTokenizerFast

        folder, vae, text = self.tokenizer_folder, self.vae, self.text_encoder.config
        try:
            tokenizer = CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: no CLIP tokenizer that opens ({error})") from error
        unused = ("parent", "name", "sample_size")
        of_vae = [field.name for field in dataclasses.fields(vae) if field.name not in unused]
        of_text = [f"{name}={getattr(text, name)}" for name in TEXT_SIZES] + [f"dtype={self.dtype}"]
        key = jax.random.key(0)
        return EncoderSpec(
            latent_channels=vae.latent_channels,
            scaling_factor=vae.scaling_factor,
            downscale=2 ** (len(vae.block_out_channels) - 1),
            text_width=text.hidden_size,
            tokens=min(tokenizer.model_max_length, text.max_position_embeddings),
            padding=tokenizer.pad_token_id,
            tokenizer=_as_slow(tokenizer.backend_tokenizer).to_str(),
            sizes={
                "vae": " ".join(f"{name}={getattr(vae, name)}" for name in of_vae),
                "text_encoder": " ".join(of_text),
            },
            shapes={part: jax.eval_shape(functools.partial(self.init, part), key) for part in ENCODERS},
        )

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.spec.tokenizer)

    def init(self, part: str, key: Array) -> dict[str, Any]:
        """Freshly drawn float32 parameters of "vae" or "text_encoder"."""
        if part == "vae":
            side = 2 ** (len(self.vae.block_out_channels) - 1)
            pixels = jnp.zeros((1, 3, side, side))
            return dict(jax.jit(self.vae.init)(key, pixels)["params"])
        ids = jnp.zeros((1, 1), jnp.int32)
        return dict(jax.jit(self.text_encoder.init)(key, ids, ids, ids)["params"])

    def tokenize(self, prompt: str) -> tuple[Int[np.ndarray, "1 l"], str]:
        """Token ids, padded to the length that the text encoder was trained with, and the text cut off."""
        length, found = self.spec.tokens, self.tokenizer.encode(prompt)
        kept, cut = found.ids, ""
        if len(kept) > length:  # both ends are a token of their own
            kept, cut = [*kept[: length - 1], kept[-1]], prompt[found.offsets[length - 1][0] :]
        return np.asarray([kept + [self.spec.padding] * (length - len(kept))], np.int32), cut

    def encode_text(self, params: Params, ids: Int[Array, "b l"] | Int[np.ndarray, "b l"]) -> TextEmbeddings:
        """Last hidden states, after the final LayerNorm; padding is attended to, as SD was trained."""
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        out = self.text_encoder.apply({"params": params["text_encoder"]}, ids, jnp.ones_like(ids), positions)
        return out.last_hidden_state  # pyright: ignore[reportAttributeAccessIssue]

    def encode_images(self, params: Params, video: Video, noise: Latents | None = None) -> Latents:
        """RGB in [-1, 1] -> latents times the scaling factor.

        With standard normal `noise` of their shape a draw from the VAE's posterior, else its mean.
        """
        mean, std = self.posterior(params, video)
        return (mean if noise is None else mean + std * noise) * self.spec.scaling_factor

    def posterior(self, params: Params, video: Video) -> tuple[Latents, Latents]:
        """RGB in [-1, 1] -> mean and standard deviation of the latents, *not* times the scaling factor."""
        images = rearrange(video, "b f h w c -> (b f) c h w")
        posterior = self._vae(params, images, self.vae.encode).latent_dist
        mean, std = (
            rearrange(t, "(b f) h w c -> b f h w c", b=len(video)) for t in (posterior.mean, posterior.std)
        )
        return mean, std

    def decode_latents(self, params: Params, latents: Latents, chunk: int) -> Video:
        """Latents times the scaling factor -> RGB, about in [-1, 1], `chunk` frames at a time."""

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


def _as_slow(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The Rust form of CLIP's tokenizer, with the ids that PyTorch pipelines' own `CLIPTokenizer` gives.

    That one parts ideographs, and drops characters that have no width.
    """
    cleans = tokenizers.normalizers.BertNormalizer(strip_accents=False, lowercase=False)
    tokenizer.normalizer = tokenizers.normalizers.Sequence([cleans, tokenizer.normalizer])
    return tokenizer
