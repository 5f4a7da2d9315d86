"""Styles of a config: LoRA and textual inversions, merged into the weights when they are loaded."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax.convert.lora import Lora, MatchedLora, lora_table, merge_lora, open_lora
from fyp_jax.convert.style_specs import embedding_spec, lora_spec
from fyp_jax.convert.textual_inversion import Embedding, read_embedding
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import TOKEN_TABLE, LatentEncoders
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.trees import list_names

log = logging.getLogger(__name__)


class Styles(NamedTuple):
    """Opened files of a config's styles."""

    loras: list[Lora]
    embeddings: list[Embedding]

    def encoders(self, encoders: LatentEncoders) -> LatentEncoders:
        """The encoders with the tokens of the embeddings.

        Raises UserError where an embedding's width is not the text encoder's, or a token exists already.
        """
        tokens: dict[str, int] = {}
        for embedding in self.embeddings:
            width, needed = embedding.vectors.shape[1], encoders.spec.text_width
            if width != needed:
                raise UserError(
                    f"{embedding.file}: its vectors have {width} numbers, and the text encoder's {needed} "
                    "(Stable Diffusion 1.x has 768, 2.x 1024): it is for another model"
                )
            if embedding.token in tokens:
                raise UserError(
                    f"{embedding.file}: another embedding has the token {embedding.token!r} already; choose "
                    "another one: embedding=FILE:TOKEN"
                )
            tokens[embedding.token] = len(embedding.vectors)
        return encoders.add_tokens(tokens) if tokens else encoders

    def merge(
        self, params: dict[str, Any], encoders: LatentEncoders
    ) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
        """The parameters with the styles, and what the record of a clip says about these.

        `encoders` are those of `self.encoders`. Raises UserError where a LoRA does not fit the model.
        """
        matched = []
        for lora in self.loras:
            params, one = merge_lora(params, lora)
            matched.append(one)
        if self.embeddings:
            params = {**params, "text_encoder": self._grow(params["text_encoder"], encoders)}
        record = {
            "lora": [one._asdict() for one in matched],
            "embedding": [embedding.record() for embedding in self.embeddings],
        }
        return params, {name: entries for name, entries in record.items() if entries}

    def _grow(self, text_encoder: Mapping[str, Any], encoders: LatentEncoders) -> dict[str, Any]:
        """The text encoder with the embeddings in its table of tokens."""
        flat: dict[str, Any] = dict(flatten_dict(text_encoder, sep="/"))
        table = np.asarray(flat[TOKEN_TABLE], np.float32)
        shapes: dict[str, Any] = flatten_dict(encoders.spec.shapes["text_encoder"], sep="/")
        rows = shapes[TOKEN_TABLE].shape[0]
        table = np.concatenate([table, np.zeros((rows - len(table), table.shape[1]), np.float32)])
        for embedding in self.embeddings:
            first = encoders.token_id(embedding.token)
            table[first : first + len(embedding.vectors)] = embedding.vectors
        return unflatten_dict({**flat, TOKEN_TABLE: table}, sep="/")


def open_styles(config: SampleConfig) -> Styles:
    """Open the LoRA and embeddings of a config. Raises UserError where one is missing, damaged or of another
    kind."""
    return Styles(
        [open_lora(lora_spec(text)) for text in config.lora],
        [read_embedding(embedding_spec(text)) for text in config.embedding],
    )


def style_lines(weights: Mapping[str, Any]) -> list[str]:
    """A table of the LoRA and a line for each embedding that were added to weights, from the record that
    `Styles.merge` made."""
    matched = [MatchedLora(**entry) for entry in weights.get("lora", [])]
    embeddings = [
        f"embedding {Path(entry['file']).name}: token {entry['token']}, {entry['vectors']} vectors"
        for entry in weights.get("embedding", [])
    ]
    return [*(lora_table(matched) if matched else []), *embeddings]


def warn_of_unused_tokens(encoders: LatentEncoders, texts: Iterable[str]) -> None:
    """Warn of added tokens that are in none of the texts."""
    if unused := unused_tokens(encoders, texts):
        log.warning("no prompt has the token of an embedding: %s", list_names(unused))


def unused_tokens(encoders: LatentEncoders, texts: Iterable[str]) -> list[str]:
    """The added tokens that are in none of the texts."""
    found = {index for text in texts for index in encoders.tokenizer.encode(text).ids}
    return [token for token in encoders.added_tokens if encoders.token_id(token) not in found]
