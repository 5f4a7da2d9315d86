"""Finds the folder of a model by its name: a path, a bundled model, or a repository of the Hub."""

import os
from importlib import resources
from pathlib import Path, PurePosixPath

from fyp_jax.convert.hub import download_files, parse_hub_name
from fyp_jax.convert.safetensors_files import MANIFEST
from fyp_jax.convert.torch_files import WeightsError, has_weights, weight_formats
from fyp_jax.errors import UserError

SAMPLING_DEFAULTS = "sampling_params.json"
"""A file of a pipeline folder: the SamplingParams that suit its model, where they are not the published
ones."""
CONFIGS = (
    *("config.json", "*/config.json", "model_index.json", "scheduler/scheduler_config.json", "tokenizer/*"),
    *("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"),  # CLIP's
    *(SAMPLING_DEFAULTS, MANIFEST),
)
PRECISIONS = ("fp16", "bf16")
"""Variants that are looked for in a Hub repository that has no weights without a variant."""


def find_folder(
    name: str, parts: tuple[str, ...], variant: str | None = None, optional: tuple[str, ...] = ()
) -> Path:
    """The path of a folder, of a bundled model, or of the local copy of a Hub repository (`hub`).

    Of a Hub repository, the configs and the weights of `parts` are downloaded, in the `variant` where a part
    has it, and files that match the patterns `optional`. A part is a folder in the repository; "." is the
    repository's top folder. Raises UserError where there is nothing of this name.
    """
    if os.path.isdir(name):
        return Path(name)
    bundled = Path(str(resources.files("fyp_jax").joinpath("assets", "models")))
    if (bundled / name).is_dir() and Path(name).name == name:
        return bundled / name
    names = ", ".join(sorted(folder.name for folder in bundled.iterdir() if folder.is_dir()))
    not_found = f"{name}: no such folder, and no bundled model of this name (there are: {names})"
    hub = parse_hub_name(name)
    if hub is None or hub.file is not None:
        raise UserError(not_found)
    return _download(name, parts, variant, optional, not_found)


def find_tokenizer(name: str) -> Path:
    """The folder of a CLIP tokenizer: `name`, or `tokenizer` in it, or a Hub id. Raises UserError."""
    folder = find_folder(name, ())
    inner = folder / "tokenizer"
    return inner if inner.is_dir() and not (folder / "vocab.json").exists() else folder


def _download(
    name: str, parts: tuple[str, ...], variant: str | None, optional: tuple[str, ...], not_found: str
) -> Path:
    """The local copy of a Hub repository with the weights of `parts`, from the Hub or its local cache."""
    usual = weight_formats()
    others = (
        weight_formats(variant)
        if variant
        else [x for precision in PRECISIONS for x in weight_formats(precision)]
    )
    missing = parts
    # One format at a time, because repositories hold the same weights in several.
    for weight_format in (*others, *usual) if variant else (*usual, *others):
        names = weight_format.files + weight_format.shards
        weights = [str(PurePosixPath(part, file)) for part in missing for file in names]
        folder = download_files(name, [*CONFIGS, *optional, *weights], not_found)
        missing = tuple(part for part in missing if not has_weights(folder / part, weight_format.variant))
        if not missing:
            return folder
    raise WeightsError(
        f"{name}: no weights for {', '.join(missing)} in the Hub repository (offline: in its local cache)"
    )
