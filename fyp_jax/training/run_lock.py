"""The lock on the folder of a run: two trainings that write into one folder would mix their files."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fyp_jax.errors import UserError, reason, wrap_write_errors

log = logging.getLogger(__name__)

LOCK_FILE = "training.lock"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder. It ends with the process, however that ends.

    The file `training.lock` names the process that holds it. Raises UserError, with that process, where
    another one holds the lock. A file system without locks is only warned of.
    """
    path = folder / LOCK_FILE
    with wrap_write_errors(path):
        descriptor = _open_locked(path)
        os.truncate(descriptor, 0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {started}".encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the lock ends, so that no one else's file is removed
        os.close(descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise UserError(
                f"{path.parent}: another training runs in this folder ({holder or 'it has just started'}); "
                "end it first, or choose another output_dir"
            ) from error
        except OSError as error:
            log.warning("%s: cannot be locked (%s); start no second training here", path, reason(error))
            return descriptor
        try:
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its holder removed it after we opened it
