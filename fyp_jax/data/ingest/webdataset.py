"""Tars in the layout of WebDataset: members KEY.* of a tar, in any order, are one item.

Videos: KEY.mp4 (.webm, ...) and KEY.txt or KEY.json. Images: KEY.jpg (.png, .webp), KEY.skeleton.png or
KEY.keypoints.json, and KEY.txt or KEY.json. A KEY.json has the fields of a metadata row. As in WebDataset,
the suffix starts at the first dot of a name.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from fyp_jax.data.ingest.items import Blob, Item
from fyp_jax.data.ingest.names import file_blob, is_litter
from fyp_jax.data.ingest.remote import SourcePath, remote_errors
from fyp_jax.data.ingest.samples import media_suffixes, sample_item
from fyp_jax.errors import reason

_BLOCK = 512  # bytes
LINK = "is a link, not a file; make the tar with --dereference and --hard-dereference"


class _Index(NamedTuple):
    """Where the members of a tar are. Holds names and offsets alone, since a tar may have millions."""

    groups: dict[str, tuple[str, dict[str, tuple[int, int]]]]
    """For each sample, in the order of its first member: its key as written, and (offset, size) by suffix."""
    problems: list[Item]
    """Members that are not read, with the reason."""


def webdataset_items(kind: str, tar: SourcePath, source: SourcePath) -> Iterator[Item]:
    """Items of one tar; the rest of a tar that is cut off or damaged is one item with a problem."""
    tar_name = tar.relative_to(source)
    groups, problems = _index(tar, str(tar_name))
    try:
        mtime_ns = file_blob(tar).mtime_ns
        for key, members in groups.values():
            parts = {suffix: Blob(str(tar), *member, mtime_ns) for suffix, member in members.items()}
            yield sample_item(kind, f"{tar_name}/{key}", parts, _dots_hint(kind, key, parts))
    except OSError as error:
        yield Item(str(tar_name), problem=f"cannot be read ({reason(error)})")
    yield from problems


def _index(tar: SourcePath, tar_name: str) -> _Index:
    index = _Index({}, [])
    last_key, offset = "", -1
    try:
        # "r:" is uncompressed: members are read at their offset
        with (
            remote_errors(tar, OSError),
            tar.open("rb") as file,
            tarfile.open(fileobj=file, mode="r:", errors="replace") as members,
        ):
            while (member := members.next()) is not None:
                members.members = []  # pyright: ignore[reportAttributeAccessIssue]  # it would hold all
                if member.offset <= offset or member.size < 0:  # older versions of Python go round in circles
                    raise tarfile.ReadError("a member has a negative size")
                offset = member.offset
                if is_litter(member.name):
                    continue
                if member.islnk() or member.issym():
                    index.problems.append(Item(f"{tar_name}/{member.name}", problem=LINK))
                elif member.isfile():
                    last_key = _add(index, member, tar_name)
            problem = _what_follows(members)
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        problem = f"is not an uncompressed tar, or is cut off ({reason(error)})"
        index.groups.pop(last_key, None)  # its data may be what is cut off
    if problem:
        index.problems.append(Item(tar_name, problem=problem))
    return index


def _add(index: _Index, member: tarfile.TarInfo, tar_name: str) -> str:
    """Add a member to its group, and return the key of that."""
    key, suffix = _split_key(member.name)
    group = posixpath.normpath(key)  # ./a and a are one
    parts = index.groups.setdefault(group, (key, {}))[1]
    if member.issparse():
        index.problems.append(
            Item(f"{tar_name}/{member.name}", problem="is stored sparse; make the tar without --sparse")
        )
    elif suffix in parts:
        index.problems.append(
            Item(
                f"{tar_name}/{member.name} at byte {parts[suffix][0]}",
                problem="occurs again later in the tar; the last one counts, as it does for tar itself",
            )
        )
    if not member.issparse():
        parts[suffix] = (member.offset_data, member.size)
    return group


def _what_follows(members: tarfile.TarFile) -> str:
    """Problem with the bytes behind the last member: a tar ends there, or goes on with blocks of zeros."""
    file: Any = members.fileobj
    offset = members.offset
    file.seek(offset)
    while (block := file.read(_BLOCK)) and not block.strip(b"\0"):
        pass
    if not block:
        return ""
    at = file.tell() - len(block)
    if at == offset:
        return f"is damaged, or cut off, at byte {at}; the members from there on are not read"
    if block[257:262] == b"ustar":
        return (
            f"has more members behind its end, from byte {at} on, as `cat a.tar b.tar` makes; they are not "
            "read: join tars with tar --concatenate"
        )
    return ""


def _split_key(member: str) -> tuple[str, str]:
    """Key and suffix as WebDataset has them: cut at the first dot after the last slash."""
    folder, slash, name = member.rpartition("/")
    key, dot, suffix = name.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _dots_hint(kind: str, key: str, parts: dict[str, Blob]) -> str:
    """Words on the first dot, where a name with several dots hides the media."""
    for suffix in parts:
        if suffix.rfind(".") > 0 and suffix[suffix.rfind(".") :] in media_suffixes(kind):
            name = posixpath.basename(key)
            return (
                f"; WebDataset cuts a name at its first dot, so the key of {name}{suffix} is {name}: "
                "rename the members, with no dot but that of the suffix"
            )
    return ""
