"""One dance as the keypoint files of other tools, written from their documentation and not with our readers.

A dance is a list of frames, each a list of persons [17 3]: x and y in pixels, and a confidence of 0 or 1.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.kinematics import Figure, Stance, joint_positions
from fyp_jax.synthetic.planar_motions import PLANAR_MOTIONS

WIDTH, HEIGHT = 512, 384
SIZE = f"{WIDTH}x{HEIGHT}"
Dance = list[list[np.ndarray]]

BODY_25 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
COCO_18 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow",
    "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
MEDIAPIPE = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index",
    "left_thumb", "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle", "left_heel", "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
HALPE_26 = (*JOINTS, "head", "neck", "hip", *(f"foot {i}" for i in range(6)))
FRACTION = np.array([WIDTH, HEIGHT, 1.0])


def motion_keypoints(name: str, figure: Figure, num_frames: int, seed: int, side: int) -> np.ndarray:
    """Keypoints [num_frames 17 3] of a figure with one of PLANAR_MOTIONS, in pixels of side x side, all seen.

    The seed determines tempo, phase, amplitude and direction.
    """
    rng = np.random.default_rng([seed, 17])
    tempo, phase, amplitude = rng.uniform(0.05, 0.13), rng.uniform(0, 4), rng.uniform(0.75, 1.2)
    direction = float(rng.choice([-1, 1]))
    postures = (PLANAR_MOTIONS[name](phase + tempo * i, amplitude, direction) for i in range(num_frames))
    points = np.stack([joint_positions(Stance(posture), figure) for posture in postures]) * side
    return np.concatenate([points, np.ones((num_frames, 17, 1))], axis=-1)


def make_dance(num_frames: int = 12) -> Dance:
    """One dancer, two from frame 3 on, and nobody in frames 5 and 6; some joints were not found."""
    one, two = (
        motion_keypoints(name, Figure(height=0.62, x=x, ground=0.7), num_frames, seed, WIDTH)
        for name, x, seed in (("walk", 0.3, 0), ("jump", 0.68, 1))
    )
    two[4:, JOINTS.index("left_wrist")] = 0
    one[:, JOINTS.index("right_ear")] = 0
    frames = [[one[i], two[i]] if i >= 3 else [one[i]] for i in range(num_frames)]
    frames[5:7] = [[], []]
    return frames


def in_order(person: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The joints of a person under these names; neck and hips in their middle, others made up."""
    known = dict(zip(JOINTS, person, strict=True))
    known["neck"] = (known["left_shoulder"] + known["right_shoulder"]) / 2
    known["mid_hip"] = (known["left_hip"] + known["right_hip"]) / 2
    return np.stack([known.get(name, np.array([300.0, 40.0, 1.0])) for name in names])


def flat(person: np.ndarray, names: Sequence[str] = JOINTS) -> list[float]:
    return in_order(person, names).ravel().tolist()


def write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def ours(folder: Path, dance: Dance) -> Path:
    frames = [[person.tolist() for person in people] for people in dance]
    return write(folder / "ours.json", {"width": WIDTH, "height": HEIGHT, "frames": frames})


def openpose_frame(people: list[np.ndarray], names: Sequence[str], scale: Any = 1) -> dict[str, Any]:
    others = {f"{part}_keypoints_2d": [10.0, 10.0, 0.9] * 21 for part in ("hand_left", "hand_right", "face")}
    return {
        "version": 1.3,
        "people": [
            {"person_id": [-1], "pose_keypoints_2d": flat(p / scale, names), **others} for p in people
        ],
    }


def _openpose(names: Sequence[str]) -> Callable[[Path, Dance], Path]:
    def writer(folder: Path, dance: Dance) -> Path:
        (folder / "openpose").mkdir()
        for i, people in enumerate(dance):  # numbers without leading zeros: 10 sorts before 2 as text
            write(folder / "openpose" / f"a_{i}_keypoints.json", openpose_frame(people, names))
        return folder / "openpose"

    return writer


def _controlnet(scale: Any) -> Callable[[Path, Dance], Path]:
    def writer(folder: Path, dance: Dance) -> Path:
        canvas = {"canvas_width": WIDTH, "canvas_height": HEIGHT}
        document = [{**openpose_frame(people, COCO_18, scale), **canvas} for people in dance]
        return write(folder / "controlnet.json", document)

    return writer


def _mmpose_frames(dance: Dance, names: Sequence[str]) -> list[dict[str, Any]]:
    frames = []
    for i, people in enumerate(dance):
        joints = [in_order(person, names) for person in people]
        instances = [
            {"keypoints": j[:, :2].tolist(), "keypoint_scores": j[:, 2].tolist(), "bbox_score": 1.0}
            for j in joints
        ]
        frames.append({"frame_id": i + 1, "instances": instances})
    return frames


def mmpose(folder: Path, dance: Dance) -> Path:
    meta = {"dataset_name": "coco", "num_keypoints": 17}
    return write(folder / "mm.json", {"meta_info": meta, "instance_info": _mmpose_frames(dance, JOINTS)})


