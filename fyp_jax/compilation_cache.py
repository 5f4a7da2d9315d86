"""What a start works out and a later start reuses: compiled programs, and values that take long to compute.

`cached` and `load_or_compile` keep files in the user's own cache folder, beside JAX's persistent compilation
cache. The name of a file is a hash of all that its content depends on, so a file is never out of date; a file
that cannot be read is made anew. The folder may be deleted at any time. Values are JSON.

`save_programs` writes compiled programs to a file that the user names, which `aot_path=FILE` loads: one line
of JSON with the fingerprint, then a pickle. A compiled program is native code. So programs are only taken
from files and folders that the user owns and nobody else may write (`check_private`).
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import platform
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from fyp_jax.errors import UserError, reason, wrap_write_errors
from fyp_jax.versions import code_crc32, versions

log = logging.getLogger(__name__)

T = TypeVar("T")
Fingerprint = dict[str, str]
"""All that a program or a value depends on, each under a name that a user knows."""

Programs = Mapping[str, Callable[..., Any]]
"""Compiled programs by name."""


def enable_compilation_cache() -> None:
    """Turn on JAX's persistent compilation cache, so that a second start need not compile.

    The folder is $JAX_COMPILATION_CACHE_DIR, or else ~/.cache/fyp_jax (below $XDG_CACHE_HOME where that is
    set). `cached` and `load_or_compile` use it too. JAX_ENABLE_COMPILATION_CACHE=false turns all of it off.
    """
    if _jax_setting("jax_compilation_cache_dir") is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "fyp_jax"))
    if (folder := _cache_folder()) is not None:
        with contextlib.suppress(OSError):  # where no folder can be made, nothing is cached
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.exists():
            check_private(folder)
    # The folder may be deleted at any time. JAX would warn at each program that it cannot write then.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def environment_fingerprint(devices: Sequence[Any]) -> Fingerprint:
    """What every compiled program depends on: devices, package versions, and the code of this package."""
    packages = ("jax", "jaxlib", "flax", "optax", *(("libtpu",) if devices[0].platform == "tpu" else ()))
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        **({"cpu": _cpu_features()} if devices[0].platform == "cpu" else {}),
        **{name: metadata.version(name) for name in packages},
        "fyp_jax": f"code {code_crc32():08x}",
    }


def check_private(path: Path) -> None:
    """Raise UserError where another user (but root) owns a file or folder, or where others may write to
    it."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        problem = "belongs to another user"
    elif status.st_mode & 0o022:
        problem = "can be written by other users"
    else:
        return
    raise UserError(
        f"{path}: {problem}, and compiled programs in it would run as you; `chmod go-w` it if you trust it, "
        "or delete it, or set JAX_COMPILATION_CACHE_DIR to a folder of your own"
    )


def cached(name: str, fingerprint: Mapping[str, str], make: Callable[[], T]) -> T:
    """The value of make(), or the one that an earlier start got for the same fingerprint.

    A value is made of dicts, lists, texts, numbers and `jax.ShapeDtypeStruct`s.
    """
    file = cache_file(name, fingerprint)
    if file is None:
        return make()
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # no such file, or one that is cut off
        return json.loads(file.read_bytes(), object_hook=_from_json)
    value = make()
    _write(file, json.dumps(value, default=_to_json).encode())
    return value


def load_or_compile(
    name: str,
    fingerprint: Fingerprint,
    devices: Sequence[Any],
    compile_programs: Callable[[], Mapping[str, jax.stages.Compiled]] | None = None,
    *,
    aot_path: str | None = None,
) -> Programs:
    """Compiled programs for these devices: of the file `aot_path`, of the cache, or of compile_programs()
    now.

    JAX's own cache spares a start the compiling; programs that are loaded here spare it the tracing, too. The
    result is empty, and the caller compiles at the first call, where no file is named and compile_programs is
    None, the cache is off, or there are several processes. Raises UserError as `load_programs`, for
    `aot_path`.
    """
    if aot_path is not None:
        return load_programs(aot_path, fingerprint, devices)
    file = cache_file(name, fingerprint)
    if compile_programs is None or file is None or jax.process_count() > 1:
        return {}
    with contextlib.suppress(UserError):  # no such file, or one that is cut off
        return load_programs(str(file), fingerprint, devices)
    with bypass_compilation_cache() if devices[0].platform == "cpu" else contextlib.nullcontext():
        programs = compile_programs()
    _write(file, _serialize(programs, fingerprint))
    return programs


