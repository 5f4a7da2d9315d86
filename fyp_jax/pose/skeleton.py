"""COCO's 17 joints, and the rendering of skeletons in the style of the published skeleton videos."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

JOINTS: tuple[str, ...] = (
    "nose",
    "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip

BODY, LEFT, RIGHT = (255, 153, 51), (0, 255, 0), (0, 128, 255)  # the person's left and right, not the image's

# COCO's 19 links; a later link covers an earlier one, in the order of the published skeleton videos
LINKS = (
    ("left_ankle", "left_knee", LEFT),
    ("left_knee", "left_hip", LEFT),
    ("right_ankle", "right_knee", RIGHT),
    ("right_knee", "right_hip", RIGHT),
    ("left_hip", "right_hip", BODY),
    ("left_shoulder", "left_hip", BODY),
    ("right_shoulder", "right_hip", BODY),
    ("left_shoulder", "right_shoulder", BODY),
    ("left_shoulder", "left_elbow", LEFT),
    ("right_shoulder", "right_elbow", RIGHT),
    ("left_elbow", "left_wrist", LEFT),
    ("right_elbow", "right_wrist", RIGHT),
    ("left_eye", "right_eye", BODY),
    ("nose", "left_eye", BODY),
    ("nose", "right_eye", BODY),
    ("left_eye", "left_ear", BODY),
    ("right_eye", "right_ear", BODY),
    ("left_ear", "left_shoulder", BODY),
    ("right_ear", "right_shoulder", BODY),
)

MIN_CONFIDENCE = 0.3
PUBLISHED_SIDE, PUBLISHED_LINE = 1080, 13  # pixels, measured in the published skeleton videos


def draw_skeleton(
    people: Float[np.ndarray, "p 17 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Draw persons as RGB skeletons on black, in the colours and line width of the published skeleton videos.

    Each person is 17 COCO joints of x, y (pixels) and confidence. Links of the person's left arm and leg are
    green (0, 255, 0), those of the right arm and leg blue (0, 128, 255), and those of head and torso orange
    (255, 153, 51). Lines are 13/1080 of the image's shorter side wide. A joint with a confidence below 0.3 is
    not drawn, nor are its links.
    """
    # Pillow's lines are up to a pixel too thin, so draw at twice the published size or more, and reduce.
    scale = -(-2 * PUBLISHED_SIDE // max(height, width))
    line = PUBLISHED_LINE / PUBLISHED_SIDE * min(height, width) * scale
    canvas = Image.new("RGB", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for person in people:
        joints = dict(zip(JOINTS, person, strict=True))
        for a, b, colour in LINKS:
            if min(joints[a][2], joints[b][2]) < MIN_CONFIDENCE:
                continue
            ends = [(float(x) * scale, float(y) * scale) for x, y, _ in (joints[a], joints[b])]
            draw.line(ends, fill=colour, width=round(line))
            for x, y in ends:
                draw.circle((x, y), line / 2, fill=colour)
    return np.asarray(canvas.reduce(scale))