def mmpose_names(folder: Path, dance: Dance) -> Path:
    names = ["root", *sorted(JOINTS)]  # another set: only the names tell
    meta = {"dataset_name": "own", "keypoint_id2name": {str(i): name for i, name in enumerate(names)}}
    return write(folder / "mm.json", {"meta_info": meta, "instance_info": _mmpose_frames(dance, names)})


def mmpose_inferencer(folder: Path, dance: Dance) -> Path:
    return write(folder / "mm.json", _mmpose_frames(dance, HALPE_26))


def _results(dance: Dance, names: Sequence[str], image: Callable[[int], Any], **other: Any) -> list[dict]:
    return [
        {"image_id": image(i), "category_id": 1, "keypoints": flat(person, names), "score": 2.9, **other}
        for i, people in enumerate(dance)
        for person in people
    ]


def _alphapose(names: Sequence[str]) -> Callable[[Path, Dance], Path]:
    def writer(folder: Path, dance: Dance) -> Path:
        return write(folder / "alpha.json", _results(dance, names, "{}.jpg".format, box=[0, 0, 9, 9]))

    return writer


def _alphapose_by_frame(people_key: str, joints_key: str) -> Callable[[Path, Dance], Path]:
    def writer(folder: Path, dance: Dance) -> Path:
        document = {
            f"{i}.jpg": {
                "version": "AlphaPose v0.3",
                people_key: [{joints_key: flat(p, COCO_18)} for p in ps],
            }
            for i, ps in enumerate(dance)
            if ps
        }
        return write(folder / "alpha.json", document)

    return writer


def coco_results(folder: Path, dance: Dance) -> Path:
    return write(folder / "results.json", _results(dance, JOINTS, lambda i: 100 + 2 * i))


def coco_annotations(folder: Path, dance: Dance) -> Path:
    images = [
        {"id": 7 * i, "file_name": f"f{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(len(dance))
    ]
    annotations = _results(dance, JOINTS, lambda i: 7 * i)
    for annotation in annotations:
        annotation["keypoints"][2::3] = [2 * v for v in annotation["keypoints"][2::3]]
    categories = [{"id": 1, "name": "person", "keypoints": list(JOINTS)}]
    document = {"images": images[::-1], "annotations": annotations, "categories": categories}
    return write(folder / "annotations.json", document)


def mediapipe(folder: Path, dance: Dance) -> Path:
    bodies = [[in_order(person, MEDIAPIPE) / FRACTION for person in people] for people in dance]
    frames = [
        {"landmarks": [[{"x": x, "y": y, "z": 0.1, "visibility": v} for x, y, v in body] for body in people]}
        for people in bodies
    ]
    return write(folder / "mediapipe.json", frames)


def mediapipe_arrays(folder: Path, dance: Dance) -> Path:
    frames = [
        [[[x / WIDTH, y / HEIGHT, 0.1, v] for x, y, v in in_order(person, MEDIAPIPE)] for person in people]
        for people in dance
    ]
    return write(folder / "mediapipe.json", {"width": WIDTH, "height": HEIGHT, "frames": frames})


def _ultralytics(as_text: bool) -> Callable[[Path, Dance], Path]:
    def writer(folder: Path, dance: Dance) -> Path:
        frames = [
            [
                {"name": "person", "class": 0, "confidence": 0.9, "box": {"x1": 0.0, "x2": 9.0},
                 "keypoints": dict(zip(("x", "y", "visible"), person.T.tolist(), strict=True))}
                for person in people
            ]
            for people in dance
        ]  # fmt: skip
        return write(folder / "yolo.json", [json.dumps(frame) for frame in frames] if as_text else frames)

    return writer


WRITERS: dict[str, Callable[[Path, Dance], Path]] = {
    "OpenPose BODY_25": _openpose(BODY_25),
    "OpenPose COCO-18": _openpose(COCO_18),
    "ControlNet COCO-18": _controlnet(1),
    "ControlNet COCO-18, fractions": _controlnet(FRACTION),
    "MMPose": mmpose,
    "MMPose, names": mmpose_names,
    "MMPose, inferencer and Halpe": mmpose_inferencer,
    "AlphaPose": _alphapose(JOINTS),
    "AlphaPose, Halpe": _alphapose(HALPE_26),
    "AlphaPose COCO-18, open": _alphapose_by_frame("people", "pose_keypoints_2d"),
    "AlphaPose COCO-18, cmu": _alphapose_by_frame("bodies", "joints"),
    "COCO results": coco_results,
    "COCO annotations": coco_annotations,
    "MediaPipe": mediapipe,
    "MediaPipe, arrays": mediapipe_arrays,
    "Ultralytics": _ultralytics(as_text=False),
    "Ultralytics, text": _ultralytics(as_text=True),
    "fyp_jax": ours,
}
SIZE_INSIDE = {
    name for name in WRITERS if name.startswith(("ControlNet", "COCO ann", "MediaPipe, arr", "fyp"))
}
