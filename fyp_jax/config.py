"""Typed configuration: dataclasses, filled from a YAML file and `a.b=c`; unknown keys and wrong types stop.

A field's meaning is its `help`; `describe` lists them all for `--help`.
"""

import argparse
import dataclasses
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fyp_jax.errors import UserError, reason
from fyp_jax.media.writing import wrap_write_errors
from fyp_jax.options import config_field
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pose.config import PoseConfig

Config = TypeVar("Config")

LATENT_GRID = 64
"""Height and width are multiples of this: 8 pixels a latent, halved three times in the UNet."""


@dataclass
class SampleConfig:
    """One run of sample.py."""

    pretrained: str = config_field("mini", "pipeline folder, Hub id, or a size of ours: mini, sd14")
    checkpoint: str | None = config_field(None, "Orbax checkpoint with UNet and pose encoder")
    random_init: bool = config_field(False, "draw weights, always the same; of `pretrained` take the sizes")
    pose: PoseConfig = field(default_factory=PoseConfig)
    prompt: list[str] = field(default_factory=list, metadata={"help": "one clip is made for each"})
    negative_prompt: str = config_field("", "what guidance leads away from")
    seed: int = config_field(0, "of the starting noise; the same for each prompt")
    height: int = config_field(512, f"pixels, a multiple of {LATENT_GRID}")
    width: int = config_field(512, f"pixels, a multiple of {LATENT_GRID}")
    steps: int = config_field(50, "DDIM steps")
    guidance: float = config_field(
        12.5, "how far the text leads away from the negative prompt; 1 is not at all"
    )
    pose_guidance: bool = config_field(
        False, "guidance leads to the pose as well: its negative half sees none"
    )
    noise_correlation: float = config_field(
        0.0, "share of the starting noise that all frames have in common, 0 to 1"
    )
    eta: float = config_field(0.0, "share of noise drawn anew at each step: 0 DDIM, 1 DDPM")
    dtype: str = config_field("float32", "of the UNet and the pose encoder: float32 or bfloat16")
    compiled: str | None = config_field(
        None, "programs, written by scripts/compile_tpu.py --save; null: compile"
    )
    decode_chunk_size: int = config_field(4, "frames that the VAE decodes at a time; fewer need less memory")
    fps: float = config_field(8.0, "frames a second of the clips written")
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    out: str = config_field("runs", "folder in which each run makes one of its own")

    def check(self) -> None:
        """Raise UserError for values that have the right type and make no clip."""
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise UserError("the prompt is empty: give --prompt TEXT, or prompt in the config")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < 1 or value % LATENT_GRID:
                near = max(LATENT_GRID, round(value / LATENT_GRID) * LATENT_GRID)
                raise UserError(f"{name}={value} is not a multiple of {LATENT_GRID}; {near} is the nearest")
        if self.mesh.data not in (1, 2) or self.mesh.fsdp != 1 or self.mesh.frame < 1:
            raise UserError(
                f"mesh.data={self.mesh.data} mesh.fsdp={self.mesh.fsdp} mesh.frame={self.mesh.frame}: "
                "sampling takes data for the two halves of guidance (1 or 2), frame for frames, and fsdp=1"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} is not float32 or bfloat16")
        if not math.isfinite(self.guidance):
            raise UserError(f"guidance={self.guidance} is not a finite number")
        for name in ("eta", "noise_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is not between 0 and 1")
        if not 0 < self.fps <= 50:
            raise UserError(f"fps={self.fps} is not between 0 and 50")
        for name in ("decode_chunk_size", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed} is not between 0 and {2**32 - 1}")
        if self.checkpoint is not None and self.random_init:
            raise UserError(f"checkpoint={self.checkpoint} and random_init=true: add random_init=false")


def load_config(kind: type[Config], file: str | os.PathLike[str], overrides: Sequence[str]) -> Config:
    """Defaults, then the YAML file, then `a.b=c` in order.

    Raises UserError with the file or override: not YAML, an unknown key, a value of another type.
    """
    config = OmegaConf.structured(kind)
    if not Path(file).is_file():
        raise UserError(f"{file}: no such config file")
    try:
        config = OmegaConf.merge(config, OmegaConf.load(Path(file)))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: {_reason(kind, error)}") from error
    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override!r} is not of the form a.b=c")
        try:
            config = OmegaConf.merge(config, _parse(kind, override))
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
            raise UserError(f"{override}: {_reason(kind, error)}") from error
    try:
        return OmegaConf.to_object(config)  # pyright: ignore[reportReturnType]
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: {_reason(kind, error)}") from error


def save_config(config: Any, file: Path) -> None:
    """Write a config so that `load_config` reads the same back. Raises UserError where the disk says no."""
    plain = _literal(dataclasses.asdict(config))
    with wrap_write_errors(file):
        file.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def help_lines(kind: type, prefix: str = "") -> Iterator[str]:
    """One line for each field: its key, its default and its meaning."""
    for item in dataclasses.fields(kind):
        key = prefix + item.name
        if dataclasses.is_dataclass(item.type) and isinstance(item.type, type):
            yield from help_lines(item.type, key + ".")
            continue
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # pyright: ignore
        yield f"  {key + '=' + _plain(default):28} {item.metadata['help']}"


def make_parser(kind: type, description: str | None, default: Path | None = None) -> argparse.ArgumentParser:
    """A parser for `--config FILE a.b=c ...` whose help lists every field of `kind`; `default` is a FILE."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="config fields, and what they are where the config file is silent:\n"
        + "\n".join(help_lines(kind)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = "YAML file" if default is None else f"YAML file (default: {'/'.join(default.parts[-3:])})"
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help=which)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="any config field")
    return parser


def config_lines(config: Any, prefix: str = "") -> Iterator[str]:
    """One line for each field of a config: its key and its value."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from config_lines(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}={_plain(value)}"


def _parse(kind: type, override: str) -> DictConfig:
    """`a.b=c` as a config; what is for a text field is taken as it stands, and not read as YAML."""
    key, _, value = override.partition("=")
    parsed = OmegaConf.from_dotlist([f"{key}=null" if _is_text(kind, key) else override])
    if _is_text(kind, key) and value != "null":
        OmegaConf.update(parsed, key, _literal(value))
    return parsed


def _is_text(kind: type, key: str) -> bool:
    name, _, rest = key.partition(".")
    types = {item.name: item.type for item in dataclasses.fields(kind)}
    inner = types.get(name)
    if rest:
        return isinstance(inner, type) and dataclasses.is_dataclass(inner) and _is_text(inner, rest)
    return inner in (str, str | None)


def _literal(value: Any) -> Any:
    """The same, with no `${...}` left that OmegaConf would look up."""
    if isinstance(value, str):
        return value.replace("${", r"\${")
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _keys(kind: type) -> list[str]:
    return [line.split("=")[0].strip() for line in help_lines(kind)]


def _reason(kind: type, error: Exception) -> str:
    key = getattr(error, "full_key", None)
    if key and key not in _keys(kind) and not any(known.startswith(f"{key}.") for known in _keys(kind)):
        near = difflib.get_close_matches(key, _keys(kind), n=1)
        return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "")
    return f"{key}: {reason(error)}" if key else reason(error)
