"""Checksums of the frozen encoders: whether latents and text embeddings of one run are those of another."""

import re
import zlib
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.types import Params

VAE_ENCODER = re.compile(r"(encoder|quant_conv)/")
"""Parameters of the VAE on which latents depend."""


def encoder_checksums(encoders: LatentEncoders, params: Params) -> dict[str, str]:
    """CRC-32 of all on which latents and text embeddings depend, but the dtype in which they are computed.

    `params` has the weights of `vae` and `text_encoder` as they were read. The VAE's decoder does not count:
    some published VAEs differ from each other in that alone.
    """
    spec = encoders.spec
    vae = {path: x for path, x in _flat(params["vae"]).items() if VAE_ENCODER.match(path)}
    texts = f"{spec.tokens} {spec.padding} {spec.tokenizer}"
    return {
        "vae": _crc(_without_dtype(spec.sizes["vae"]), vae),
        "text_encoder": _crc(_without_dtype(spec.sizes["text_encoder"]), _flat(params["text_encoder"])),
        "tokenizer": f"{zlib.crc32(texts.encode()):08x}",
    }


def _flat(params: Params) -> dict[str, Any]:
    return flatten_dict(dict(params), sep="/")


def _without_dtype(sizes: str) -> str:
    return re.sub(r" ?dtype=\w+", "", sizes)


def _crc(sizes: str, arrays: dict[str, Any]) -> str:
    crc = zlib.crc32(sizes.encode())
    for path in sorted(arrays):
        array = np.ascontiguousarray(np.asarray(arrays[path], np.float32))
        crc = zlib.crc32(array.data, zlib.crc32(f"{path} {array.shape}".encode(), crc))
    return f"{crc:08x}"
