"""Write the project's own pose clip, a dancing figure, as a keypoint file.

    python scripts/draw_pose_clip.py --preview dance.gif

The figure has bones of fixed length and moves in space (metres; x to the image's right, y up, z to the
viewer). It steps from side to side, twice a second, hips and shoulders sway against each other, the arms
wave in turn and then together. After 150 frames it repeats.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from fyp_jax.errors import run_cli
from fyp_jax.media.images import image_grid
from fyp_jax.media.writing import wrap_write_errors, write_gif, write_png
from fyp_jax.pose.skeleton import JOINTS, draw_skeleton

FRAMES, FPS, SIZE = 150, 30, 512
PIXELS_A_METRE, FLOOR = 228, 494  # the floor's row in the image
THIGH, UPPER_ARM, FOREARM, SPINE, NECK, HALF_HIPS, HALF_SHOULDERS = 0.43, 0.30, 0.26, 0.47, 0.24, 0.12, 0.19


def turn(roll: float, yaw: float) -> np.ndarray:
    """Columns: a body's own left, up and front, after a roll to its left and a turn about the vertical."""
    c, s, cy, sy = np.cos(roll), np.sin(roll), np.cos(yaw), np.sin(yaw)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def knee(hip: np.ndarray, ankle: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Where thigh and shin meet, bent towards a direction; both have the same length here."""
    leg = ankle - hip
    out = towards - leg * (towards @ leg) / (leg @ leg)
    return (hip + ankle) / 2 + out / np.linalg.norm(out) * np.sqrt(THIGH**2 - leg @ leg / 4)


def figure(time: float) -> dict[str, np.ndarray]:
    """The joints at a time in 0..1 of the clip."""

    def wave(times: int, shift: float = 0.0) -> float:
        return float(np.sin(2 * np.pi * (times * time + shift)))

    weight = wave(5)  # on the left foot at 1, on the right foot at -1
    pelvis = np.array([0.10 * weight, 0.83 + 0.03 * wave(10, 0.1), 0.0])
    hips, chest = turn(-0.16 * weight, 0.22 * wave(5, 0.2)), turn(0.20 * weight, 0.40 * wave(2))
    neck = pelvis + turn(-0.10 * weight, 0) @ (0, SPINE, 0)
    head = turn(0.15 * wave(5, 0.1), 0.55 * wave(3, 0.3))
    face = neck + head @ (0, NECK, 0.03)
    together = 0.5 - 0.5 * wave(1, 0.25)  # of the arms: 0 at the ends of the clip, 1 in its middle
    joints = {"nose": face + head @ (0, 0, 0.11)}
    for side, name in ((1, "left"), (-1, "right")):
        joints[f"{name}_eye"] = face + head @ (side * 0.035, 0.045, 0.09)
        joints[f"{name}_ear"] = face + head @ (side * 0.08, 0.02, 0.0)
        arm = joints[f"{name}_shoulder"] = neck + chest @ (side * HALF_SHOULDERS, 0, 0)
        lift = 1.65 + 0.9 * (together * wave(5, 0.1) + side * (1 - together) * wave(5, 0.2))
        bend = lift + 0.7 + 0.6 * wave(5, 0.25 * side - 0.1)  # at 0 an arm hangs, at pi it points up
        for joint, angle, bone in (("elbow", lift, UPPER_ARM), ("wrist", bend, FOREARM)):
            arm = arm + chest @ (bone * side * np.sin(angle), -bone * np.cos(angle), 0)
            joints[f"{name}_{joint}"] = arm
        hip = joints[f"{name}_hip"] = pelvis + hips @ (side * HALF_HIPS, 0, 0)
        step = max(0.0, -side * weight) ** 1.5  # the free foot rises, out to its side
        ankle = joints[f"{name}_ankle"] = np.array([side * (0.17 + 0.12 * step), 0.06 + 0.17 * step, 0])
        joints[f"{name}_knee"] = knee(hip, ankle, towards=np.array([side * 0.9, 0.0, 1.0]))
    return joints


def main() -> None:
    asset = Path(__file__).resolve().parents[1] / "fyp_jax" / "assets" / "poses" / "dance.json"
    parser = argparse.ArgumentParser(description="Write the project's own pose clip, a dancing figure.")
    parser.add_argument("--out", type=Path, default=asset, help="the .json to write (default: the asset)")
    parser.add_argument("--preview", type=Path, help=".png: every 5th frame; .gif: all, at 30 fps")
    args = parser.parse_args()

    figures = map(figure, np.arange(FRAMES) / FRAMES)
    space = np.array([[joints[name] for name in JOINTS] for joints in figures])
    x, y = SIZE / 2 + PIXELS_A_METRE * space[..., 0], FLOOR - PIXELS_A_METRE * space[..., 1]
    people = np.stack([x.round(1), y.round(1), np.ones_like(x)], axis=-1)
    clip = {"width": SIZE, "height": SIZE, "fps": FPS, "frames": people[:, None].tolist()}
    with wrap_write_errors(args.out) as file:
        file.write_text(json.dumps(clip, separators=(",", ":")) + "\n", encoding="utf-8")
    if args.preview:
        drawn = np.stack([draw_skeleton(person[None], SIZE, SIZE) for person in people])
        if args.preview.suffix == ".gif":
            write_gif(args.preview, drawn, FPS)
        else:
            write_png(args.preview, image_grid([drawn[::5]]))


if __name__ == "__main__":
    sys.exit(run_cli(main))
