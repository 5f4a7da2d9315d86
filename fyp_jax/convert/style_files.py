"""Finds the file of a LoRA or of an embedding: a path, a folder with one such file, or a Hub id."""

import contextlib
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from fyp_jax.convert.torch_files import WEIGHT_SUFFIXES, WeightsError
from fyp_jax.errors import UserError, reason
from fyp_jax.trees import list_names

LORA_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
EMBEDDING_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
"""The names that diffusers gives to the file; the first that is there is read."""


def find_style_file(name: str, default_names: tuple[str, ...]) -> Path:
    """The file of a style.

    A folder, or a Hub repository OWNER/NAME, has a file of one of `default_names`, or one weight file alone;
    OWNER/NAME/FILE is a file of a Hub repository. Raises UserError where there is none, or more than one.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose(name, [file.name for file in path.iterdir() if file.is_file()], default_names)
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or "\\" in name or name.startswith((".", "~", "/")):
        raise UserError(f"{name}: no such file or folder")
    repository, file = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        return Path(_download(repository, file, default_names))
    except UserError:
        raise
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{name}: no such file or folder; as a Hub id it cannot be downloaded "
            f"({type(error).__name__}: {reason(error)}); if this machine is offline, run "
            f"`hf download {repository}` on another one and give the file"
        ) from error


def _download(repository: str, file: str, default_names: tuple[str, ...]) -> str:
    if file:
        return huggingface_hub.hf_hub_download(repository, file)
    for name in default_names:  # found in the local cache, too, when there is no network
        with contextlib.suppress(EntryNotFoundError):
            return huggingface_hub.hf_hub_download(repository, name)
    found = [name for name in huggingface_hub.list_repo_files(repository) if "/" not in name]
    return huggingface_hub.hf_hub_download(repository, _choose(repository, found, default_names))


def _choose(where: str, files: list[str], default_names: tuple[str, ...]) -> str:
    for name in default_names:
        if name in files:
            return name
    suffixes = tuple(suffix for suffix in WEIGHT_SUFFIXES if suffix != ".json")
    found = sorted(name for name in files if name.endswith(suffixes))
    if len(found) == 1:
        return found[0]
    if not found:
        raise WeightsError(f"{where}: holds no file of a style (looked for {' '.join(suffixes)})")
    raise WeightsError(
        f"{where}: holds several weight files ({list_names(found)}); name one of them: {where}/{found[0]}"
    )
