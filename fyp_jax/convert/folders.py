"""Finds the folder of a model by its name: a path, a bundled model, or a repository of the Hub."""

import os
from importlib import resources
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fyp_jax.convert.torch_files import WeightsError, has_weights, weight_formats
from fyp_jax.errors import UserError, reason

CONFIGS = (
    *("config.json", "*/config.json", "model_index.json", "scheduler/scheduler_config.json", "tokenizer/*"),
    *("vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"),  # CLIP's
)
PRECISIONS = ("fp16", "bf16")
"""Variants that are looked for in a Hub repository that has no weights without a variant."""


def find_folder(name: str, parts: tuple[str, ...], variant: str | None = None) -> Path:
    """The path of a folder, of a bundled model, or of the local copy of a Hub repository.

    Of a Hub repository, the configs and the weights of `parts` are downloaded, in the `variant` where a part
    has it. A part is a folder in the repository; "." is the repository's top folder. Raises UserError where
    there is nothing of this name.
    """
    if os.path.isdir(name):
        return Path(name)
    bundled = Path(str(resources.files("fyp_jax").joinpath("assets", "models")))
    if (bundled / name).is_dir() and Path(name).name == name:
        return bundled / name
    names = ", ".join(sorted(folder.name for folder in bundled.iterdir() if folder.is_dir()))
    not_found = f"{name}: no such folder, and no bundled model of this name (there are: {names})"
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(not_found)
    return _download(name, parts, variant, not_found)


def find_tokenizer(name: str) -> Path:
    """The folder of a CLIP tokenizer: `name`, or `tokenizer` in it, or a Hub id. Raises UserError."""
    folder = find_folder(name, ())
    inner = folder / "tokenizer"
    return inner if inner.is_dir() and not (folder / "vocab.json").exists() else folder


def _download(hub_id: str, parts: tuple[str, ...], variant: str | None, not_found: str) -> Path:
    """The local copy of a Hub repository with the weights of `parts`, from the Hub or its local cache."""
    usual = weight_formats()
    others = weight_formats(variant) if variant else [x for name in PRECISIONS for x in weight_formats(name)]
    missing = parts
    try:
        # One format at a time, because repositories hold the same weights in several.
        for weight_format in (*others, *usual) if variant else (*usual, *others):
            names = weight_format.files + weight_format.shards
            weights = [str(PurePosixPath(part, name)) for part in missing for name in names]
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=[*CONFIGS, *weights]))
            missing = tuple(part for part in missing if not has_weights(folder / part, weight_format.variant))
            if not missing:
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{not_found}; as a Hub id it cannot be downloaded ({type(error).__name__}: {reason(error)}); "
            f"if this machine is offline, run `hf download {hub_id}` on another one and give the folder"
        ) from error
    raise WeightsError(
        f"{hub_id}: no weights for {', '.join(missing)} in the Hub repository (offline: in its local cache)"
    )
