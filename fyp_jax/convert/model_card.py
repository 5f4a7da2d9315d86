"""The model card of an export: README.md with the header that the Hugging Face Hub reads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from huggingface_hub import EvalResult, ModelCardData

from fyp_jax.convert.export_formats import EXPORT_FORMATS, checkpoint_name
from fyp_jax.convert.hub import parse_hub_name
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.open_pipeline import base_pipeline
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.errors import UserError
from fyp_jax.versions import versions

BASE_LICENSES = (
    (r"(CompVis|runwayml|sd-legacy|stable-diffusion-v1-5)/stable-diffusion-v1-\d.*", "creativeml-openrail-m"),
    (r"(stabilityai|sd2-community)/stable-diffusion-2(-.*)?", "openrail++"),
)
"""Hub ids of models that others are trained from, and the Hub's names of their licences."""
BUNDLED, BUNDLED_LICENSE = ("mini", "sd14"), "apache-2.0"
TAGS = ["fyp_jax", "jax", "flax", "follow-your-pose", "pose-guided", "stable-diffusion"]
PAPER = "[Follow Your Pose](https://arxiv.org/abs/2304.01186)"


class Usage(NamedTuple):
    """What a card says of an export format. NAME, STEP and BASE are put in."""

    hub_library: str
    """The library that the Hub names."""
    task: str
    """The Hub's pipeline tag."""
    what: str
    fyp_jax: str
    """Code, or commands, for this package."""
    pytorch: str
    """The same for PyTorch."""


_SAMPLE = """```python
from fyp_jax import FollowYourPosePipeline

pipeline = FollowYourPosePipeline.from_pretrained("NAME")
pipeline("A robot, on the beach", pose="dance", num_frames=8).save("robot.mp4")
```"""
_IMAGE = """```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("NAME")
pipeline("A robot, on the beach").images[0].save("robot.png")
```"""
_PUBLISHED = "[The original code](https://github.com/mayuelala/FollowYourPose) makes clips with it"
_FOLLOWYOURPOSE = Usage(
    "fyp_jax",
    "text-to-video",
    "the video UNet, the pose encoder and the Stable Diffusion around them, as the original PyTorch code has "
    "them",
    """    hf download NAME --local-dir checkpoints
    python scripts/import_pytorch.py --checkpoint checkpoints/checkpoint-STEP \\
        --pipeline checkpoints/stable-diffusion --out imported""",
    f"{_PUBLISHED}: set `pretrained_model_path` to `checkpoints/stable-diffusion` and "
    "`resume_from_checkpoint` to `checkpoints/checkpoint-STEP` in its config.",
)
USAGE = {
    "pipeline": Usage(
        "diffusers",
        "text-to-video",
        "a whole pipeline: a Stable Diffusion, with temporal layers and a pose encoder beside it",
        _SAMPLE,
        f"diffusers opens the image part. It ignores the temporal layers and the pose.\n\n{_IMAGE}",
    ),
    "followyourpose": _FOLLOWYOURPOSE,
    "followyourpose-safetensors": _FOLLOWYOURPOSE,
    "diffusers-t2i-adapter": Usage(
        "diffusers",
        "text-to-image",
        "the pose encoder as a T2I-Adapter",
        "    python scripts/import_pytorch.py --pipeline BASE --pose-encoder NAME --out imported",
        """```python
from diffusers import StableDiffusionAdapterPipeline, T2IAdapter

adapter = T2IAdapter.from_pretrained("NAME")
pipeline = StableDiffusionAdapterPipeline.from_pretrained("BASE", adapter=adapter)
```""",
    ),
    "diffusers-unet2d": Usage(
        "diffusers",
        "text-to-image",
        "a Stable Diffusion with the UNet's image part; it has no temporal layers and no pose encoder",
        "    python scripts/import_pytorch.py --pipeline NAME --out imported",
        _IMAGE,
    ),
    "tuneavideo": Usage(
        "fyp_jax",
        "text-to-video",
        "a pipeline with the video UNet of Tune-A-Video; it has no pose encoder",
        _SAMPLE.replace(', pose="dance"', ""),
        "[Tune-A-Video's code](https://github.com/showlab/Tune-A-Video) makes clips with it.",
    ),
    "safetensors": Usage(
        "fyp_jax",
        "text-to-video",
        "the video UNet and the pose encoder under the names of fyp_jax",
        "    python scripts/import_pytorch.py --checkpoint NAME --out imported",
        "Import it as above. `python scripts/export_pytorch.py --checkpoint imported --format followyourpose "
        "--out checkpoints` then writes what the original PyTorch code reads.",
    ),
}


