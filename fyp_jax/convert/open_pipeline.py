"""Opens a Stable Diffusion by its name, in whichever form it is."""

from pathlib import Path

from fyp_jax.convert.pipeline_folder import PipelineFolder, PipelineOptions
from fyp_jax.convert.single_file import SingleFile
from fyp_jax.convert.torch_files import PICKLE_SUFFIXES
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
