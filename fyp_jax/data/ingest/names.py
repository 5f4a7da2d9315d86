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
from pathlib import Path, PureWindowsPath

from fyp_jax.data.ingest.items import Blob, ItemError
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


def file_blob(path: str | os.PathLike[str]) -> Blob:
    """All bytes of a file. Raises OSError."""
    stat = os.stat(path)
    return Blob(str(path), 0, stat.st_size, stat.st_mtime_ns)


class SourceFolder:
    """The folder of a source, in which files are found by name; links are followed, wherever they lead."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed = lru_cache(_FOLDERS_KEPT)(_list_folder)

    def find(self, name: str, what: str = "file") -> Blob:
        """Find the file of a name. Raises ItemError where there is none, or more than one that fits."""
        if not name.strip():
            raise ItemError(f"has no {what} name")
        if is_outside(name):
            raise ItemError(f"its {what} is outside the source folder")
        path = os.path.normpath(self.path / name)
        try:
            if not os.path.lexists(path):
                path = self._closest(name, what)
            blob = file_blob(path)
            path.encode()  # the record stores it as UTF-8
        except (OSError, ValueError) as error:
            raise ItemError(
                f"no such {what}" + ("" if isinstance(error, FileNotFoundError) else f" ({reason(error)})")
            ) from error
        if os.path.isdir(path):
            raise ItemError(f"its {what} is a folder")
        return blob

    def name_of(self, blob: Blob) -> str:
        """Path of a found file below the folder."""
        return os.path.relpath(blob.path, self.path)

    def _closest(self, name: str, what: str) -> str:
        path = posixpath.normpath(name.replace("\\", "/"))
        if is_outside(path) or PureWindowsPath(name).drive:
            raise ItemError(f"its {what} is outside the source folder")
        for fold in (_canonical, _caseless):
            found = [str(self.path)]
            for part in path.split("/"):
                found = [
                    os.path.join(base, entry)
                    for base in found
                    for entry in self._listed(base, fold).get(fold(part), ())
                ]
            found = [file for file in found if os.path.isfile(file)]
            if len(found) == 1:
                return found[0]
            if found:
                names = [ascii(os.path.relpath(file, self.path)) for file in found]
                raise ItemError(
                    f"no such {what}; {len(found)} files differ from its name in case or Unicode form alone "
                    f"({list_names(names)}); name one of them exactly"
                )
        raise ItemError(f"no such {what}")


def _canonical(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _caseless(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _list_folder(folder: str, fold: Callable[[str], str]) -> dict[str, list[str]]:
    """Entries of a folder by their folded names; none where it cannot be listed."""
    entries: dict[str, list[str]] = defaultdict(list)
    try:
        for name in sorted(os.listdir(folder)):
            entries[fold(name)].append(name)
    except OSError:
        return {}
    return dict(entries)