def base_model(weights: Weights, pipeline: PipelineFolder | None) -> str | None:
    """The Hub id of the Stable Diffusion that weights belong to, where it is known."""
    name = base_pipeline(weights.provenance) if pipeline is None else pipeline.name
    hub = None if name is None else parse_hub_name(name)
    if hub is None:
        return None
    # A name that was never opened may be that of a folder which is gone.
    from_hub = pipeline is not None and f"models--{hub.repository.replace('/', '--')}" in pipeline.path.parts
    return hub.repository if from_hub or _known_license(hub.repository) else None


def license_of(weights: Weights, pipeline: PipelineFolder | None) -> str:
    """The Hub's name of the licence of the Stable Diffusion that weights were trained from.

    Raises UserError where it is not known.
    """
    base = base_model(weights, pipeline)
    name = base_pipeline(weights.provenance) if pipeline is None else pipeline.name
    is_bundled = name in BUNDLED and not Path(name).is_dir()
    found = BUNDLED_LICENSE if is_bundled else _known_license(base or "")
    if found is None:
        raise UserError(
            f"the model card needs the licence of the weights, and that of {name} is not known: give "
            "--license ID, an id of https://huggingface.co/docs/hub/repositories-licenses"
        )
    return found


def model_card(
    name: str,
    format_name: str,
    weights: Weights,
    pipeline: PipelineFolder | None,
    license_id: str,
    dtype: str,
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    score_table: str,
) -> str:
    """The text of the card of an export.

    `name` is OWNER/NAME of its repository. `scores` are means with intervals, {row: {metric: {"mean": ...}}};
    the first row is that of the model. `score_table` is the same in Markdown.
    """
    usage, base = USAGE[format_name], base_model(weights, pipeline)
    replaced = {"NAME": name, "STEP": checkpoint_name(weights).rpartition("-")[2], "BASE": base or "BASE"}

    def filled(text: str) -> str:
        return re.sub("NAME|STEP|BASE", lambda found: replaced[found[0]], text)

    title = name.rpartition("/")[2]
    header = ModelCardData(
        model_name=title if scores else None,
        license=license_id,
        base_model=base,
        library_name=usage.hub_library,
        pipeline_tag=usage.task,
        tags=TAGS,
        language="en",
        eval_results=list(_eval_results(usage.task, scores)) or None,
    )
    without_base = "" if base else " BASE is the Stable Diffusion that it was trained with."
    needs_base = without_base if "BASE" in usage.fyp_jax + usage.pytorch else ""
    evaluation = score_table or "It was exported without scores."
    return f"""---
{header.to_yaml()}
---

# {title}

This is {usage.what}.
The method is {PAPER}, which makes a video of a text prompt that follows a pose sequence.
fyp_jax, its implementation in JAX, exported these files.{needs_base}

## Use

With fyp_jax:

{filled(usage.fyp_jax)}

With PyTorch:

{filled(usage.pytorch)}

## Configuration

| | |
|---|---|
{_rows(_configuration(format_name, weights, base, dtype))}

`conversion.json` has the whole configuration, the versions of all libraries, and a checksum of each array.

## Evaluation

{evaluation}

## Licence

`{license_id}`. The licence of the model that it was trained from applies to it, too.
"""


def _configuration(format_name: str, weights: Weights, base: str | None, dtype: str) -> Mapping[str, Any]:
    config, provenance = weights.config, weights.provenance
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(weights.models[part]))
        for part in ("unet", "pose_encoder")
    }
    return {
        "export format": f"`{format_name}`, {EXPORT_FORMATS[format_name].description}",
        "trained from": base or provenance.get("pretrained"),
        "stage of training": provenance.get("stage"),
        "step": provenance.get("step"),
        "frames of a training clip": provenance.get("num_frames"),
        "parameters of the UNet": f"{counts['unet'] / 1e6:.1f} million",
        "parameters of the pose encoder": f"{counts['pose_encoder'] / 1e6:.1f} million",
        "latents": f"{config.sample_size} x {config.sample_size}, {config.in_channels} channels",
        "channels of the UNet's levels": ", ".join(map(str, config.block_out_channels)),
        "width of the text embeddings": config.cross_attention_dim,
        "dtype of the files": dtype,
        "fyp_jax": versions(devices=False)["fyp_jax"],
    }


def _rows(values: Mapping[str, Any]) -> str:
    cells = {name: str(value).replace("|", "\\|") for name, value in values.items() if value is not None}
    return "\n".join(f"| {name} | {value} |" for name, value in cells.items())


def _eval_results(task: str, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    for metric, value in next(iter(scores.values()), {}).items():
        if value is None:  # the first row has no clips with this score
            continue
        yield EvalResult(
            task_type=task,
            dataset_type="synthetic",
            dataset_name="the synthetic world of fyp_jax",
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=round(value["mean"], 4),
        )


def _known_license(hub_id: str) -> str | None:
    return next((found for pattern, found in BASE_LICENSES if re.fullmatch(pattern, hub_id)), None)
