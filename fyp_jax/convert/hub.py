"""Files of the Hugging Face Hub. Whatever is read from there comes through here.

OWNER/NAME is a repository, OWNER/NAME@REVISION a branch, tag or commit of it, and OWNER/NAME/FILE or
OWNER/NAME@REVISION/FILE one of its files, as in the library's own file system. Without network access (and
with HF_HUB_OFFLINE=1) the local cache answers.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fyp_jax.errors import UserError, reason

NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?"
    r"(?:/(?P<file>[^/].*))?",
    re.ASCII,
)


class HubName(NamedTuple):
    """What a name of the Hub says."""

    repository: str
    """OWNER/NAME."""
    revision: str | None
    """Branch, tag or commit; None is the main branch. A slash in it is written %2F."""
    file: str | None
    """Path in the repository; None is all of it."""


def parse_hub_name(name: str) -> HubName | None:
    """What a name says if it can be one of the Hub, else None. Nothing is asked."""
    found = NAME.fullmatch(name)
    if found is None:
        return None
    revision = found["revision"]
    return HubName(found["repository"], None if revision is None else unquote(revision), found["file"])


def download_files(name: str, patterns: Sequence[str], not_found: str) -> Path:
    """The folder of a repository's local copy with those of its files that match a pattern.

    Raises UserError where it cannot be downloaded; the message begins with `not_found`.
    """
    hub = _parsed(name)
    with _hub_errors(hub, not_found, "folder"):
        return Path(
            huggingface_hub.snapshot_download(
                hub.repository, revision=hub.revision, allow_patterns=list(patterns)
            )
        )


def download_file(name: str, file: str, not_found: str) -> Path:
    """The local copy of one file of a repository. Raises as `download_files`."""
    hub = _parsed(name)
    with _hub_errors(hub, not_found, "file"):
        return Path(huggingface_hub.hf_hub_download(hub.repository, file, revision=hub.revision))


def list_top_files(name: str, not_found: str) -> list[str]:
    """The names of the files in a repository's top folder; without network access, of those in the local
    cache. Raises as `download_files`."""
    hub = _parsed(name)
    with _hub_errors(hub, not_found, "file"):
        try:
            files = huggingface_hub.HfApi().list_repo_files(hub.repository, revision=hub.revision)
            return [file for file in files if "/" not in file]
        except RepositoryNotFoundError:
            raise
        except OSError as error:
            with contextlib.suppress(LocalEntryNotFoundError):
                folder = huggingface_hub.snapshot_download(
                    hub.repository, revision=hub.revision, local_files_only=True
                )
                return [file.name for file in Path(folder).iterdir() if file.is_file()]
            raise error


def find_file(name: str) -> Path:
    """The path of a file: of this machine, or the local copy of OWNER/NAME/FILE of the Hub.

    A name that cannot be on the Hub is given back as a path, whether it is there or not. Raises UserError
    where a file of the Hub cannot be downloaded.
    """
    path = Path(name).expanduser()
    hub = None if path.exists() else parse_hub_name(name)
    if hub is None or hub.file is None:
        return path
    return download_file(name, hub.file, f"{name}: no such file")


def _parsed(name: str) -> HubName:
    hub = parse_hub_name(name)
    if hub is None:
        raise UserError(f"{name}: not a name of the Hub, which is OWNER/NAME")
    return hub


@contextlib.contextmanager
def _hub_errors(hub: HubName, not_found: str, kind: str) -> Iterator[None]:
    """While it is open, errors of the Hub's library become a UserError that says what to do."""
    begin = f"{not_found}; as a Hub id it cannot be downloaded"
    url = f"https://huggingface.co/{hub.repository}"
    try:
        yield
    except UserError:
        raise
    except GatedRepoError as error:
        raise UserError(f"{begin}: accept its terms at {url}, and log in with `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{begin}: the Hub has no {hub.repository}, or it is private; log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{begin}: {hub.repository} has no revision {hub.revision}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(f"{begin}: {hub.repository} has no such file") from error
        revision = "" if hub.revision is None else f" --revision {hub.revision}"
        raise UserError(
            f"{begin} ({type(error).__name__}: {reason(error)}); if this machine is offline, run "
            f"`hf download {hub.repository}{revision}` on another one and give the {kind}"
        ) from error
