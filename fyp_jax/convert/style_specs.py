"""What a user writes for a style: FILE or FILE:SCALE for a LoRA, FILE or FILE:TOKEN for an embedding.

A file is a path or a Hub id. The last colon separates the rest, unless it belongs to the path: that of
`C:\\styles\\ink.safetensors` does.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fyp_jax.errors import UserError

Styles = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None
"""One style, several, or none, as the functions for Python take them."""


class LoraSpec(NamedTuple):
    """A LoRA and how much of it is added: scale 1 is what it was trained for."""

    name: str
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{_absolute(self.name)}:{self.scale:g}"


class EmbeddingSpec(NamedTuple):
    """A textual inversion, and the token that prompts name it by; None: the one that its file says."""

    name: str
    token: str | None = None

    def __str__(self) -> str:
        return _absolute(self.name) + ("" if self.token is None else f":{self.token}")


def lora_spec(text: str) -> LoraSpec:
    """Read FILE or FILE:SCALE. Raises UserError for a scale that is not a finite number."""
    name, tail = _split(text, "lora")
    if tail is None:
        return LoraSpec(name)
    try:
        scale = float(tail)
    except ValueError as error:
        raise UserError(
            f"lora={text}: there is no file of this name, and {tail!r} after the colon is no scale; "
            "write lora=FILE:0.7"
        ) from error
    if not math.isfinite(scale):
        raise UserError(f"lora={text}: the scale {scale} is not a finite number")
    return LoraSpec(name, scale)


def embedding_spec(text: str) -> EmbeddingSpec:
    """Read FILE or FILE:TOKEN. Raises UserError where one of the two is empty."""
    return EmbeddingSpec(*_split(text, "embedding"))


def style_list(styles: Styles) -> list[str]:
    """One style, several or none as a list of texts, which is what a config holds."""
    if styles is None:
        return []
    if isinstance(styles, (str, os.PathLike)):
        styles = [styles]
    return [os.fspath(style) for style in styles]


def _split(text: str, field: str) -> tuple[str, str | None]:
    """The name, and what is after its last colon; None where that colon belongs to the path."""
    name, colon, tail = text.rpartition(":")
    if not colon or os.path.exists(text) or "/" in tail or "\\" in tail:
        name, tail = text, None
    if not name.strip() or tail == "":
        raise UserError(f"{field}={text}: name a file, a folder or a Hub id")
    if "://" in name:
        raise UserError(f"{field}={text}: addresses are not read; download the file, and give its path")
    return name, tail


def _absolute(name: str) -> str:
    return str(Path(name).absolute()) if os.path.exists(name) else name
