"""Sources that are no folder of this machine: `gs://bucket/clips`, and whatever else fsspec lists and reads.

A remote path is a `UPath` of universal-pathlib (the extra `buckets`): no `pathlib.Path`, but with what is
used of one here.
"""

import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fyp_jax.errors import UserError, reason

if TYPE_CHECKING:
    SourcePath = Path
else:
    SourcePath = object  # Path | UPath, where UPath is installed

_LOCAL = "file:///"


class SourceError(UserError):
    """A remote source failed. Unlike a broken item, that ends the run: it may be well a minute later."""


def source_path(text: str) -> SourcePath:
    """A path of this machine, or a remote one for a URL.

    Raises UserError where fsspec knows no such URL or lacks a package for it, and for web pages and chains.
    """
    if text.startswith(_LOCAL):
        return Path("/", text.removeprefix(_LOCAL))
    if "://" not in text:
        return Path(text)
    if text.startswith("file://"):
        raise UserError(f"{text}: names a machine; write {_LOCAL} and the rest of an absolute path")
    if text.startswith(("http://", "https://")):
        raise UserError(f"{text}: a web server lists no files; download them, or give a bucket")
    if "::" in text:
        raise UserError(f"{text}: has ::, which chains file systems in fsspec, and cannot be read here")
    try:
        from upath import UPath  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{text} needs universal-pathlib: pip install 'fyp_jax[buckets]'") from error
    try:
        path = UPath(text)
        path.fs  # noqa: B018  # imports the package of this kind of URL
    except (ImportError, ValueError) as error:
        raise UserError(f"{text}: cannot be opened ({reason(error)})") from error
    return cast(SourcePath, path)


def is_remote(path: str | SourcePath) -> bool:
    """Whether `source_path` made a remote path of it; `path` may be the text of one."""
    return "://" in str(path)


@contextmanager
def remote_errors(path: str | SourcePath, kind: type[Exception] = Exception) -> Iterator[None]:
    """Raise SourceError for errors of a remote path, unless a file is missing; those of a local path stay.

    Each kind of bucket has errors of its own, and some of these are no OSError.
    """
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except kind as error:
        if not is_remote(path):
            raise
        raise SourceError(f"{path}: cannot be read ({reason(error)}); run the same command again") from error


def path_type(path: SourcePath) -> str:
    """What a path leads to: "file", "directory", or "" where it leads nowhere or cannot be a file's.

    For a remote path, `exists` and `is_file` would say no where the bucket fails.
    """
    if not is_remote(path):
        return "directory" if os.path.isdir(path) else "file" if os.path.isfile(path) else ""
    remote: Any = path
    try:
        with remote_errors(path):
            return remote.fs.info(remote.path)["type"]
    except FileNotFoundError:
        return ""


def remote_stat(path: SourcePath) -> tuple[int, int]:
    """Bytes of a remote file, and its modification time in nanoseconds (0 where its kind knows none)."""
    remote: Any = path
    with remote_errors(path):
        size = int(remote.fs.info(remote.path)["size"])
        try:
            return size, round(remote.fs.modified(remote.path).timestamp() * 1e9)
        except NotImplementedError:
            return size, 0


def read_remote(url: str, offset: int, size: int) -> bytes:
    """Read a range of a remote file, in one request. Raises FileNotFoundError where it is gone."""
    remote: Any = source_path(url)
    try:
        with remote_errors(url):
            return remote.fs.cat_file(remote.path, start=offset, end=offset + size)
    except FileNotFoundError as error:  # some kinds give no errno and no message
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error


def walk_files(folder: SourcePath) -> Iterator[str]:
    """Paths below a folder, also a remote one, of all files in it and in its folders."""
    if not is_remote(folder):
        for parent, _, names in os.walk(folder):
            yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names)
        return
    remote: Any = folder
    with remote_errors(folder):
        paths = remote.fs.find(remote.path)
    yield from (posixpath.relpath(path, remote.path) for path in paths)
