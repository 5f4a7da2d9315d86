"""Compiled programs in a file, so that a run starts without compiling.

A line of JSON that says what they were made for, then a pickle. Like any pickle it can run code when it is
opened: take such files from people only from whom you would take a program.
"""

import contextlib
import json
import pickle
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from fyp_jax.errors import UserError, reason
from fyp_jax.kept import keep, keeping_file
from fyp_jax.media.writing import wrap_write_errors
from fyp_jax.versions import code_crc32

Fingerprint = dict[str, str]
"""All that a program depends on, each with a name that a user knows."""


def save_programs(file: Path, programs: Mapping[str, jax.stages.Compiled], fingerprint: Fingerprint) -> None:
    """Write programs that were `compiled_anew`. Raises UserError where the disk says no."""
    with wrap_write_errors(file):
        file.write_bytes(_serialised(programs, fingerprint))


def _serialised(programs: Mapping[str, jax.stages.Compiled], fingerprint: Fingerprint) -> bytes:
    found = {name: serialize_executable.serialize(program) for name, program in programs.items()}
    return json.dumps(fingerprint).encode() + b"\n" + pickle.dumps(found)


def load_programs(
    file: str, fingerprint: Fingerprint, devices: Sequence[Any]
) -> dict[str, Callable[..., Any]]:
    """The programs of a file, on these devices, for a run that needs `fingerprint`.

    Raises UserError where there is no such file, or it was made for something else. A program that is called
    with other arguments than it was compiled for raises UserError, too.
    """
    try:
        head, _, body = Path(file).read_bytes().partition(b"\n")
        theirs = json.loads(head)
    except OSError as error:
        raise UserError(f"compiled={file}: cannot be read ({reason(error)})") from error
    except ValueError as error:
        raise UserError(f"compiled={file}: holds no programs of scripts/compile_tpu.py --save") from error
    other = [name for name in fingerprint | theirs if fingerprint.get(name) != theirs.get(name)]
    if other:
        differences = ", ".join(
            _difference(name, theirs.get(name), fingerprint.get(name)) for name in other[:4]
        )
        more = f", and {len(other) - 4} more" if len(other) > 4 else ""
        raise UserError(f"compiled={file}: was made for {differences}{more}; compile it again")
    try:
        programs = {
            name: serialize_executable.deserialize_and_load(
                payload, inputs, outputs, devices[0].client, list(devices)
            )
            for name, (payload, inputs, outputs) in pickle.loads(body).items()
        }
    except Exception as error:  # of whatever kind the runtime raises: the file is the same to the user
        raise UserError(f"compiled={file}: does not open here ({reason(error)})") from error
    return {name: _checked(file, program) for name, program in programs.items()}


def _difference(name: str, theirs: str | None, ours: str | None) -> str:
    both = f"{name}={theirs}, here {ours}"
    return both if len(both) < 100 else f"another {name}"


def _checked(file: str, program: jax.stages.Compiled) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return program(*args)
        except (TypeError, ValueError) as error:  # before anything has run
            raise UserError(f"compiled={file}: does not fit this run ({reason(error)})") from error

    return call


def kept_programs(
    what: str,
    fingerprint: Fingerprint,
    devices: Sequence[Any],
    make: Callable[[], dict[str, jax.stages.Compiled]],
) -> Mapping[str, Callable[..., Any]]:
    """Programs that an earlier start kept, or make() now; none where nothing is kept, or on several hosts.

    JAX's cache spares a start the compiling; this spares it the tracing, too.
    """
    file = keeping_file(what, fingerprint)
    if file is None or jax.process_count() > 1:
        return {}
    with contextlib.suppress(UserError):  # not there, or cut off
        return load_programs(str(file), fingerprint, devices)
    with compiled_anew() if devices[0].platform == "cpu" else contextlib.nullcontext():
        programs = make()
    keep(file, _serialised(programs, fingerprint))
    return programs


def here(devices: Sequence[Any]) -> Fingerprint:
    """What a program depends on beside its config: devices, versions, and the code that it was made from."""
    packages = ("jax", "jaxlib", "flax", "optax", *(("libtpu",) if devices[0].platform == "tpu" else ()))
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        **({"cpu": _instructions()} if devices[0].platform == "cpu" else {}),
        **{name: metadata.version(name) for name in packages},
        "fyp_jax": f"code {code_crc32():08x}",
    }


def _instructions() -> str:
    """Those that this machine's processor has, as a checksum: code that uses others would end the process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {zlib.crc32(flags.encode()):08x}"


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """While it is open, no program comes from JAX's cache, and none goes there.

    One that comes from the cache cannot be saved: written by a CPU's runtime a second time (jaxlib 0.10), it
    lacks functions that it calls. One for a topology without its devices can be put there, but not got back.
    """
    kept: bool = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    _enable_cache(False)
    try:
        yield
    finally:
        _enable_cache(kept)


def _enable_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX asks once whether there is one, and remembers
