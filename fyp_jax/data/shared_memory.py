"""Shared memory and semaphores of data workers: named after the run's process, so that a later one can remove
what is left of it.

Where only the trainer is killed, Python's resource tracker removes them. Where the whole process group is
killed, as clouds and job schedulers do, they stay in /dev/shm until the machine restarts.
"""

import logging
import os
import re
from multiprocessing import process, shared_memory
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")
NAME = re.compile(r"(?:sem\.)?fyp_jax-(?P<namespace>\d+)-(?P<pid>\d+)-.*")


def owner_prefix() -> str:
    """The start of all names of this process, with its id and the namespace that the id is of."""
    return f"/fyp_jax-{_pid_namespace()}-{os.getpid()}-"


def use_prefix(prefix: str) -> None:
    """Name all segments and semaphores that this process makes from now on.

    Python has no public way to choose the names of segments that a library makes.
    """
    module: Any = shared_memory
    module._SHM_NAME_PREFIX, module._SHM_SAFE_NAME_LENGTH = prefix, len(prefix) + 10
    current: Any = process.current_process()
    current._config["semprefix"] = prefix.removesuffix("-")


def remove_orphans() -> int:
    """Remove the segments and semaphores of processes that are gone; gives their number."""
    found = list(FOLDER.glob("*fyp_jax-*")) if FOLDER.is_dir() else []
    removed = 0
    for path in found:
        match = NAME.fullmatch(path.name)
        # A process of another container may share this folder, and its id means nothing here.
        if match is None or match["namespace"] != _pid_namespace() or _is_alive(int(match["pid"])):
            continue
        try:
            path.unlink()
            removed += 1
        except OSError as error:  # another user's, or removed by a run that starts beside this one
            log.debug("%s: not removed (%s)", path, error)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _pid_namespace() -> str:
    try:
        return re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        return "0"
