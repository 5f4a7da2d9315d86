"""Files of a source by the names that metadata give them.

A name that is not there as written stands for the file that differs from it in slashes, Unicode form or case
alone, if there is just one: metadata are often written on another system than the one that reads them.
"""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import PureWindowsPath

from fyp_jax.data.ingest.items import Blob, ItemError
from fyp_jax.data.ingest.remote import SourcePath, is_remote, path_type, remote_errors, remote_stat
from fyp_jax.errors import reason
from fyp_jax.trees import list_names

_LITTER = frozenset((".ds_store", "__macosx", "thumbs.db", "desktop.ini"))
_FOLDERS_KEPT = 16  # folders whose listing is held in memory


def is_litter(path: str) -> bool:
    """Whether a file is not the user's: one that macOS or Windows put there."""
    return any(part.startswith("._") or part.lower() in _LITTER for part in path.split("/"))


def is_outside(path: str) -> bool:
    """Whether a path below a folder leads out of it by `..` or by being absolute."""
    return os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir


def file_blob(path: SourcePath) -> Blob:
    """All bytes of a file. Raises OSError, and SourceError for a remote one."""
    if is_remote(path):
        return Blob(str(path), 0, *remote_stat(path))
    stat = path.stat()
    return Blob(str(path), 0, stat.st_size, stat.st_mtime_ns)


class SourceFolder:
    """The folder of a source, in which files are found by name; links are followed, wherever they lead."""

    def __init__(self, path: SourcePath) -> None:
        self.path = path
        self._listed = lru_cache(_FOLDERS_KEPT)(_list_folder)

    def find(self, name: str, what: str = "file") -> Blob:
        """Find the file of a name. Raises ItemError where there is none, or more than one that fits."""
        if not name.strip():
            raise ItemError(f"has no {what} name")
        if is_outside(name):
            raise ItemError(f"its {what} is outside the source folder")
        path = self.path / os.path.normpath(name)
        try:
            if not (path_type(path) if is_remote(path) else os.path.lexists(path)):
                path = self._closest(name, what)
            if path_type(path) == "directory":
                raise ItemError(f"its {what} is a folder")
            blob = file_blob(path)
            blob.path.encode()  # the record stores it as UTF-8
        except (OSError, ValueError) as error:
            raise ItemError(
                f"no such {what}" + ("" if isinstance(error, FileNotFoundError) else f" ({reason(error)})")
            ) from error
        return blob

    def name_of(self, blob: Blob) -> str:
        """Path of a found file below the folder."""
        return os.path.relpath(blob.path, str(self.path))

    def _closest(self, name: str, what: str) -> SourcePath:
        path = posixpath.normpath(name.replace("\\", "/"))
        if is_outside(path) or PureWindowsPath(name).drive:
            raise ItemError(f"its {what} is outside the source folder")
        for fold in (_canonical, _caseless):
            found = [self.path]
            for part in path.split("/"):
                found = [
                    base / entry for base in found for entry in self._listed(base, fold).get(fold(part), ())
                ]
            found = [file for file in found if path_type(file) == "file"]
            if len(found) == 1:
                return found[0]
            if found:
                names = [ascii(os.path.relpath(str(file), str(self.path))) for file in found]
                raise ItemError(
                    f"no such {what}; {len(found)} files differ from its name in case or Unicode form alone "
                    f"({list_names(names)}); name one of them exactly"
                )
        raise ItemError(f"no such {what}")


def _canonical(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _list_folder(folder: SourcePath, fold: Callable[[str], str]) -> dict[str, list[str]]:
    """Entries of a folder by their folded names; none where it cannot be listed."""
    entries: dict[str, list[str]] = defaultdict(list)
    try:
        with remote_errors(folder):
            names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return {}
    for name in names:
        entries[fold(name)].append(name)
    return dict(entries)
