"""Poses from videos, folders and keypoints are the same clip; skeletons look as the published ones do."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.media import pose, video

ROOT = Path(__file__).parents[1]

ORANGE, GREEN, BLUE = (255, 153, 51), (0, 255, 0), (0, 128, 255)

# a person who faces us, so that the left side is on the right; pixels of 512 x 512
PERSON = np.array(
    [
        (256, 80), (276, 62), (236, 62), (296, 80), (216, 80),
        (320, 140), (192, 140), (380, 200), (132, 200), (400, 100), (112, 100),
        (300, 290), (212, 290), (320, 380), (192, 380), (330, 470), (182, 470),
    ],
    float,
)  # fmt: skip


def person(dx: float = 0, scale: float = 1, confidence: float = 1) -> np.ndarray:
    return np.concatenate([PERSON * scale + (dx, 0), np.full((17, 1), confidence)], axis=1)


def joint(name: str) -> int:
    return pose.JOINTS.index(name)


def at(picture: np.ndarray, a: str, b: str, dx: float = 0) -> tuple[int, ...]:
    """The colour in the middle of a link."""
    x, y = (PERSON[joint(a)] + PERSON[joint(b)]) / 2
    return tuple(int(v) for v in picture[round(y), round(x + dx)])


LIMBS = [("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")]


def colour_of(a: str, b: str) -> tuple[int, int, int]:
    """The published colouring, stated once more, without the table."""
    ends = {a.split("_")[-1], b.split("_")[-1]}
    if any(ends == set(limb) for limb in LIMBS):
        return GREEN if a.startswith("left") else BLUE
    return ORANGE


def test_every_link_has_its_colour():
    picture = pose.draw_skeleton(person()[None], 512, 512)
    assert picture.shape == (512, 512, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert len(pose.LINKS) == len({frozenset(link[:2]) for link in pose.LINKS}) == 19
    for a, b, _ in pose.LINKS:
        assert at(picture, a, b) == colour_of(a, b), (a, b)


def test_green_is_the_left_of_the_person():
    swapped = [
        joint(name.replace("left", "?").replace("right", "left").replace("?", "right"))
        for name in pose.JOINTS
    ]
    front, back = (pose.draw_skeleton(p[None], 512, 512) for p in (person(), person()[swapped]))
    for a, b in LIMBS:
        ends = f"left_{a}", f"left_{b}"
        assert (at(front, *ends), at(back, *ends)) == (GREEN, BLUE)
    assert at(front, "left_hip", "right_hip") == at(back, "left_hip", "right_hip") == ORANGE


def test_the_torso_covers_the_ends_of_the_limbs():
    picture = pose.draw_skeleton(person()[None], 512, 512)
    for name in ("left_shoulder", "right_shoulder", "left_hip", "right_hip"):
        x, y = PERSON[joint(name)].astype(int)
        assert tuple(picture[y, x]) == ORANGE, name


def test_an_arm_covers_the_torso():
    crossed = person()
    crossed[joint("right_elbow"), :2] = (192, 240)
    crossed[joint("right_wrist"), :2] = (320, 240)
    picture = pose.draw_skeleton(crossed[None], 512, 512)
    side = PERSON[joint("left_shoulder")] + (PERSON[joint("left_hip")] - PERSON[joint("left_shoulder")]) * (
        100 / 150
    )
    assert tuple(picture[240, round(side[0])]) == BLUE


@pytest.mark.parametrize("size", [256, 512, 1080])
def test_line_width_is_the_published_share_of_the_short_side(size):
    upright = np.zeros((1, 17, 3))
    upright[0, joint("left_hip")] = (0.5 * size, 0.2 * size, 1)
    upright[0, joint("left_knee")] = (0.5 * size, 0.8 * size, 1)
    for width in (size, 2 * size):
        green = pose.draw_skeleton(upright, size, width)[..., 1] / 255
        assert green[size // 2].sum() == pytest.approx(13 / 1080 * size, rel=0.05)
        caps = green[:, round(0.5 * size)].sum() - 0.6 * size  # round ends, half a line each
        assert caps == pytest.approx(13 / 1080 * size, rel=0.35)


def test_a_doubtful_joint_takes_its_links_with_it():
    doubtful = person()
    doubtful[joint("left_elbow"), 2] = 0.29
    picture = pose.draw_skeleton(doubtful[None], 512, 512)
    assert at(picture, "left_shoulder", "left_elbow") == at(picture, "left_elbow", "left_wrist") == (0, 0, 0)
    assert at(picture, "right_elbow", "right_wrist") == BLUE
    doubtful[joint("left_elbow"), 2] = 0.3
    assert at(pose.draw_skeleton(doubtful[None], 512, 512), "left_elbow", "left_wrist") == GREEN
    assert not pose.draw_skeleton(person(confidence=0.1)[None], 64, 64).any()
    assert not pose.draw_skeleton(np.zeros((0, 17, 3)), 64, 64).any()


def test_joints_outside_of_the_picture_are_cut():
    far = person()
    far[joint("left_wrist"), :2] = (5000, -3000)
    picture = pose.draw_skeleton(far[None], 512, 512)
    assert at(picture, "right_elbow", "right_wrist") == BLUE
    assert tuple(picture[117, 500]) == GREEN  # the arm leaves on its way there


def moving(count: int) -> np.ndarray:
    """Persons who walk 4 pixels a frame: [frame, 17, 3]."""
    return np.stack([person(dx=4 * i - 60) for i in range(count)])


def write_keypoints(path: Path, frames: list, width: int = 512, height: int = 512, **other) -> Path:
    path.write_text(json.dumps({"width": width, "height": height, "fps": 30, "frames": frames, **other}))
    return path


def write_folder(path: Path, pictures: np.ndarray) -> Path:
    path.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"frame{i}.png")  # frame10 sorts before frame2 as text
    return path


ASK = {"frames": 3, "stride": 4, "start": 2, "height": 128, "width": 128}


def test_video_folder_and_keypoints_agree(tmp_path):
    people = moving(12)
    drawn = np.stack([pose.draw_skeleton(p[None], 512, 512) for p in people])
    video.write_mp4(tmp_path / "clip.mp4", drawn, fps=30)
    clip = pose.load_pose(write_keypoints(tmp_path / "clip.json", people[:, None].tolist()), **ASK)
    assert clip.shape == (3, 128, 128, 3)
    assert clip.dtype == np.float32
    assert clip.min() == 0
    assert 0.9 < clip.max() <= 1
    # frames 2, 6 and 10
    np.testing.assert_array_equal(
        clip, video.resize_center_crop(drawn[[2, 6, 10]], 128, 128).astype(np.float32) / 255
    )
    np.testing.assert_array_equal(clip, pose.load_pose(write_folder(tmp_path / "clip", drawn), **ASK))
    assert np.abs(clip - pose.load_pose(tmp_path / "clip.mp4", **ASK)).mean() < 0.01
    assert np.abs(clip[0] - clip[1]).mean() > 0.02  # which frames they are does matter


@pytest.mark.parametrize("kind", ["video", "folder", "keypoints"])
def test_every_kind_says_when_it_is_too_short(tmp_path, kind):
    people = moving(9)
    drawn = np.stack([pose.draw_skeleton(p[None], 64, 64) for p in people])
    path = tmp_path / "clip.json"
    if kind == "video":
        video.write_mp4(path := tmp_path / "clip.mp4", drawn, fps=30)
    elif kind == "folder":
        path = write_folder(tmp_path / "clip", drawn)
    else:
        write_keypoints(path, people[:, None].tolist())
    with pytest.raises(video.ClipTooShort) as caught:
        pose.load_pose(path, **ASK)
    assert f"{path}: has 9 frames" in str(caught.value)
    assert "need 11;" in str(caught.value)
    assert "stride 3 at most for 3 frames, or 2 frames at most with stride 4" in str(caught.value)
    assert pose.load_pose(path, **{**ASK, "stride": 3}).shape[0] == 3
    with pytest.raises(UserError, match="stride is 0"):
        pose.load_pose(path, **{**ASK, "stride": 0})


def test_a_folder_in_natural_order_of_mixed_sizes(tmp_path):
    folder = tmp_path / "poses"
    folder.mkdir()
    for number, name in enumerate(["1.png", "2.jpg", "03.PNG", "10.webp", "20.bmp"]):
        Image.new("RGB", (40 + 10 * number, 30), (50 * number,) * 3).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._1.png").write_bytes(b"left by a Mac")
    (folder / "0.png").mkdir()
    clip = pose.load_pose(folder, frames=5, stride=1, start=0, height=24, width=48)
    assert clip.shape == (5, 24, 48, 3)
    np.testing.assert_allclose(clip.mean((1, 2, 3)) * 255, [0, 50, 100, 150, 200], atol=3)


def test_a_transparent_ground_is_black(tmp_path):
    folder = tmp_path / "poses"
    folder.mkdir()
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((0, 255, 0, 255), (0, 0, 32, 64))
    image.save(folder / "1.png")
    clip = pose.load_pose(folder, frames=1, stride=1, start=0, height=64, width=64)
    assert tuple(clip[0, 5, 5]) == (0, 1, 0)
    assert tuple(clip[0, 5, -5]) == (0, 0, 0)


def test_bad_folders(tmp_path):
    (tmp_path / "text.txt").touch()
    one = {**ASK, "frames": 1, "start": 0}
    with pytest.raises(pose.BadPoseError, match=r"no image in this folder .files in it: 1"):
        pose.load_pose(tmp_path, **one)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(pose.BadPoseError, match=r"broken.png: not an image that opens"):
        pose.load_pose(tmp_path, **one)
    with pytest.raises(video.MissingFileError, match="no such file"):
        pose.load_pose(tmp_path / "nothing", **one)


def test_two_people_none_and_flat_numbers(tmp_path):
    small = [person(dx, scale=0.5) for dx in (0, 256)]
    frames = [[p.tolist() for p in small], [], [p.ravel().tolist() for p in small], [small[1].tolist()]]
    path = write_keypoints(tmp_path / "two.json", frames, width=512, height=256)
    clip = pose.load_pose(path, frames=4, stride=1, start=0, height=256, width=512)
    one = pose.load_pose(
        write_keypoints(tmp_path / "one.json", [[small[0].tolist()]], width=512, height=256),
        frames=1, stride=1, start=0, height=256, width=512,
    )  # fmt: skip
    assert not clip[1].any()
    np.testing.assert_array_equal(clip[0], clip[2])
    np.testing.assert_array_equal(clip[0][:, :256], one[0][:, :256])
    np.testing.assert_array_equal(clip[0][:, 256:], clip[3][:, 256:])
    assert one[0][:, :256].any()
    assert not clip[3][:, :256].any()


FULL = person().tolist()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{not json", "not readable as JSON"),
        ("\udcff", "not readable as JSON"),
        ("[1, 2]", "missing: .'width', 'height', 'frames'"),
        ('{"width": 4, "frames": []}', "missing: .'height'"),
        ('{"width": 4.5, "height": 4, "frames": []}', "width is 4.5"),
        ('{"width": 4, "height": 0, "frames": []}', "height is 0"),
        ('{"width": 4, "height": 4, "frames": {}}', "frames must be a list, got dict"),
        ('{"width": 4, "height": 4, "frames": []}', "has 0 frames"),
        ({"frames": [[FULL], {}]}, "frame 1 must be a list of persons, got dict"),
        ({"frames": [[FULL], [FULL, FULL[:16]]]}, r"frame 1, person 1: needs 17x3 or 51 .*\(16, 3\)"),
        ({"frames": [[FULL], [FULL, [1, 2, 3]]]}, r"frame 1, person 1: .* got the shape \(3,\)"),
        ({"frames": [[FULL], [{"nose": 1}]]}, "frame 1, person 0: not 17 joints"),
        ({"frames": [[FULL], [[*FULL[:16], [1, 2]]]]}, "frame 1, person 0: not 17 joints"),
        ({"frames": [[FULL], [[*FULL[:16], [1, 2, float("nan")]]]]}, "person 0: a number is not finite"),
        ({"frames": [[FULL], [[*FULL[:16], [1, 2e12, 1]]]]}, "frame 1, person 0: .* beyond a million"),
        ({"frames": [[FULL], [[*FULL[:16], [1, None, 1]]]]}, "frame 1, person 0: "),
    ],
)  # fmt: skip
def test_bad_keypoints_are_named(tmp_path, text, says):
    path = tmp_path / "clip.json"
    if isinstance(text, str):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        write_keypoints(path, **text)
    with pytest.raises(UserError, match=says) as caught:
        pose.load_pose(path, frames=2, stride=1, start=0, height=64, width=64)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_bare_name_is_our_own_clip_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = pose.pose_path("dance")
    assert own == ROOT / "fyp_jax" / "assets" / "poses" / "dance.json"
    assert pose.pose_path("dance.json") == Path("dance.json")
    assert pose.pose_path("sub/dance") == Path("sub/dance")
    with pytest.raises(video.MissingFileError, match=r"danse: no such file .*we have: dance\)"):
        pose.pose_path("danse")
    (tmp_path / "dance").mkdir()
    assert pose.pose_path("dance") == Path("dance")


def test_the_config_asks_for_what_our_own_clip_has():
    config = OmegaConf.structured(pose.PoseConfig)
    size = {"height": 64, "width": 64}
    clip = pose.load_pose(
        pose.pose_path(config.path), frames=config.frames, stride=config.stride, start=config.start, **size
    )
    assert clip.shape == (8, 64, 64, 3)
    long = pose.load_pose(pose.pose_path(config.path), frames=24, stride=5, start=0, **size)
    steps = np.abs(np.diff(long, axis=0)).mean((1, 2, 3))
    assert (steps > 0.005).all()  # never still


def test_a_config_without_a_path_asks_for_no_pose():
    config = pose.PoseConfig(frames=2, stride=3, start=4)
    own = pose.load_pose(pose.pose_path("dance"), frames=2, stride=3, start=4, height=64, width=128)
    np.testing.assert_array_equal(pose.configured_pose(config, 64, 128), own)
    assert (
        pose.configured_pose(pose.PoseConfig(path=None, frames=500), 64, 128) is None
    )  # no clip to be too short
    for wrong in ({"frames": 0}, {"stride": 0}, {"start": -1}):
        for path in (None, "dance"):
            with pytest.raises(UserError, match="it must be at least"):
                pose.configured_pose(pose.PoseConfig(path=path, **wrong), 64, 128)


def test_our_own_clip_is_what_the_script_writes(tmp_path, monkeypatch):
    script = ROOT / "scripts" / "draw_pose_clip.py"
    out = tmp_path / "dance.json"
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert stop.value.code == 0
    assert out.read_bytes() == pose.pose_path("dance").read_bytes()


def test_our_own_dancer_has_firm_bones_and_stays_in_the_picture():
    clip = json.loads(pose.pose_path("dance").read_text())
    people = np.array(clip["frames"])
    assert people.shape == (150, 1, 17, 3)
    assert (clip["width"], clip["height"], clip["fps"]) == (512, 512, 30)
    xy = people[:, 0, :, :2]
    assert xy.min() > 16
    assert xy.max() < 496
    figure = runpy.run_path(str(ROOT / "scripts" / "draw_pose_clip.py"))["figure"]
    space = [figure(i / 150) for i in range(150)]
    for a, b, _ in pose.LINKS:
        if {a.split("_")[-1], b.split("_")[-1]} in [{"shoulder", "hip"}, {"ear", "shoulder"}]:
            continue  # no bones
        lengths = [np.linalg.norm(joints[a] - joints[b]) for joints in space]
        assert np.ptp(lengths) < 1e-9, (a, b)
    jump = np.abs(np.diff(xy, axis=0, append=xy[:1])).max()
    assert jump < 0.07 * 512  # no joint leaps, not at the seam of the loop either
