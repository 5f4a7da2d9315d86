"""Uploads an exported folder to a repository of the Hugging Face Hub, in one commit."""

import contextlib
import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from fyp_jax.convert.safetensors_files import MANIFEST
from fyp_jax.errors import UserError, reason

CONFLICT, FORBIDDEN, UNAUTHORIZED = 409, 403, 401
CARD = "README.md"
MADE_BY_THE_HUB = ".gitattributes"
LOG_IN = "run `hf auth login` with a token that may write, or set HF_TOKEN to one"
REMOTE = ("/", "~", "\\", "gs://", "s3://")
"""What names of places begin with that tell about the machine or the bucket of whoever exports."""


class HubRepository(NamedTuple):
    """A repository that an export is to be uploaded to."""

    name: str
    """OWNER/NAME."""
    private: bool
    exported: tuple[str, ...]
    """Files of an earlier export, which the new one replaces."""


def open_repository(name: str, private: bool, overwrite: bool) -> HubRepository:
    """The repository OWNER/NAME, or NAME of whoever is logged in. It is created where there is none.

    Raises UserError where nobody is logged in or has no right to write, where the repository has files and
    `overwrite` is not given, or has some that no export wrote, or is public and should be `private`.
    """
    api, no_answer = huggingface_hub.HfApi(), "the Hub cannot be asked"
    with _upload_errors(name, no_answer):
        user = api.whoami()["name"]
        name = name if "/" in name else f"{user}/{name}"
    with _upload_errors(name, no_answer):
        try:
            api.create_repo(name, private=private or None)
            return HubRepository(name, private, ())
        except HfHubHTTPError as error:
            if _status(error) != CONFLICT:
                raise
        return _existing(api, name, private, overwrite)


def _existing(api: huggingface_hub.HfApi, name: str, private: bool, overwrite: bool) -> HubRepository:
    info = api.model_info(name)
    if private and not info.private:
        raise UserError(f"{name}: exists and is public; make it private in its settings, or leave --private")
    files = {file.rfilename for file in info.siblings or ()} - {MADE_BY_THE_HUB}
    if files and not overwrite:
        raise UserError(f"{name}: exists already (--overwrite replaces the files of an earlier export)")
    exported: set[str] = {CARD}
    if MANIFEST in files:
        exported |= _files_of(Path(api.hf_hub_download(name, MANIFEST)))
    elif files - exported:
        raise UserError(f"{name}: has no {MANIFEST}, so no export wrote it and it is not overwritten")
    return HubRepository(name, bool(info.private), tuple(sorted(exported & files)))


def upload(repository: HubRepository, folder: Path, again: str) -> str:
    """Upload what an export wrote into a folder, and delete those files of an earlier export that it does not
    have. Gives the URL.

    Other files of the folder are not sent. The repository changes only when all files have arrived. `again`
    says in the message of an error how to go on. Raises UserError.
    """
    with _upload_errors(repository.name, "the upload did not finish", f"; {again}"):
        commit = huggingface_hub.HfApi().upload_folder(
            repo_id=repository.name,
            folder_path=folder,
            commit_message="Export of fyp_jax",
            allow_patterns=[glob.escape(name) for name in sorted(_files_of(folder / MANIFEST))],
            delete_patterns=[glob.escape(name) for name in repository.exported] or None,
        )
    return str(commit.commit_url).split("/commit/")[0]


def _files_of(manifest: Path) -> set[str]:
    """The files of an export, by its `conversion.json`."""
    written = json.loads(manifest.read_text())
    return {MANIFEST, *written["files"], *written["other_files"]}


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values in which names of files and folders of this machine, or in buckets, are their last part
    alone."""

    def shorten(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: shorten(x) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [shorten(x) for x in value]
        is_place = isinstance(value, str) and (value.startswith(REMOTE) or value[1:3] == ":\\")
        return PurePosixPath(value.replace("\\", "/")).name if is_place else value

    return shorten(values)


@contextlib.contextmanager
def _upload_errors(name: str, what: str, again: str = "") -> Iterator[None]:
    """While it is open, errors of the Hub's library become a UserError that ends in `again`. `what` says what
    the network's errors mean."""
    try:
        yield
    except UserError:
        raise
    except LocalTokenNotFoundError as error:
        raise UserError(f"{name}: nobody is logged in to the Hub; {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it") from error
    except (OSError, ValueError, RuntimeError) as error:
        cause = (error.__cause__ or error) if isinstance(error, RuntimeError) else error
        status = _status(cause)
        owner = name.split("/")[0]
        if status == UNAUTHORIZED:
            message = f"the Hub does not take this token; {LOG_IN}"
        elif status == FORBIDDEN:
            message = f"this token may not write to repositories of {owner}; {LOG_IN}, or choose another name"
        elif isinstance(cause, ValueError) and status is None:
            message = f"the Hub does not take it ({' '.join(str(cause).split())[:300]}){again}"
        else:
            message = f"{what} ({type(cause).__name__}: {reason(cause)}){again}"
        raise UserError(f"{name}: {message}") from error


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer, where the error is one."""
    return getattr(getattr(error, "response", None), "status_code", None)
