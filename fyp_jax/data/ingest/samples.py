"""Files with one name and different suffixes as one item: members of a tar, or files side by side."""

from collections.abc import Iterable, Mapping

from fyp_jax.data.ingest.encoding import decode_utf8
from fyp_jax.data.ingest.fields import image_item, keypoints_json, parse_captions, parse_json
from fyp_jax.data.ingest.items import Blob, Item, ItemError
from fyp_jax.trees import list_names

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".webp")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".avif", ".heic", ".heif"))
SECONDARY = {
    "captioned_videos": frozenset((".webp",)),
    "pose_images": frozenset((".avif", ".heic", ".heif")),
}
"""Suffixes that count only where a sample has no other media: a thumbnail, or the original of a picture."""
MAX_TEXT_BYTES = 2**26
"""Largest .txt or .json: it is read while listing, and must not fill the memory."""


def media_suffixes(kind: str) -> frozenset[str]:
    """Suffixes of the files that a dataset of this kind holds."""
    return VIDEO_SUFFIXES if kind == "captioned_videos" else IMAGE_SUFFIXES


def find_media(kind: str, suffixes: Iterable[str]) -> list[str]:
    """Those of a sample's suffixes that are its media; SECONDARY ones only where there are no others."""
    found = [suffix for suffix in suffixes if suffix.lower() in media_suffixes(kind)]
    return [suffix for suffix in found if suffix.lower() not in SECONDARY[kind]] or found


def sample_item(kind: str, key: str, parts: Mapping[str, Blob], hint: str = "") -> Item:
    """Make the item of the files KEY.*; `parts` has them by suffix, with its dot.

    The caption is .txt, or a .json with the fields of a metadata row; the pose is .skeleton.png or
    .keypoints.json. A fault becomes the item's problem; `hint` goes behind the one that there is no media.
    """
    media = find_media(kind, parts)
    lower = {suffix.lower(): blob for suffix, blob in parts.items()}
    name = key + media[0] if media else key
    try:
        name.encode()  # the record stores it as UTF-8
        if len(media) != 1:
            what = "video" if kind == "captioned_videos" else "image"
            raise ItemError(
                f"has {len(media)} {what}s among its members ({list_names(sorted(parts))})"
                + (hint if not media else "")
            )
        row = parse_json(_text(lower[".json"], "its .json"), "its .json") if ".json" in lower else {}
        if not isinstance(row, dict):
            raise ItemError("its .json is not a JSON object")
        if ".txt" in lower:
            row = {**row, "text": decode_utf8(_text(lower[".txt"], "its caption"), "its caption")}
        if kind == "captioned_videos":
            return Item(name, parts[media[0]], parse_captions([row]))
        skeletons = [blob for suffix, blob in lower.items() if suffix.startswith(".skeleton.")]
        keypoints = lower.get(".keypoints.json", keypoints_json(row.get("keypoints")))
        return image_item(name, parts[media[0]], row, skeletons[0] if skeletons else None, keypoints)
    except UnicodeEncodeError:
        return Item(name, problem="its name is not UTF-8; rename it")
    except ItemError as error:
        return Item(name, problem=str(error))


def _text(blob: Blob, what: str) -> bytes:
    if blob.size > MAX_TEXT_BYTES:
        raise ItemError(f"{what} has {blob.size} bytes, at most {MAX_TEXT_BYTES} are read")
    return blob.read()
