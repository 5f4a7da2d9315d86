"""Opening keypoints of any form: a JSON file, or a folder with a JSON file for each frame.

The form is recognised by the content. `formats/` has one module for each.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fyp_jax.errors import UserError, reason
from fyp_jax.media.errors import MissingFileError
from fyp_jax.media.images import Image
from fyp_jax.media.reading import require_frames
from fyp_jax.pose.formats import (
    alphapose,
    coco_annotations,
    coco_results,
    controlnet,
    mediapipe,
    mmpose,
    openpose,
    own,
    ultralytics,
)
from fyp_jax.pose.formats.document import PoseDocument, Unit, is_records, natural_order
from fyp_jax.pose.keypoints import (
    BadPoseError,
    KeypointClip,
    KeypointError,
    People,
    check_people,
    check_unit,
    confident_places,
    look_like_fractions,
    parse_people,
    parse_person,
    parse_side,
)
from fyp_jax.pose.skeleton import draw_skeleton

log = logging.getLogger(__name__)

# A form stands before another one that would take its documents as well.
FORMATS = (
    controlnet,
    openpose,
    coco_annotations,
    mmpose,
    mediapipe,
    own,
    alphapose,
    coco_results,
    ultralytics,
)
KNOWN = (
    "OpenPose, ControlNet (DWPose), MMPose, AlphaPose, COCO results and annotations, MediaPipe, Ultralytics, "
    "and our own, which needs width, height and frames"
)
NOT_PEOPLE = "its keypoints are not JSON of 17x3 numbers per person"
OPENPOSE_SUFFIX = "_keypoints.json"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of "512x768". Raises UserError for other text."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6}) ?[xX] ?([0-9]{1,6})", text.strip())
    if match is None:
        raise UserError(f"the size {text!r} is not WIDTHxHEIGHT in pixels, such as 1280x720")
    return parse_side("width", int(match[1])), parse_side("height", int(match[2]))


def is_keypoint_file(file: Path) -> bool:
    """Whether a file is keypoints: by its suffix, or since its text begins as JSON does."""
    if file.suffix.lower() == ".json":
        return True
    try:
        with open(file, "rb") as opened:
            return opened.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    except OSError:
        return False


def keypoint_files(folder: Path) -> list[Path]:
    """The keypoint files of a folder in natural order, one for each frame.

    Where files are named as OpenPose names them, only these count. Raises BadPoseError where they belong to
    several clips.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() == ".json" and file.is_file()]
    files = [file for file in files if not file.name.startswith(".")]
    named = [file for file in files if file.name.endswith(OPENPOSE_SUFFIX)]
    stems = {re.sub(r"_?[0-9]+$", "", file.name.removesuffix(OPENPOSE_SUFFIX)) for file in named}
    if len(stems) > 1:
        clips = ", ".join(sorted(stems)[:8])
        raise BadPoseError(
            folder, f"holds keypoint files of {len(stems)} clips ({clips}); give each a folder"
        )
    return sorted(named or files, key=lambda file: natural_order(file.stem))


def load_keypoints(path: str | os.PathLike[str], size: str | None = None) -> KeypointClip:
    """Read all frames of a keypoint file, or of a folder with a file for each frame, in any known form.

    `size`, such as "1280x720", is the image in whose pixels the joints are, for forms that do not say it.
    Raises UserError for another size, MissingFileError, BadPoseError.
    """
    path, given = Path(path), parse_size(size)
    if not os.path.exists(path):
        raise MissingFileError(path, "no such file")
    files = keypoint_files(path) if path.is_dir() else [path]
    if not files:
        raise BadPoseError(path, "no .json file in this folder")
    documents = [(file, _read_json(file)) for file in files]
    try:
        if not path.is_dir():
            return settle(read_document(documents[0][1]), given)
        return settle(_join(documents), given)
    except KeypointError as error:
        raise BadPoseError(path, str(error)) from error


def render_keypoints(path: Path, indices: range, size: str | None = None) -> Iterator[Image]:
    """Render frames of keypoints as skeletons, at the size of their image.

    Raises UserError as `load_keypoints` does, BadPoseError where nobody is seen, and ClipTooShort. Notes of
    the clip are logged as warnings.
    """
    clip = load_keypoints(path, size)
    require_frames(path, len(clip.frames), indices)
    try:
        check_people(clip.frames, clip.width, clip.height)
    except KeypointError as error:
        raise BadPoseError(path, str(error)) from error
    for note in clip.notes:
        log.warning("%s: %s", path, note)
    frames = [clip.frames[index] for index in indices]
    if not len(confident_places(frames)):
        log.warning("%s: no person is seen in the %d frames that are taken", path, len(frames))
    for people in frames:
        yield draw_skeleton(people, clip.height, clip.width)


