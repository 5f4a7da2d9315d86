"""An item of a source: one video or image, where its bytes are, and its captions and pose."""

from typing import NamedTuple

from fyp_jax.data.ingest.remote import is_remote, read_remote
from fyp_jax.errors import UserError


class ItemError(UserError):
    """One item cannot be ingested; the message is the reason. The run continues without the item."""


class Rejection(NamedTuple):
    """An item that is not in the dataset."""

    name: str
    reason: str


class Blob(NamedTuple):
    """A range of bytes in a file: the whole file, or one member of a tar."""

    path: str
    """Path of this machine, or a URL."""
    offset: int
    size: int
    mtime_ns: int
    """Modification time of the file, in nanoseconds."""

    def read(self) -> bytes:
        """Read all bytes. Raises OSError where the file cannot be read, ItemError where it got shorter.

        A remote file raises SourceError in place of OSError, unless it is gone.
        """
        if is_remote(self.path):
            data = read_remote(self.path, self.offset, self.size)
        else:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        if len(data) < self.size:
            raise ItemError(f"is cut off: it has {len(data)} of {self.size} bytes")
        return data


class Caption(NamedTuple):
    """A caption that holds from a frame on."""

    frame: int
    text: str


class Item(NamedTuple):
    """One video or image with its captions and pose, or the reason why it cannot be ingested."""

    name: str
    """Path below the source; for a member of a tar, the path of the tar and the name of the member."""
    media: Blob | None = None
    captions: tuple[Caption, ...] = ()
    skeleton: Blob | None = None
    keypoints: Blob | str | None = None
    """JSON text, or the file that holds it."""
    problem: str = ""
    """Reason for a rejection that was found while listing; empty where there is none."""
