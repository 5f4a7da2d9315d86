"""How a config field says what it means: `option`, for every config dataclass of the house."""

from dataclasses import field
from typing import Any


def config_field(default: Any, help_text: str) -> Any:
    """A dataclass field with its meaning, which `config.describe` shows."""
    return field(default=default, metadata={"help": help_text})
