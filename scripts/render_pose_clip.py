"""Write the bundled pose clip "dance", a dancing figure, as a keypoint file.

    python scripts/render_pose_clip.py --preview dance.gif

The figure has bones of fixed length and moves in space (metres; x to the image's right, y up, z to the
viewer). It steps from side to side, twice a second. Hips and shoulders sway against each other, and the arms
wave in turn and then together. The clip loops after 150 frames.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.images import image_grid
from fyp_jax.media.writing import write_gif, write_png
from fyp_jax.pose.skeleton import JOINTS, draw_skeleton

FRAMES, FPS, SIZE = 150, 30, 512
PIXELS_PER_METRE, FLOOR = 228, 494  # FLOOR: the row of the ground in the image
THIGH, UPPER_ARM, FOREARM, SPINE, NECK, HALF_HIPS, HALF_SHOULDERS = 0.43, 0.30, 0.26, 0.47, 0.24, 0.12, 0.19


def rotation(roll: float, yaw: float) -> np.ndarray:
    """Rotation matrix of a roll to the body's left, then a turn about the vertical, in radians.

    Its columns are the body's left, up and front.
    """
    c, s, cy, sy = np.cos(roll), np.sin(roll), np.cos(yaw), np.sin(yaw)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def knee(hip: np.ndarray, ankle: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Position of the knee, bent towards a direction; thigh and shin have the same length."""
    leg = ankle - hip
    out = towards - leg * (towards @ leg) / (leg @ leg)
    return (hip + ankle) / 2 + out / np.linalg.norm(out) * np.sqrt(THIGH**2 - leg @ leg / 4)


def pose(time: float) -> dict[str, np.ndarray]:
    """Position of each joint at a time from 0 (start of the clip) to 1 (end)."""

    def wave(times: int, shift: float = 0.0) -> float:
        return float(np.sin(2 * np.pi * (times * time + shift)))

    weight = wave(5)  # 1: on the left foot, -1: on the right foot
    pelvis = np.array([0.10 * weight, 0.83 + 0.03 * wave(10, 0.1), 0.0])
    hips, chest = rotation(-0.16 * weight, 0.22 * wave(5, 0.2)), rotation(0.20 * weight, 0.40 * wave(2))
    neck = pelvis + rotation(-0.10 * weight, 0) @ (0, SPINE, 0)
    head = rotation(0.15 * wave(5, 0.1), 0.55 * wave(3, 0.3))
    face = neck + head @ (0, NECK, 0.03)
    together = 0.5 - 0.5 * wave(1, 0.25)  # 0: the arms wave in turn (first and last frame), 1: together
    joints = {"nose": face + head @ (0, 0, 0.11)}
    for side, name in ((1, "left"), (-1, "right")):
        joints[f"{name}_eye"] = face + head @ (side * 0.035, 0.045, 0.09)
        joints[f"{name}_ear"] = face + head @ (side * 0.08, 0.02, 0.0)
        arm = joints[f"{name}_shoulder"] = neck + chest @ (side * HALF_SHOULDERS, 0, 0)
        lift = 1.65 + 0.9 * (together * wave(5, 0.1) + side * (1 - together) * wave(5, 0.2))
        bend = lift + 0.7 + 0.6 * wave(5, 0.25 * side - 0.1)  # 0: the arm hangs, pi: it points up
        for joint, angle, bone in (("elbow", lift, UPPER_ARM), ("wrist", bend, FOREARM)):
            arm = arm + chest @ (bone * side * np.sin(angle), -bone * np.cos(angle), 0)
            joints[f"{name}_{joint}"] = arm
        hip = joints[f"{name}_hip"] = pelvis + hips @ (side * HALF_HIPS, 0, 0)
        step = max(0.0, -side * weight) ** 1.5  # the free foot rises and moves outward
        ankle = joints[f"{name}_ankle"] = np.array([side * (0.17 + 0.12 * step), 0.06 + 0.17 * step, 0])
        joints[f"{name}_knee"] = knee(hip, ankle, towards=np.array([side * 0.9, 0.0, 1.0]))
    return joints


def main() -> None:
    asset = Path(__file__).resolve().parents[1] / "fyp_jax" / "assets" / "poses" / "dance.json"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=asset, metavar="FILE", help="default: the bundled .json")
    preview_help = ".png: every 5th frame; .gif: all frames"
    parser.add_argument("--preview", type=Path, metavar="FILE", help=preview_help)
    args = parser.parse_args()

    poses = map(pose, np.arange(FRAMES) / FRAMES)
    space = np.array([[joints[name] for name in JOINTS] for joints in poses])
    x, y = SIZE / 2 + PIXELS_PER_METRE * space[..., 0], FLOOR - PIXELS_PER_METRE * space[..., 1]
    people = np.stack([x.round(1), y.round(1), np.ones_like(x)], axis=-1)
    clip = {"width": SIZE, "height": SIZE, "fps": FPS, "frames": people[:, None].tolist()}
    with wrap_write_errors(args.out) as file:
        file.write_text(json.dumps(clip, separators=(",", ":")) + "\n", encoding="utf-8")
    if args.preview:
        as_gif = args.preview.suffix == ".gif"
        shown = people if as_gif else people[::5]
        skeletons = np.stack([draw_skeleton(person[None], SIZE, SIZE) for person in shown])
        if as_gif:
            write_gif(args.preview, skeletons, FPS)
        else:
            write_png(args.preview, image_grid([skeletons]))


if __name__ == "__main__":
    run_console(main)
