"""The models of other libraries: VAE, CLIP text encoder and tokenizer of Stable Diffusion, frozen as a rule;
and the whole of CLIP, which judges.

The only module that imports diffusers and transformers, whose Flax models these are. What they do with axes
and units ends here: outside, clips are b f h w c, pixels are in [-1, 1] and latents have unit variance.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from diffusers.models.vae_flax import FlaxAutoencoderKL
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule, FlaxCLIPTextModule

from fyp_jax.errors import UserError
from fyp_jax.types import Latents, Params, Text

# Says at every call that diffusers 0.40 drops Flax; setup.py pins the last version that has it.
logging.getLogger("diffusers.models.vae_flax").setLevel(logging.ERROR)

TEXT_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps"),
)
"""Fields of a text encoder's config that its last hidden states depend on."""

Video = Float[Array, "b f H W 3"]

ENCODERS = ("vae", "text_encoder")
"""Names of the two models wherever parameters of several models are together."""


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenModels:
    """Modules without their parameters, which each method takes as {"vae": ..., "text_encoder": ...}."""

    vae: FlaxAutoencoderKL
    text_encoder: FlaxCLIPTextModule
    tokenizer: CLIPTokenizer

    @classmethod
    def build(
        cls,
        vae_config: Mapping[str, Any],
        text_config: Mapping[str, Any],
        tokenizer_folder: Path,
        dtype: DTypeLike = jnp.float32,
    ) -> "FrozenModels":
        """From the `config.json` of a VAE and of a text encoder, and a folder with a CLIP vocabulary.

        Both networks compute in `dtype`, whatever that of their parameters.
        """
        known = {field.name for field in dataclasses.fields(FlaxAutoencoderKL)} - {"parent", "name", "dtype"}
        dtype = jnp.dtype(dtype)
        vae = FlaxAutoencoderKL(
            **{key: value for key, value in vae_config.items() if key in known}, dtype=dtype
        )
        text_encoder = FlaxCLIPTextModule(CLIPTextConfig(**text_config), dtype=dtype)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{tokenizer_folder}: no CLIP tokenizer that opens ({error})") from error
        return cls(vae, text_encoder, tokenizer)

    @property
    def downscale(self) -> int:
        """Pixels for one latent, in height and in width."""
        return 2 ** (len(self.vae.block_out_channels) - 1)

    @property
    def text_width(self) -> int:
        return self.text_encoder.config.hidden_size

    def sizes(self) -> dict[str, str]:
        """All that a compiled program depends on, by model."""
        unused = ("parent", "name", "sample_size")
        of_vae = [field.name for field in dataclasses.fields(self.vae) if field.name not in unused]
        vae = [f"{name}={getattr(self.vae, name)}" for name in of_vae]
        text = [f"{name}={getattr(self.text_encoder.config, name)}" for name in TEXT_SIZES]
        text.append(f"dtype={self.text_encoder.dtype}")
        return {"vae": " ".join(vae), "text_encoder": " ".join(text)}

    def shapes(self) -> dict[str, Any]:
        """Names and shapes of the parameters, without computing them."""
        key = jax.random.key(0)
        return {part: jax.eval_shape(functools.partial(self.init, part), key) for part in ENCODERS}

    def init(self, part: str, key: Array) -> dict[str, Any]:
        """Freshly drawn float32 parameters of "vae" or "text_encoder"."""
        if part == "vae":
            pixels = jnp.zeros((1, 3, self.downscale, self.downscale))
            return dict(jax.jit(self.vae.init)(key, pixels)["params"])
        ids = jnp.zeros((1, 1), jnp.int32)
        return dict(jax.jit(self.text_encoder.init)(key, ids, ids, ids)["params"])

    def tokenize(self, prompt: str) -> tuple[Int[np.ndarray, "1 l"], str]:
        """Token ids, padded to the length that the text encoder was trained with, and the text cut off."""
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        kept = self.tokenizer.encode(prompt, padding="max_length", max_length=length, truncation=True)
        whole = self.tokenizer.encode(prompt, verbose=False)
        # Both end with a token of their own.
        cut = self.tokenizer.decode(whole[length - 1 : -1]) if len(whole) > length else ""
        return np.asarray([kept], np.int32), cut

    def encode_text(self, params: Params, ids: Int[Array, "b l"] | Int[np.ndarray, "b l"]) -> Text:
        """Last hidden states, after the final LayerNorm; padding is attended to, as SD was trained."""
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        out = self.text_encoder.apply({"params": params["text_encoder"]}, ids, jnp.ones_like(ids), positions)
        return out.last_hidden_state  # pyright: ignore[reportAttributeAccessIssue]

    def encode_images(self, params: Params, video: Video, noise: Latents | None = None) -> Latents:
        """RGB in [-1, 1] -> latents times the scaling factor.

        With standard normal `noise` of their shape a draw from the VAE's posterior, else its mean.
        """
        mean, std = self.posterior(params, video)
        return (mean if noise is None else mean + std * noise) * self.vae.scaling_factor

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

        frames = rearrange(latents / self.vae.scaling_factor, "b f h w c -> (b f) h w c")
        if chunk >= len(frames):
            images = decode(frames)
        else:
            images = jax.lax.map(lambda latent: decode(latent[None])[0], frames, batch_size=chunk)
        return rearrange(images, "(b f) c h w -> b f h w c", b=len(latents))

    def _vae(self, params: Params, x: Array, method: Any) -> Any:
        return self.vae.apply({"params": params["vae"]}, x, method=method)


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """CLIP (Radford et al. 2021), text and vision, without parameters: a judge of clips, never trained."""

    module: FlaxCLIPModule
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessor

    @classmethod
    def build(cls, config: Mapping[str, Any], folder: Path) -> "Clip":
        """From CLIP's `config.json`, and its folder: vocabulary, and how pictures are prepared.

        Raises UserError where the folder has no such files, or the configuration is not CLIP's.
        """
        try:
            sizes = CLIPConfig(**config)
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            processor = CLIPImageProcessor.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: not a CLIP model that opens ({error})") from error
        return cls(FlaxCLIPModule(sizes), tokenizer, processor)

    def shapes(self) -> dict[str, Any]:
        """Names and shapes of the parameters, without computing them."""
        side = self.module.config.vision_config.image_size
        ids, pixels = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, side, side, 3))
        init = functools.partial(self.module.init, jax.random.key(0))
        return dict(jax.eval_shape(init, ids, pixels, ids, ids)["params"])

    def embed(
        self, params: Params, prompt: str, video: UInt8[np.ndarray, "f h w 3"]
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "f d"]]:
        """Embeddings of length 1 of a text, which is cut where it is too long, and of each frame."""
        length = self.module.config.text_config.max_position_embeddings
        text = self.tokenizer(prompt, max_length=length, truncation=True, return_tensors="np")
        pixels = self.processor(list(video), return_tensors="np", input_data_format="channels_last")
        images = jnp.asarray(pixels["pixel_values"]).transpose(0, 2, 3, 1)
        ids, mask = jnp.asarray(text["input_ids"]), jnp.asarray(text["attention_mask"])
        of_text, of_frames = self._embed(params, ids, mask, images)
        return np.asarray(of_text[0]), np.asarray(of_frames)

    @functools.partial(jax.jit, static_argnames=("self",))
    def _embed(self, params: Params, ids: Array, mask: Array, images: Array) -> tuple[Array, Array]:
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        out: Any = self.module.apply({"params": params}, ids, images, mask, positions)
        return out.text_embeds, out.image_embeds
