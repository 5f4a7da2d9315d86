"""What a reader of a keypoint form gives, and what the readers share.

Each reader is a module with two functions. `matches(document)` tells by the content of a parsed JSON document
whether it is of this form; it never raises. `read(document)` gives a `PoseDocument`, or raises KeypointError.
"""

import math
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from fyp_jax.pose.keypoints import Joints, KeypointError, People, parse_side, stack_people
from fyp_jax.pose.skeleton import JOINTS

MAX_FRAMES = 200_000
COCO_FIRST = frozenset((17, 26, 133, 136))
"""Numbers of joints of the sets that begin with COCO's 17: COCO, Halpe's body, COCO-WholeBody, Halpe."""


class Unit(Enum):
    """The unit of x and y in a form."""

    PIXELS = "pixels"
    FRACTIONS = "fractions of the image"
    EITHER = "pixels, or fractions of the image where no joint is beyond 1"


class PoseDocument(NamedTuple):
    """The poses of a document, before unit and size of the image are settled."""

    form: str
    """The tool, and its set of joints where it has several."""
    frames: list[People]
    size: tuple[int, int] | None = None
    """Width and height of the image in pixels, where the document has them."""
    unit: Unit = Unit.PIXELS
    notes: tuple[str, ...] = ()


def is_records(document: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a document is a list of JSON objects, at least one."""
    return isinstance(document, list) and bool(document) and all(isinstance(item, dict) for item in document)


def take_coco(joints: Joints, places: Sequence[int | None]) -> Joints:
    """COCO's 17 joints from another order; `places` has the place of each there, None where it has none."""
    person = np.zeros((17, 3))
    for i, place in enumerate(places):
        if place is not None:
            person[i] = joints[place]
    return person


def take_first_17(joints: Joints, where: str, counts: frozenset[int] = COCO_FIRST) -> Joints:
    """COCO's joints from a set that begins with them. Raises KeypointError for a set of another size."""
    if len(joints) not in counts:
        raise KeypointError(
            f"{where}: has {len(joints)} joints without their names; known are 17 (COCO), and "
            f"{', '.join(map(str, sorted(counts - {17})))} that begin with COCO's"
        )
    return joints[:17]


def places_by_name(names: Sequence[object]) -> list[int | None]:
    """Where each of COCO's joints is in a list of names. Raises KeypointError where none is there."""
    plain = [re.sub(r"[^a-z]+", "_", name.lower()) if isinstance(name, str) else "" for name in names]
    places = [plain.index(joint) if joint in plain else None for joint in JOINTS]
    if all(place is None for place in places):
        raise KeypointError(f"has none of COCO's 17 joints; its joints: {_some(names)}")
    return places


def missing_names_note(places: Sequence[int | None]) -> tuple[str, ...]:
    """A note of COCO's joints that a set of joints lacks; empty where it has all."""
    missing = [name for name, place in zip(JOINTS, places, strict=True) if place is None]
    return (f"its set of joints lacks {', '.join(missing)}",) if missing else ()


def common_size(sizes: Sequence[tuple[object, object]]) -> tuple[int, int]:
    """The one width and height of all frames. Raises KeypointError where they differ or are no sizes."""
    checked = {(parse_side("width", width), parse_side("height", height)) for width, height in sizes}
    if len(checked) > 1:
        listed = _some([f"{width}x{height}" for width, height in sorted(checked)])
        raise KeypointError(f"its frames have images of several sizes ({listed}); a pose needs one size")
    return checked.pop()


def natural_order(text: str) -> tuple[list[tuple[str, int, str]], str]:
    """Sort key in which numbers count by value: frame2 before frame10."""
    pairs = [(word, number, number.lstrip("0")) for word, number in re.findall(r"([^0-9]*)([0-9]*)", text)]
    return [(word, len(digits) if number else -1, digits) for word, number, digits in pairs], text


def order_frames(people: Mapping[object, Sequence[Joints]]) -> tuple[list[People], tuple[str, ...]]:
    """Frames by number or name, and notes. The keys are numbers of frames or names of images.

    Numbers that a tool leaves out, since nobody is there, become frames without anybody. Their step is the
    largest that all numbers share; a note tells it, and a first number above 1. Names are in natural order;
    they count as numbers where they differ in their last number only. Raises KeypointError for other keys and
    too many frames.
    """
    for key in people:
        if type(key) not in (int, str):
            raise KeypointError(f"the frame {key!r:.40} is neither a number nor the name of an image")
    keys = sorted(people, key=lambda key: natural_order(str(key)))
    ordered = {key: stack_people(people[key]) for key in keys}
    numbers = _frame_numbers(list(ordered))
    if not numbers:
        return list(ordered.values()), ()
    by_number = dict(sorted(zip(numbers, ordered.values(), strict=True), key=lambda item: item[0]))
    first, last = min(numbers), max(numbers)
    step = math.gcd(*(number - first for number in numbers)) or 1
    count = (last - first) // step + 1
    if count > MAX_FRAMES:
        raise KeypointError(f"its frames are numbered from {first} to {last}; not frames of one film")
    nobody = np.zeros((0, 17, 3))
    frames = [by_number.get(number, nobody) for number in range(first, last + 1, step)]
    notes, filled = [], count - len(numbers)
    if count > 1 and (first > 1 or step > 1):
        steps = f" in steps of {step}" if step > 1 else ""
        notes.append(
            f"its frames are numbered from {first}{steps}; number {first} becomes frame 0 of the pose"
        )
    if filled:
        notes.append(
            f"{filled} of {count} frames are not in it, by their numbers; they are frames without anybody"
        )
    return frames, tuple(notes)


def _frame_numbers(keys: Sequence[object]) -> list[int] | None:
    """The number of each frame; None where the names do not count frames of one film."""
    if all(isinstance(key, int) for key in keys):
        numbers = [key for key in keys if isinstance(key, int)]
    else:
        stems = [re.sub(r"[.][A-Za-z][A-Za-z0-9]*$", "", str(key)) for key in keys]
        # Reversed, so that the last number is found in time linear in the length of a name.
        found = [re.match(r"([^0-9]*)([0-9]{1,18})(?![0-9])(.*)", stem[::-1], re.DOTALL) for stem in stems]
        if len({(match[1], match[3]) if match else None for match in found}) != 1 or found[0] is None:
            return None
        numbers = [int(match[2][::-1]) for match in found if match]
    return numbers if len(set(numbers)) == len(numbers) else None


def _some(names: Sequence[object], most: int = 8) -> str:
    shown = ", ".join(str(name)[:40] for name in names[:most])
    return shown + (f", and {len(names) - most} more" if len(names) > most else "")
