"""Opens a Stable Diffusion by its name, in whichever form it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fyp_jax.convert.pipeline_folder import PipelineFolder, PipelineOptions
from fyp_jax.convert.single_file import SingleFile
from fyp_jax.convert.torch_files import PICKLE_SUFFIXES
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS

FILE_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def open_pipeline(
    name: str, parts: tuple[str, ...] = ENCODERS, options: PipelineOptions | None = None
) -> PipelineFolder:
    """A pipeline folder, bundled model, Hub id, or single file by its name.

    Of a Hub id, the weights of `parts` are downloaded. Raises UserError where there is no such pipeline, or
    the name is that of something else, which the message names.
    """
    path = Path(name)
    is_file = path.is_file() or (path.suffix in FILE_SUFFIXES and not path.is_dir())
    return (SingleFile if is_file else PipelineFolder)(name, parts, options)


def options_of(config: Any) -> PipelineOptions:
    """The options in a config of sampling or training, whose fields have the same names."""
    return PipelineOptions(**{name: getattr(config, name) for name in PipelineOptions._fields})


def recorded_options(provenance: Mapping[str, Any]) -> PipelineOptions:
    """The options that a checkpoint's provenance tells of its base pipeline."""
    return PipelineOptions(**{name: provenance.get(name) for name in PipelineOptions._fields})


def check_prediction_type(provenance: Mapping[str, Any], predicts: str, name: str) -> None:
    """Raise UserError where the weights `name` were trained to predict something else than a noise schedule
    says."""
    recorded = provenance.get("prediction_type")
    if recorded not in (None, predicts):
        raise UserError(
            f"{name}: its UNet was trained with prediction_type={recorded}, but the pipeline says "
            f"{predicts}; give prediction_type={recorded}"
        )


def base_pipeline(provenance: Mapping[str, Any]) -> str | None:
    """The pipeline that a checkpoint's VAE and text encoder come from, by the checkpoint's own words."""
    return provenance.get("pretrained") or provenance.get("pipeline")
