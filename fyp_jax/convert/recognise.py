"""Names files and folders that people take for weights or for a pipeline, and says what to do with each."""

import re
from collections.abc import Iterable
from pathlib import Path

LFS_POINTER = b"version https://git-lfs"
WEB_PAGE = re.compile(rb"\s*<(!doctype|html)", re.IGNORECASE)
DEEPSPEED = ("zero_to_fp32.py", "global_step*", "mp_rank_*", "*_optim_states.pt", "pytorch_model/mp_rank_*")
"""Names of files and folders of which DeepSpeed's checkpoints have at least one."""
SINGLE_FILE_SUFFIXES = (".safetensors", ".ckpt")

FATEZERO = "FateZero's UNet, with a convolution in time behind every convolution in space"
FATEZERO_CLASS = "UNetPseudo3DConditionModel"
"""Class in the config of FateZero's UNet."""
FATEZERO_ARRAYS = r"\b(attn|norm)_temporal\.|\bconv\w*\.conv_temporal\."

# Patterns of array names, each with what the file is and what to do. The first that is found counts.
ARRAY_NAMES = (
    (
        r"(^|[._])(lora_(up|down|A|B|unet|te|te1|te2|mid)|lora\.(up|down)|hada_w1_a|lokr_w[12](_a)?|lora_linear_layer)([._]|$)",
        "a LoRA, not a pipeline; give the Stable Diffusion that it was trained for, and lora=FILE beside it",
    ),
    (
        r"^(emb_params|string_to_param\..*|<[^<>]*>)$",
        "a textual inversion embedding, not a pipeline; give the Stable Diffusion that it was trained for, "
        "and embedding=FILE beside it",
    ),
    (
        r"^conditioner\.embedders\.|\.label_emb\.",
        "Stable Diffusion XL or a relative; only 1.x and 2.x are read",
    ),
    (r"\bjoint_blocks\.", "Stable Diffusion 3; only 1.x and 2.x are read"),
    (r"\bdouble_(blocks|stream_modules)\.", "FLUX; only Stable Diffusion 1.x and 2.x are read"),
    (r"^control_model\.|^controlnet_|\binput_hint_block\.", "a ControlNet, not a pipeline"),
    (r"\bmotion_modules\.", "a motion module of AnimateDiff, not a pipeline"),
    (
        r"^(adapter\.|skeleton_adapter\.)?body\.\d+\.(block1|resnets)\b",
        "a pose encoder; give it to import_pytorch.py as --pose-encoder",
    ),
    (FATEZERO_ARRAYS, f"{FATEZERO}, which is not read"),
    (
        r"\b(attn_temp|conv_temporal)\.",
        "a video UNet; give its folder to import_pytorch.py as --checkpoint, and the pipeline that it was "
        "trained from as --pipeline",
    ),
    (r"^(down_blocks|up_blocks)\.\d+\.", "the UNet of a diffusers folder alone; give the whole folder"),
    (r"^(en|de)coder\.(down|up|mid)[._]", "a VAE alone, not a pipeline"),
    (r"^(text_model\.|transformer\.text_model\.|resblocks\.)", "a text encoder alone, not a pipeline"),
)


def describe_arrays(names: Iterable[str]) -> str | None:
    """What a file with arrays of these names is, where it is not a whole Stable Diffusion 1.x or 2.x."""
    listed = list(names)
    for pattern, words in ARRAY_NAMES:
        if any(re.search(pattern, name) for name in listed):
            return words
    return None


def describe_content(file: Path) -> str | None:
    """What a file is that is no weight file at all, by its first bytes."""
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError:
        return None
    if start.startswith(LFS_POINTER):
        return (
            "a Git LFS pointer, not the file itself; run `git lfs pull` in its folder, or download the file"
        )
    if WEB_PAGE.match(start):
        return "a web page, not the file itself; download it again"
    return None


def describe_deepspeed(folder: Path) -> str | None:
    """The words for a checkpoint of DeepSpeed, which divides the weights over many files."""
    if not any(next(folder.glob(pattern), None) for pattern in DEEPSPEED):
        return None
    root = folder if (folder / "zero_to_fp32.py").exists() else folder.parent
    return (
        "a checkpoint of DeepSpeed; its own script turns it into one file: "
        f"`cd {root} && python zero_to_fp32.py . .` (an older script wants `. pytorch_model.bin`)"
    )


def describe_folder(folder: Path) -> str | None:
    """What a folder is that is no pipeline folder."""
    files = sorted(file.name for file in folder.glob("*") if file.suffix in SINGLE_FILE_SUFFIXES)
    single = f"a folder of single files; name one of them: {folder / files[0]}" if files else None
    return describe_deepspeed(folder) or single
