"""Typed configuration: dataclasses, filled from a YAML file and from `a.b=c` on the command line.

An unknown key or a value of another type raises UserError. Each field carries its meaning (`config_field`),
and `--help` lists all fields (`help_lines`).
"""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fyp_jax.errors import UserError, reason, wrap_write_errors

Config = TypeVar("Config")

PACKAGE = Path(__file__).parent
CONFIG_ROOTS = (PACKAGE / "configs", PACKAGE.parent / "configs")
"""Where the configs of this project are: in an installed package, and in a checkout of the repository."""

TEXT, TEXTS = (str, str | None), (list[str],)
"""Types of the fields that hold a text, and of those that hold several."""


def config_field(default: Any, help_text: str) -> Any:
    """A dataclass field whose meaning `help_lines` shows."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def find_config(name: str | os.PathLike[str]) -> Path:
    """The config file at this path, or else the one of this name that comes with the project.

    `mini/sample.yaml` and `configs/mini/sample.yaml` are found in any folder. Raises UserError, with the
    names of the project's configs, where there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    bundled = {
        str(file.relative_to(root)): file for root in CONFIG_ROOTS for file in sorted(root.glob("*/*.yaml"))
    }
    if (file := bundled.get(str(name).removeprefix("configs/"))) is None:
        raise UserError(f"{name}: no such config file; the project has {', '.join(bundled)}")
    return file


def load_config(kind: type[Config], file: str | os.PathLike[str], overrides: Sequence[str]) -> Config:
    """A config of a dataclass `kind`: its defaults, then the YAML file, then each `a.b=c` in turn.

    `${...}` is text as any other: a config that read the environment would carry secrets into what is
    written.
    `find_config` says where a file is looked for. Raises UserError that names the file or the override: not
    YAML, an unknown key, a value of another type.
    """
    config, file = OmegaConf.structured(kind), find_config(file)
    try:
        config = OmegaConf.merge(config, _as_lists(kind, _without_interpolation(OmegaConf.load(file))))
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: {_reason(kind, error)}") from error
    return _overridden(kind, config, overrides, str(file))


def override_config(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of a config with each `a.b=c` in turn. Raises UserError as `load_config` does."""
    kind = type(config)
    merged = OmegaConf.merge(OmegaConf.structured(kind), _literal(dataclasses.asdict(config)))  # pyright: ignore
    return _overridden(kind, merged, overrides, kind.__name__)


def _overridden(kind: type[Config], config: Any, overrides: Sequence[str], name: str) -> Config:
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
        raise UserError(f"{name}: {_reason(kind, error)}") from error


def save_config(config: Any, file: Path) -> None:
    """Write a config as YAML that `load_config` reads back equal. Raises UserError where it cannot be
    written."""
    plain = _literal(dataclasses.asdict(config))
    with wrap_write_errors(file):
        file.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def help_lines(kind: type, prefix: str = "", defaults: Any = None) -> Iterator[str]:
    """A line of help for each field: key, default (or the value that `defaults` has), meaning."""
    for item in dataclasses.fields(kind):
        key = prefix + item.name
        default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # pyright: ignore
        default = default if defaults is None else getattr(defaults, item.name)
        if dataclasses.is_dataclass(item.type) and isinstance(item.type, type):
            yield from help_lines(item.type, key + ".", default)
            continue
        yield f"  {key + '=' + _plain(default):28} {item.metadata['help']}"


def make_parser(kind: type, description: str | None, default: str | None = None) -> argparse.ArgumentParser:
    """A parser of `--config FILE a.b=c ...` whose help lists every field of `kind`.

    The help shows each field's value in the config `default`, or else the field's own default.
    """
    values = "defaults" if default is None else f"values in {default}"
    lines = help_lines(kind, defaults=None if default is None else load_config(kind, default, []))
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"config fields, with their {values}:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = "YAML file" + ("" if default is None else f" (default: {default})")
    parser.add_argument("--config", default=default, metavar="FILE", help=which)
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="the value of a config field")
    return parser


def config_lines(config: Any, prefix: str = "") -> Iterator[str]:
    """A line `key=value` for each field of a config."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from config_lines(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}={_plain(value)}"


def _parse(kind: type, override: str) -> DictConfig:
    """`a.b=c` as a config. The value of a text field is taken as it stands, and not read as YAML. So is that
    of a list of texts, as a list of one, unless it is in brackets."""
    key, _, value = override.partition("=")
    text, texts = _is_text(kind, key), _is_text(kind, key, TEXTS) and not value.startswith("[")
    parsed = OmegaConf.from_dotlist([f"{key}=null" if text or texts else override])
    parsed = _without_interpolation(parsed)
    if value != "null" and (text or texts):
        OmegaConf.update(parsed, key, _literal(value if text else [value]))
    return _as_lists(kind, parsed)


def _as_lists(kind: type, parsed: Any, prefix: str = "") -> Any:
    """A config that was read from YAML; a single text becomes a list where the field is a list of texts.

    Raises ValueError where such a list holds something else, as [a: b] does.
    """
    for key, value in parsed.items_ex(resolve=False) if isinstance(parsed, DictConfig) else ():
        if isinstance(value, DictConfig):
            _as_lists(kind, value, f"{prefix}{key}.")
        elif _is_text(kind, f"{prefix}{key}", TEXTS):
            if isinstance(value, str):
                parsed[key] = [value]
            for item in value if isinstance(value, ListConfig) else ():
                if isinstance(item, (DictConfig, ListConfig)):
                    raise ValueError(f"{prefix}{key}: {item} is not a text; put it in quotes")
    return parsed


def _is_text(kind: type, key: str, texts: tuple[Any, ...] = TEXT) -> bool:
    name, _, rest = key.partition(".")
    types = {item.name: item.type for item in dataclasses.fields(kind)}
    inner = types.get(name)
    if rest:
        return isinstance(inner, type) and dataclasses.is_dataclass(inner) and _is_text(inner, rest, texts)
    return inner in texts


def _without_interpolation(config: Any) -> Any:
    """The config with every `${...}` escaped that is not escaped yet."""
    return OmegaConf.create(_escape(OmegaConf.to_container(config, resolve=False), r"(?<!\\)\$\{"))


def _literal(value: Any) -> Any:
    """The value with every `${...}` escaped, so that OmegaConf does not interpolate it."""
    return _escape(value, r"\$\{")


def _escape(value: Any, pattern: str) -> Any:
    """The value, or the dict or list, with a backslash before each `${` that the pattern finds in a text."""
    if isinstance(value, str):
        return re.sub(pattern, r"\\${", value)
    if isinstance(value, dict):
        return {key: _escape(item, pattern) for key, item in value.items()}
    return [_escape(item, pattern) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _keys(kind: type) -> list[str]:
    return [line.split("=")[0].strip() for line in help_lines(kind)]


def _reason(kind: type, error: Exception) -> str:
    key = getattr(error, "full_key", None)
    if key and key not in _keys(kind) and not any(known.startswith(f"{key}.") for known in _keys(kind)):
        by_last_part = [known for known in _keys(kind) if known.rpartition(".")[2] == key]
        near = by_last_part or difflib.get_close_matches(key, _keys(kind), n=1)
        return f"unknown key {key}" + (f"; did you mean {' or '.join(near)}?" if near else "")
    return f"{key}: {reason(error)}" if key else reason(error)
