"""What one start works out and the next would work out again, kept in files beside JAX's compiled programs.

Each is a pickle below the user's own cache folder, under a name made of all that it depends on: no entry is
ever wrong, only unused. The folder may be deleted at any time.
"""

import contextlib
import hashlib
import json
import logging
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from fyp_jax.versions import code_crc32, versions

log = logging.getLogger(__name__)

T = TypeVar("T")


def enable_compilation_cache() -> None:
    """From now on programs are kept, by JAX's persistent compilation cache: a second start need not compile.

    They stand in $JAX_COMPILATION_CACHE_DIR, or else in ~/.cache/fyp_jax (below $XDG_CACHE_HOME, if that is
    set), and so does what `kept` keeps. JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if _setting("jax_compilation_cache_dir") is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "fyp_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keeping_file(what: str, fingerprint: Mapping[str, str]) -> Path | None:
    """Where a thing is kept that depends on `fingerprint`, this code and its packages; None: nothing is kept."""
    folder = _setting("jax_compilation_cache_dir")
    if folder is None or "://" in folder or not _setting("jax_enable_compilation_cache"):
        return None
    here = {"code": f"{code_crc32():08x}", "machine": platform.machine(), **versions(devices=False)}
    name = hashlib.sha256(json.dumps([dict(fingerprint), here], sort_keys=True).encode()).hexdigest()
    return Path(folder) / f"fyp_jax_{what}-{name[:32]}"


def kept(what: str, fingerprint: Mapping[str, str], make: Callable[[], T]) -> T:
    """make(), or what it gave for the same `fingerprint` at an earlier start."""
    file = keeping_file(what, fingerprint)
    if file is None:
        return make()
    with contextlib.suppress(Exception):  # not there, cut off, or of other classes: it is made anew
        return pickle.loads(file.read_bytes())
    found = make()
    keep(file, pickle.dumps(found))
    return found


def keep(file: Path, content: bytes) -> None:
    """Write a file whole or not at all; where the disk says no, the next start makes it again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unfinished = Path(folder) / file.name
            unfinished.write_bytes(content)
            unfinished.replace(file)
    except OSError as error:
        log.debug("%s is not kept: %s", file, error)


def _setting(name: str) -> Any:
    return getattr(jax.config, name)
