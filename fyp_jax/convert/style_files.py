"""Finds the file of a LoRA or of an embedding: a path, a folder with one such file, or a Hub id."""

from pathlib import Path

from fyp_jax.convert.hub import download_file, list_top_files, parse_hub_name
from fyp_jax.convert.torch_files import WEIGHT_SUFFIXES, WeightsError
from fyp_jax.errors import UserError
from fyp_jax.trees import list_names

LORA_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
EMBEDDING_NAMES = ("learned_embeds.safetensors", "learned_embeds.bin")
"""The names that diffusers gives to the file; the first that is there is read."""


def find_style_file(name: str, default_names: tuple[str, ...]) -> Path:
    """The file of a style.

    A folder, or a Hub repository OWNER/NAME, has a file of one of `default_names`, or one weight file alone;
    OWNER/NAME/FILE is a file of a Hub repository (`hub`). Raises UserError where there is none, or more than
    one.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return path / _choose(name, [file.name for file in path.iterdir() if file.is_file()], default_names)
    hub = parse_hub_name(name)
    not_found = f"{name}: no such file or folder"
    if hub is None:
        raise UserError(not_found)
    file = hub.file or _choose(name, list_top_files(name, not_found), default_names)
    return download_file(name, file, not_found)


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
