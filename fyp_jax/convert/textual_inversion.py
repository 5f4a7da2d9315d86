"""Textual inversions (Gal et al. 2022): the embedding vectors that a file has for a new token.

diffusers          {"<token>": tensor}, as safetensors or .bin
AUTOMATIC1111      {"string_to_param": {"*": tensor}, "name": "token"} as .pt; {"emb_params": tensor} as
                   safetensors, which is named after its file

A tensor is [width], or [vectors, width] for a token of several vectors.
"""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.style_files import EMBEDDING_NAMES, find_style_file
from fyp_jax.convert.style_specs import EmbeddingSpec
from fyp_jax.convert.torch_files import PICKLE_SUFFIXES
from fyp_jax.convert.torch_load import read_pickle
from fyp_jax.trees import list_names

NAMELESS = ("emb_params", "*")
"""Keys that are no token."""
MAX_VECTORS = 75
"""More vectors than this fit in no prompt, whose first and last of 77 tokens mark start and end."""


class Embedding(NamedTuple):
    """The vectors of one token."""

    file: str
    token: str
    vectors: Float32[np.ndarray, "n d"]

    def record(self) -> dict[str, Any]:
        """What the record of a clip says about it."""
        crc = zlib.crc32(np.ascontiguousarray(self.vectors).view(np.uint8).data)
        return {"file": self.file, "token": self.token, "vectors": len(self.vectors), "crc32": crc}


def read_embedding(spec: EmbeddingSpec) -> Embedding:
    """Read the file of a textual inversion.

    Raises UserError where it is missing or damaged, where it holds something else than vectors for one token,
    or where neither the file nor `spec` names the token.
    """
    file = find_style_file(spec.name, EMBEDDING_NAMES)
    if file.suffix == ".safetensors":
        content: Any = open_safetensors(file)[0]
    elif file.suffix in PICKLE_SUFFIXES:
        content = read_pickle(file)
    else:
        raise WeightsError(f"{file}: not an embedding file (.safetensors {' '.join(PICKLE_SUFFIXES)})")
    named, array = _token_and_array(content, file)
    token = spec.token or named
    if token is None:
        raise WeightsError(f"{file}: does not say its token; write embedding={spec.name}:TOKEN")
    if not token.strip() or token != token.strip() or not token.isprintable():
        raise WeightsError(f"{file}: {token!r} is no token; write embedding={spec.name}:TOKEN")
    if len(array.shape) not in (1, 2) or array.size == 0 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise WeightsError(f"{file}: an embedding is [width] or [vectors, width], not {_spec(array)}")
    vectors = array.astype(np.float32, str(file)).read().reshape(-1, array.shape[-1])
    if len(vectors) > MAX_VECTORS:
        raise WeightsError(f"{file}: {len(vectors)} vectors fit in no prompt, which has {MAX_VECTORS} tokens")
    if not np.isfinite(vectors).all():
        raise WeightsError(f"{file}: holds numbers that are not finite")
    return Embedding(str(file.absolute()), token, vectors)


def _token_and_array(content: Any, file: Path) -> tuple[str | None, LazyArray]:
    """The token that a file names, or None, and its vectors."""
    if isinstance(content, LazyArray):
        return None, content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise WeightsError(f"{file}: is no textual inversion")
    if {"clip_l", "clip_g"} & content.keys():
        raise WeightsError(f"{file}: is a textual inversion of Stable Diffusion XL; 1.x and 2.x are read")
    if lora := [key for key in content if "lora_" in key]:
        raise WeightsError(f"{file}: is a LoRA, which is given as lora=FILE ({lora[0]})")
    name: Any = None
    if "string_to_param" in content:
        name, content = content.get("name"), content["string_to_param"]
        name = file.stem if name is None else name
    if not isinstance(content, dict) or len(content) != 1:
        keys = list_names(sorted(map(str, content))) if isinstance(content, dict) else type(content).__name__
        raise WeightsError(f"{file}: is no textual inversion, which has vectors for one token (has {keys})")
    ((key, array),) = content.items()
    name = name if name is not None else file.stem if key in NAMELESS else key
    if not isinstance(array, LazyArray) or not isinstance(name, str):
        raise WeightsError(f"{file}: is no textual inversion, which has vectors for one token (has {key!r})")
    return name, array


def _spec(array: LazyArray) -> str:
    return f"{array.dtype} of the shape {list(array.shape)}"
