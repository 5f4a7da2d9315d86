"""People over time: which person of a frame is which person of the frames before.

Each track predicts its person's joints at constant velocity. The persons of a frame are assigned to tracks so
that the sum of their similarities is largest, where a similarity is the mean of the boxes' overlap (IoU) and
of the object keypoint similarity (OKS). People who cross keep their tracks, since they go on as they went,
also where one hides the other for a while. Their looks are not compared: two people who turn back while one
hides the other may be swapped.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from fyp_jax.pose.similarity import box_sides, boxes, iou, oks
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

MIN_JOINTS = 3
"""A person with fewer joints that can be drawn is none."""

MAX_LOST = 30  # frames without its person after which a track has ended
MIN_SIMILARITY = 0.15  # below, a person is not that of a track
VELOCITY_WEIGHT = 0.2  # of the newest displacement; limbs swing, so that a single one says little
LOST_WEIGHT = 0.7  # of a track that was not seen in the frame before, so that it takes nobody else's person

Person = Float[np.ndarray, "17 3"]
People = Float[np.ndarray, "_ 17 3"]


@dataclass
class Track:
    """One person's joints in the frames in which it was seen, by number of the frame."""

    seen: dict[int, Person] = field(default_factory=dict)
    velocity: Float[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2))
    """Pixels per frame."""

    @property
    def first(self) -> int:
        """The first frame in which the person was seen."""
        return next(iter(self.seen))

    @property
    def last(self) -> int:
        """The last frame in which the person was seen."""
        return next(reversed(self.seen))

    def keypoints(self) -> Float[np.ndarray, "f 17 3"]:
        """All frames from the first to the last one; zeros where the person was not seen."""
        dense = np.zeros((self.last - self.first + 1, 17, 3))
        for frame, person in self.seen.items():
            dense[frame - self.first] = person
        return dense

    def area(self) -> float:
        """Sum of the areas of the person's boxes over the frames in which it was seen, in pixels."""
        people = np.stack(list(self.seen.values()))
        width, height = box_sides(np.where(_visible(people)[..., None], people, 0))
        return float((width * height).sum())

    def predict(self, frame: int) -> Person:
        """Joints in a later frame, if the person goes on at the same velocity."""
        person = self.seen[self.last].copy()
        person[:, :2] += self.velocity * (frame - self.last)
        return person

    def add(self, frame: int, person: Person) -> None:
        """Take a person of a later frame into the track."""
        if self.seen:
            before = self.seen[self.last]
            common = _visible(before) & _visible(person)
            if common.any():
                displacement = np.median(person[common, :2] - before[common, :2], axis=0)
                newest = displacement / (frame - self.last)
                weight = max(VELOCITY_WEIGHT, 1 / len(self.seen))
                self.velocity = weight * newest + (1 - weight) * self.velocity
        self.seen[frame] = person


def track_people(frames: Sequence[People]) -> list[Track]:
    """The tracks of all people of consecutive frames, largest first: those of the largest sum of areas.

    A person with fewer than `MIN_JOINTS` joints that can be drawn is left out.
    """
    tracks: list[Track] = []
    active: list[Track] = []
    for frame, people in enumerate(frames):
        persons = [person for person in people if _visible(person).sum() >= MIN_JOINTS]
        active = [track for track in active if frame - track.last <= MAX_LOST]
        weights = [1.0 if track.last == frame - 1 else LOST_WEIGHT for track in active]
        assigned = _assign([track.predict(frame) for track in active], weights, persons)
        for number, person in enumerate(persons):
            if (index := assigned.get(number)) is None:
                tracks.append(Track())
                active.append(tracks[-1])
                index = -1
            active[index].add(frame, person)
    return sorted(tracks, key=Track.area, reverse=True)


def largest(tracks: Sequence[Track], max_people: int) -> list[Track]:
    """The first tracks of which at most `max_people` are there at a time.

    A smaller person takes a place that is free while it is there: somebody who leaves the image and comes
    back is a new track, and takes the same place.
    """
    places: list[list[Track]] = [[] for _ in range(max_people)]
    chosen = []
    for track in tracks:
        for place in places:
            if all(track.last < other.first or other.last < track.first for other in place):
                place.append(track)
                chosen.append(track)
                break
    return chosen


def similarity(a: Person, b: Person) -> float:
    """Mean of IoU and OKS of two persons, over the joints that both have; 0 where they have none."""
    common = (_visible(a) & _visible(b))[:, None]
    if not common.any():
        return 0.0
    one, other = (np.where(common, person, 0)[None] for person in (a, b))
    return (iou(boxes(one)[0], boxes(other)[0]) + oks(one, other)) / 2


def _assign(
    predictions: Sequence[Person], weights: Sequence[float], persons: Sequence[Person]
) -> dict[int, int]:
    """The index of the prediction for each person that has one."""
    from scipy.optimize import linear_sum_assignment  # takes a second to import, and few commands need it

    scores = np.array([[similarity(prediction, person) for person in persons] for prediction in predictions])
    scores = scores.reshape(len(predictions), len(persons))
    weighted = scores * np.array(weights).reshape(-1, 1)
    rows, columns = linear_sum_assignment(weighted, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return {column: row for row, column in pairs if scores[row, column] >= MIN_SIMILARITY}


def _visible(people: Float[np.ndarray, "*n 17 3"]) -> Bool[np.ndarray, "*n 17"]:
    return people[..., 2] >= MIN_CONFIDENCE