def parse_image_keypoints(text: str | bytes, width: int, height: int) -> People:
    """Parse the people of one image from JSON, and check them as those of a pose.

    The JSON is 17x3 numbers or 51, a list of these, an object with one of these as `keypoints`, or a document
    of one frame in any known form. Joints are pixels of width x height. Raises KeypointError.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeypointError(f"{NOT_PEOPLE} ({reason(error)})") from error
    is_bare = isinstance(document, dict) and "keypoints" in document
    if is_bare or not any(form.matches(document) for form in FORMATS):
        people = _bare_people(document["keypoints"] if is_bare else document)
        check_people([people], width, height)
        return people
    frames = settle(read_document(document), (width, height)).frames
    if len(frames) != 1:
        raise KeypointError(f"its keypoints have {len(frames)} frames, but an image has one")
    check_people(frames, width, height)
    return frames[0]


def read_document(document: object) -> PoseDocument:
    """Read a parsed JSON document in the form that its content shows. Raises KeypointError."""
    form = next((form for form in FORMATS if form.matches(document)), None)
    if form is None:
        raise KeypointError(f"its JSON is {_outline(document)}, which is no known form of keypoints: {KNOWN}")
    try:
        return form.read(document)  # pyright: ignore[reportArgumentType]
    except RecursionError as error:
        raise KeypointError("its JSON is nested too deeply") from error


def settle(document: PoseDocument, given: tuple[int, int] | None) -> KeypointClip:
    """Bring the joints of a document to pixels of one size of image.

    `given` is the (width, height) that the user says. Raises KeypointError where the document says another
    size or none is known, and where joints are fractions in a form of pixels.
    """
    form, frames, size = document.form, document.frames, document.size or given
    if document.size and given and document.size != given:
        raise KeypointError(
            f"the image has {given[0]}x{given[1]} pixels as given, but its keypoints say "
            f"{document.size[0]}x{document.size[1]}"
        )
    if size is None:
        raise KeypointError(_ask_for_size(document))
    fractions = document.unit is Unit.FRACTIONS or (
        document.unit is Unit.EITHER and look_like_fractions(frames, size)
    )
    if fractions:
        frames = [people * (*size, 1) for people in frames]
    check_unit(frames, *size)
    return KeypointClip(*size, frames, form, document.notes)


def _ask_for_size(document: PoseDocument) -> str:
    places = confident_places(document.frames)
    reach = ""
    if document.unit is Unit.PIXELS and len(places):
        x, y = np.ceil(places.max(axis=0)).astype(int)
        reach = f" (its joints reach to x={x} y={y})"
    return (
        f"is {document.form} with {len(document.frames)} frames, but without the size of the image{reach}; "
        "give the size of the film that the poses are of: pose.size=WIDTHxHEIGHT for sample.py, "
        "--size WIDTHxHEIGHT for scripts/convert_poses.py"
    )


def _join(documents: Sequence[tuple[Path, Any]]) -> PoseDocument:
    """The clip of files that hold one frame each. Raises BadPoseError with the file that does not."""
    read: list[PoseDocument] = []
    for file, document in documents:
        try:
            nobody = document is None or document == []
            read.append(PoseDocument("", [np.zeros((0, 17, 3))]) if nobody else read_document(document))
            if len(read[-1].frames) != 1:
                raise KeypointError(
                    f"has {len(read[-1].frames)} frames; a folder has one file for each frame"
                )
        except KeypointError as error:
            raise BadPoseError(file, str(error)) from error
    told = [one for one in read if one.form]
    tools, sizes = {one.form.split()[0] for one in told}, {one.size for one in told}
    if len(tools) > 1 or len(sizes) > 1:
        what = f"forms ({', '.join(sorted(tools))})" if len(tools) > 1 else "sizes of image"
        raise KeypointError(f"its files have different {what}; keep those of one clip")
    form = max((one.form for one in told), key=len, default="keypoints")
    unit, size = (told[0].unit, told[0].size) if told else (Unit.PIXELS, None)
    notes = tuple(dict.fromkeys(note for one in told for note in one.notes))
    return PoseDocument(form, [one.frames[0] for one in read], size, unit, notes)


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())  # finds byte order marks, and UTF-16
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise BadPoseError(file, f"not readable as JSON ({reason(error)})") from error


def _bare_people(value: object) -> People:
    """People of joints alone: one person, or a list of persons."""
    try:
        if isinstance(value, list) and (len(value) == 17 or not any(isinstance(v, list) for v in value)):
            with contextlib.suppress(KeypointError):
                return parse_person(value, "the person")[None]
        return parse_people(value, "the JSON")
    except KeypointError as error:
        raise KeypointError(f"{NOT_PEOPLE} ({error})") from error


def _outline(document: object) -> str:
    """A few words on what a JSON document is."""
    if isinstance(document, dict):
        return f"an object of {', '.join(repr(key)[:40] for key in list(document)[:8]) or 'nothing'}"
    if isinstance(document, list):
        return f"a list of {len(document)}" + (
            f", first {_outline(document[0])}" if is_records(document) else ""
        )
    return f"a {type(document).__name__}"
