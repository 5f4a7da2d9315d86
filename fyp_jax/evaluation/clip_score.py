"""The whole of CLIP, another library's model, which judges clips."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTokenizer
from transformers.models.clip.modeling_flax_clip import FlaxCLIPModule

from fyp_jax.errors import UserError
from fyp_jax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class ClipModel:
    """CLIP (Radford et al. 2021), text and vision, without parameters: a judge of clips, never trained."""

    module: FlaxCLIPModule
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessor

    @classmethod
    def build(cls, config: Mapping[str, Any], folder: Path) -> "ClipModel":
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