def save_programs(file: Path, programs: Mapping[str, jax.stages.Compiled], fingerprint: Fingerprint) -> None:
    """Write programs that were compiled under `bypass_compilation_cache`. Raises UserError where it
    cannot."""
    with wrap_write_errors(file):
        file.write_bytes(_serialize(programs, fingerprint))
        file.chmod(0o600)


def load_programs(file: str, fingerprint: Fingerprint, devices: Sequence[Any]) -> Programs:
    """The programs of a file that `save_programs` wrote, loaded onto these devices.

    Raises UserError where there is no such file, or where its fingerprint is another. A program that is
    called with other arguments than it was compiled for raises UserError, too.
    """
    try:
        check_private(Path(file))
        head, _, body = Path(file).read_bytes().partition(b"\n")
        theirs = json.loads(head)
    except OSError as error:
        raise UserError(f"aot_path={file}: cannot be read ({reason(error)})") from error
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        raise UserError(f"aot_path={file}: holds no programs of scripts/compile_tpu.py --save")
    differing = [name for name in fingerprint | theirs if fingerprint.get(name) != theirs.get(name)]
    if differing:
        shown = ", ".join(
            _difference(name, theirs.get(name), fingerprint.get(name)) for name in differing[:4]
        )
        more = f", and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(f"aot_path={file}: was compiled for {shown}{more}; compile it again")
    try:
        programs = {
            name: serialize_executable.deserialize_and_load(
                payload, inputs, outputs, devices[0].client, list(devices)
            )
            for name, (payload, inputs, outputs) in pickle.loads(body).items()
        }
    except Exception as error:  # whatever class the runtime raises, to the user it is the same
        raise UserError(f"aot_path={file}: does not open here ({reason(error)})") from error
    return {name: _checked(file, program) for name, program in programs.items()}


@contextlib.contextmanager
def bypass_compilation_cache() -> Iterator[None]:
    """While it is open, JAX takes no program from its persistent cache and puts none there.

    A program that came from that cache cannot be saved: a CPU's runtime writes it a second time without
    functions that it calls (jaxlib 0.10). A program for a topology without its devices can be put there, but
    not got back.
    """
    enabled: bool = _jax_setting("jax_enable_compilation_cache")
    _enable_jax_cache(False)
    try:
        yield
    finally:
        _enable_jax_cache(enabled)


def cache_file(name: str, fingerprint: Mapping[str, str]) -> Path | None:
    """The file that holds a value of this fingerprint; None where nothing is cached on disk."""
    folder = _cache_folder()
    if folder is None:
        return None
    here = {"code": f"{code_crc32():08x}", "machine": platform.machine(), **versions(devices=False)}
    key = hashlib.sha256(json.dumps([dict(fingerprint), here], sort_keys=True).encode()).hexdigest()
    return folder / f"fyp_jax_{name}-{key[:32]}"


def _cache_folder() -> Path | None:
    folder = _jax_setting("jax_compilation_cache_dir")
    if folder is None or "://" in folder or not _jax_setting("jax_enable_compilation_cache"):
        return None
    return Path(folder)


def _write(file: Path, content: bytes) -> None:
    """Write a cache file whole or not at all; where that fails, the next start makes it again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            unfinished.write_bytes(content)
            unfinished.chmod(0o600)
            unfinished.replace(file)
    except OSError as error:
        log.debug("%s is not cached: %s", file, error)


def _to_json(value: Any) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return {"shape": value.shape, "dtype": str(value.dtype)}
    raise TypeError(f"{type(value).__name__} is not cached")


def _from_json(value: dict[str, Any]) -> Any:
    if value.keys() == {"shape", "dtype"}:
        return jax.ShapeDtypeStruct(tuple(value["shape"]), jnp.dtype(value["dtype"]))
    return value


def _serialize(programs: Mapping[str, jax.stages.Compiled], fingerprint: Fingerprint) -> bytes:
    found = {name: serialize_executable.serialize(program) for name, program in programs.items()}
    return json.dumps(fingerprint).encode() + b"\n" + pickle.dumps(found)


def _difference(name: str, theirs: str | None, ours: str | None) -> str:
    both = f"{name}={theirs}, here {ours}"
    return both if len(both) < 100 else f"another {name}"


def _checked(file: str, program: jax.stages.Compiled) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return program(*args)
        except (TypeError, ValueError) as error:  # raised before anything has run
            raise UserError(f"aot_path={file}: does not fit this run ({reason(error)})") from error

    return call


def _cpu_features() -> str:
    """A checksum of this processor's instruction sets: code for others would end the process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {zlib.crc32(flags.encode()):08x}"


def _jax_setting(name: str) -> Any:
    return getattr(jax.config, name)


def _enable_jax_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # JAX asks once whether there is a cache, and remembers the answer
