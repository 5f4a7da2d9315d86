"""Apache Beam as a runner: one function over many elements, in threads, in processes, or on a cluster.

The function writes its result to a place of its own and gives nothing back, so an element may run twice.
"""

import argparse
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from fyp_jax.errors import UserError, reason

T = TypeVar("T")


def run_in_beam(
    function: Callable[[T], None], elements: Sequence[T], options: Sequence[str], again: str
) -> None:
    """Run a pipeline that calls `function`, which workers import by its name, on each of the elements.

    `options` are Beam's: --runner=DirectRunner --direct_num_workers=4, or those of a cluster. `again` says in
    the message of a failure how to go on. Raises UserError where Beam is not installed or does not know an
    option, and where the pipeline fails.
    """
    beam, parsed = _import_beam(), _parse(options)
    pipeline = beam.Pipeline(runner=parsed.runner, options=parsed.options)
    spread = pipeline | beam.Create(list(elements)) | beam.Reshuffle()
    _ = spread | beam.Map(function)
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # a runner wraps what a worker raised in a class of its own
        logging.getLogger(__name__).debug("Beam", exc_info=error)
        raise UserError(f"the Beam pipeline failed: {_cause(error)}; {again}") from error


def check_beam_options(options: Sequence[str]) -> None:
    """Raise UserError where Beam is not installed, cannot make the runner, or does not know an option."""
    _import_beam()
    _parse(options)


def _import_beam() -> Any:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam ({reason(error)}): pip install 'fyp_jax[beam]'"
        ) from error
    return apache_beam


class _Parsed(NamedTuple):
    runner: Any
    options: Any


def _parse(options: Sequence[str]) -> _Parsed:
    """Beam's runner and options; Beam itself drops those that it does not know."""
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    from apache_beam.options.pipeline_options_validator import (  # pyright: ignore[reportMissingImports]
        PipelineOptionsValidator,
    )

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> Any:
            raise UserError(f"Beam's options: {message}")

    named = Parser(allow_abbrev=False, add_help=False)
    named.add_argument("--runner", default="DirectRunner")
    # the runner first: its module may bring options of its own
    runner = _create_runner(named.parse_known_args(list(options))[0].runner)
    parser = Parser(allow_abbrev=False, add_help=False)
    for kind in {str(kind): kind for kind in PipelineOptions.__subclasses__()}.values():
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(options))
    if unknown:
        raise UserError(f"{' '.join(unknown)}: neither this command nor Beam has such an option")
    parsed = PipelineOptions(list(options))
    if errors := PipelineOptionsValidator(parsed, runner).validate():
        raise UserError(f"Beam's options: {' '.join(errors)}")
    return _Parsed(runner, parsed)


def _create_runner(name: str) -> Any:
    """Beam's runner of that name, or the one of a package, by the path of its class."""
    from apache_beam.runners import create_runner  # pyright: ignore[reportMissingImports]

    try:
        return create_runner(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"--runner {name}: Beam cannot make this runner ({reason(error)})") from error


def _cause(error: Exception) -> str:
    """The last line of a worker's traceback, which a runner's error may hold, or the error's first line."""
    ours = re.findall(r"fyp_jax[\w.]*Error: (.*)", str(error))
    return ours[-1] if ours else reason(error)
