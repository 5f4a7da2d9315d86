"""Poses: videos, folders and keypoint files load to the same clip; skeletons look like the published ones."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from cli_utils import SCRIPTS, run_script
from fyp_jax.errors import UserError
from fyp_jax.media.errors import ClipTooShort, MissingFileError
from fyp_jax.media.images import image_grid, resize_center_crop
from fyp_jax.media.writing import write_mp4
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.keypoints import BadPoseError
from fyp_jax.pose.loading import find_pose, load_configured_pose, load_pose
from fyp_jax.pose.reading import load_keypoints
from fyp_jax.pose.skeleton import JOINTS, LINKS, draw_skeleton

ROOT = Path(__file__).parents[1]
DANCE = ROOT / "fyp_jax" / "assets" / "poses" / "dance.json"
RENDER_POSE_CLIP = SCRIPTS / "render_pose_clip.py"

ORANGE, GREEN, BLUE = (255, 153, 51), (0, 255, 0), (0, 128, 255)

# A person who faces the viewer, so that the left side is on the right, in pixels of 512 x 512.
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
    return JOINTS.index(name)


def at(image: np.ndarray, a: str, b: str, dx: float = 0) -> tuple[int, ...]:
    """The colour in the middle of a link."""
    x, y = (PERSON[joint(a)] + PERSON[joint(b)]) / 2
    return tuple(int(v) for v in image[round(y), round(x + dx)])


LIMBS = [("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")]


def colour_of(a: str, b: str) -> tuple[int, int, int]:
    """The colours of the published skeletons, written without the table of links."""
    ends = {a.split("_")[-1], b.split("_")[-1]}
    if any(ends == set(limb) for limb in LIMBS):
        return GREEN if a.startswith("left") else BLUE
    return ORANGE


def test_draw_skeleton_gives_every_link_its_published_colour():
    image = draw_skeleton(person()[None], 512, 512)
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8
    assert tuple(image[0, 0]) == (0, 0, 0)
    assert len(LINKS) == len({frozenset(link[:2]) for link in LINKS}) == 19
    for a, b, _ in LINKS:
        assert at(image, a, b) == colour_of(a, b), (a, b)


def test_draw_skeleton_of_a_person_seen_from_behind_keeps_green_at_the_persons_left():
    swapped = [
        joint(name.replace("left", "?").replace("right", "left").replace("?", "right")) for name in JOINTS
    ]
    front, back = (draw_skeleton(p[None], 512, 512) for p in (person(), person()[swapped]))
    for a, b in LIMBS:
        ends = f"left_{a}", f"left_{b}"
        assert (at(front, *ends), at(back, *ends)) == (GREEN, BLUE)
    assert at(front, "left_hip", "right_hip") == at(back, "left_hip", "right_hip") == ORANGE


def test_draw_skeleton_draws_the_torso_over_the_ends_of_limbs():
    image = draw_skeleton(person()[None], 512, 512)
    for name in ("left_shoulder", "right_shoulder", "left_hip", "right_hip"):
        x, y = PERSON[joint(name)].astype(int)
        assert tuple(image[y, x]) == ORANGE, name


def test_draw_skeleton_draws_an_arm_over_the_torso():
    crossed = person()
    crossed[joint("right_elbow"), :2] = (192, 240)
    crossed[joint("right_wrist"), :2] = (320, 240)
    image = draw_skeleton(crossed[None], 512, 512)
    side = PERSON[joint("left_shoulder")] + (PERSON[joint("left_hip")] - PERSON[joint("left_shoulder")]) * (
        100 / 150
    )
    assert tuple(image[240, round(side[0])]) == BLUE


@pytest.mark.parametrize("size", [256, 512, 1080])
def test_draw_skeleton_line_width_is_the_published_fraction_of_the_short_side(size):
    upright = np.zeros((1, 17, 3))
    upright[0, joint("left_hip")] = (0.5 * size, 0.2 * size, 1)
    upright[0, joint("left_knee")] = (0.5 * size, 0.8 * size, 1)
    for width in (size, 2 * size):
        green = draw_skeleton(upright, size, width)[..., 1] / 255
        assert green[size // 2].sum() == pytest.approx(13 / 1080 * size, rel=0.05)
        caps = green[:, round(0.5 * size)].sum() - 0.6 * size  # the two round ends add half a line width each
        assert caps == pytest.approx(13 / 1080 * size, rel=0.35)


def test_draw_skeleton_leaves_out_links_of_a_joint_of_low_confidence():
    doubtful = person()
    doubtful[joint("left_elbow"), 2] = 0.29
    image = draw_skeleton(doubtful[None], 512, 512)
    assert at(image, "left_shoulder", "left_elbow") == at(image, "left_elbow", "left_wrist") == (0, 0, 0)
    assert at(image, "right_elbow", "right_wrist") == BLUE
    doubtful[joint("left_elbow"), 2] = 0.3
    assert at(draw_skeleton(doubtful[None], 512, 512), "left_elbow", "left_wrist") == GREEN
    assert not draw_skeleton(person(confidence=0.1)[None], 64, 64).any()
    assert not draw_skeleton(np.zeros((0, 17, 3)), 64, 64).any()


def test_draw_skeleton_cuts_links_to_joints_outside_of_the_image():
    far = person()
    far[joint("left_wrist"), :2] = (5000, -3000)
    image = draw_skeleton(far[None], 512, 512)
    assert at(image, "right_elbow", "right_wrist") == BLUE
    assert tuple(image[117, 500]) == GREEN  # the arm crosses the image's edge


def walking(count: int) -> np.ndarray:
    """A person who walks 4 pixels per frame, [frame 17 3]."""
    return np.stack([person(dx=4 * i - 60) for i in range(count)])


def write_keypoints(path: Path, frames: list, width: int = 512, height: int = 512, **other) -> Path:
    path.write_text(json.dumps({"width": width, "height": height, "fps": 30, "frames": frames, **other}))
    return path


def write_folder(path: Path, images: np.ndarray) -> Path:
    path.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"frame{i}.png")  # frame10 sorts before frame2 as text
    return path


WINDOW = {"num_frames": 3, "stride": 4, "start": 2, "height": 128, "width": 128}


def test_load_pose_gives_the_same_clip_from_video_folder_and_keypoints(tmp_path):
    people = walking(12)
    skeletons = np.stack([draw_skeleton(p[None], 512, 512) for p in people])
    write_mp4(tmp_path / "clip.mp4", skeletons, fps=30)
    clip = load_pose(write_keypoints(tmp_path / "clip.json", people[:, None].tolist()), **WINDOW)
    assert clip.shape == (3, 128, 128, 3)
    assert clip.dtype == np.uint8
    assert clip.min() == 0
    assert 0.9 * 255 < clip.max() <= 255
    # frames 2, 6 and 10
    np.testing.assert_array_equal(clip, resize_center_crop(skeletons[[2, 6, 10]], 128, 128))
    np.testing.assert_array_equal(clip, load_pose(write_folder(tmp_path / "clip", skeletons), **WINDOW))
    lossy = load_pose(tmp_path / "clip.mp4", **WINDOW)
    assert np.abs(clip.astype(int) - lossy).mean() < 0.01 * 255
    assert np.abs(clip[0].astype(int) - clip[1]).mean() > 0.02 * 255  # another frame would be noticed


@pytest.mark.parametrize("kind", ["video", "folder", "keypoints"])
def test_load_pose_of_a_short_clip_of_any_kind_raises_clip_too_short(tmp_path, kind):
    people = walking(9)
    skeletons = np.stack([draw_skeleton(p[None], 64, 64) for p in people])
    path = tmp_path / "clip.json"
    if kind == "video":
        write_mp4(path := tmp_path / "clip.mp4", skeletons, fps=30)
    elif kind == "folder":
        path = write_folder(tmp_path / "clip", skeletons)
    else:
        write_keypoints(path, people[:, None].tolist())
    with pytest.raises(ClipTooShort) as caught:
        load_pose(path, **WINDOW)
    assert f"{path}: has 9 frames" in str(caught.value)
    assert "num_frames=3 stride=4 start=2 needs 11;" in str(caught.value)
    assert "stride=3 at most for num_frames=3, or num_frames=2 at most with stride=4" in str(caught.value)
    assert load_pose(path, **{**WINDOW, "stride": 3}).shape[0] == 3
    with pytest.raises(UserError, match="stride=0"):
        load_pose(path, **{**WINDOW, "stride": 0})


def test_load_pose_reads_a_folder_of_mixed_sizes_in_natural_order(tmp_path):
    folder = tmp_path / "poses"
    folder.mkdir()
    for number, name in enumerate(["1.png", "2.jpg", "03.PNG", "10.webp", "20.bmp"]):
        image = Image.new("RGB", (40 + 10 * number, 30))  # a grey band on black
        image.paste((50 * number,) * 3, (0, 10, image.width, 20))
        image.save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._1.png").write_bytes(b"written by macOS")
    (folder / "0.png").mkdir()
    clip = load_pose(folder, num_frames=5, stride=1, start=0, height=24, width=48)
    assert clip.shape == (5, 24, 48, 3)
    np.testing.assert_allclose(clip[:, 12].mean((1, 2)), [0, 50, 100, 150, 200], atol=3)


def test_load_pose_makes_transparent_pixels_black(tmp_path):
    folder = tmp_path / "poses"
    folder.mkdir()
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((0, 255, 0, 255), (0, 0, 32, 64))
    image.save(folder / "1.png")
    clip = load_pose(folder, num_frames=1, stride=1, start=0, height=64, width=64)
    assert tuple(clip[0, 5, 5]) == (0, 255, 0)
    assert tuple(clip[0, 5, -5]) == (0, 0, 0)


def test_load_pose_of_a_bad_folder_raises_with_its_path(tmp_path):
    (tmp_path / "text.txt").touch()
    one = {**WINDOW, "num_frames": 1, "start": 0}
    with pytest.raises(BadPoseError, match=r"no image in this folder .files in it: 1"):
        load_pose(tmp_path, **one)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(BadPoseError, match=r"broken.png: cannot be opened as an image"):
        load_pose(tmp_path, **one)
    with pytest.raises(MissingFileError, match="no such file"):
        load_pose(tmp_path / "nothing", **one)


def test_load_pose_draws_any_number_of_persons_nested_or_flat(tmp_path):
    small = [person(dx, scale=0.5) for dx in (0, 256)]
    frames = [[p.tolist() for p in small], [], [p.ravel().tolist() for p in small], [small[1].tolist()]]
    path = write_keypoints(tmp_path / "two.json", frames, width=512, height=256)
    clip = load_pose(path, num_frames=4, stride=1, start=0, height=256, width=512)
    one = load_pose(
        write_keypoints(tmp_path / "one.json", [[small[0].tolist()]], width=512, height=256),
        num_frames=1, stride=1, start=0, height=256, width=512,
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
        ("[1, 2]", "a list of 2, which is no known form of keypoints: OpenPose, "),
        ('{"width": 4, "frames": []}', "missing: .'height'"),
        ('{"width": 4.5, "height": 4, "frames": []}', "width is 4.5"),
        ('{"width": 4, "height": 0, "frames": []}', "height is 0"),
        ('{"width": 4, "height": 4, "frames": {}}', "frames must be a list, got dict"),
        ('{"width": 4, "height": 4, "frames": []}', "has 0 frames"),
        ({"frames": [[FULL], {}]}, "frame 1 must be a list of persons, got dict"),
        ({"frames": [[FULL], [FULL, FULL[:16]]]}, r"frame 1, person 1: needs 17x3 or 51 .*\(16, 3\)"),
        ({"frames": [[FULL], [FULL, [1, 2, 3]]]}, r"frame 1, person 1: .* got the shape \(3,\)"),
        ({"frames": [[FULL], [{"nose": 1}]]}, "frame 1, person 0: not a list of joints"),
        ({"frames": [[FULL], [[*FULL[:16], [1]]]]}, "frame 1, person 0: not a list of joints"),
        ({"frames": [[FULL], [[*FULL[:16], [1, 2, float("inf")]]]]}, "person 0: a number is not finite"),
        ({"frames": [[FULL], [[*FULL[:16], [1, 2e12, 1]]]]}, "frame 1, person 0: .* beyond a million"),
        ({"frames": [[FULL], [[*FULL[:16], [1, "x", 1]]]]}, "frame 1, person 0: "),
    ],
)  # fmt: skip
def test_load_pose_of_bad_keypoints_says_where_they_are_bad(tmp_path, text, says):
    path = tmp_path / "clip.json"
    if isinstance(text, str):
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    else:
        write_keypoints(path, **text)
    with pytest.raises(UserError, match=says) as caught:
        load_pose(path, num_frames=2, stride=1, start=0, height=64, width=64)
    assert str(caught.value).startswith(f"{path}: ")


def test_find_pose_of_a_bare_name_is_the_bundled_clip_unless_a_file_has_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_pose("dance") == DANCE
    assert find_pose("dance.json") == Path("dance.json")
    assert find_pose("sub/dance") == Path("sub/dance")
    with pytest.raises(MissingFileError, match=r"danse: no such file .*bundled: dance\)"):
        find_pose("danse")
    bundled = load_pose("dance", **WINDOW)
    (tmp_path / "dance").mkdir()
    assert find_pose("dance") == Path("dance")
    with pytest.raises(BadPoseError, match="no image in this folder"):
        load_pose("dance", **WINDOW)
    np.testing.assert_array_equal(bundled, load_pose(DANCE, **WINDOW))


def test_pose_config_defaults_select_moving_frames_of_the_bundled_clip():
    config = OmegaConf.structured(PoseConfig)
    clip = load_pose(
        config.path, num_frames=24, stride=config.stride, start=config.start, height=64, width=64
    )
    assert clip.shape == (24, 64, 64, 3)
    steps = np.abs(np.diff(clip.astype(int), axis=0)).mean((1, 2, 3))
    assert (steps > 0.005 * 255).all()  # each frame differs from the one before


def test_load_configured_pose_is_none_without_a_path_and_checks_numbers_either_way():
    window = {"stride": 3, "start": 4}
    bundled = load_pose("dance", num_frames=2, height=64, width=128, **window)
    np.testing.assert_array_equal(load_configured_pose(PoseConfig(**window), 2, 64, 128), bundled)
    assert load_configured_pose(PoseConfig(path=None), 500, 64, 128) is None  # no clip that is too short
    for num_frames, wrong in ((0, {}), (8, {"stride": 0}), (8, {"start": -1})):
        for path in (None, "dance"):
            with pytest.raises(UserError, match="must be at least"):
                load_configured_pose(PoseConfig(path=path, **wrong), num_frames, 64, 128)


def test_render_pose_clip_writes_the_bundled_clip_and_a_preview_of_its_skeletons(tmp_path):
    out, preview = tmp_path / "dance.json", tmp_path / "dance.png"
    run = run_script(RENDER_POSE_CLIP, "--out", out, "--preview", preview)
    assert run.status == 0, run
    assert out.read_bytes() == DANCE.read_bytes()
    clip = load_keypoints(out)
    skeletons = [draw_skeleton(people, clip.height, clip.width) for people in clip.frames[::5]]
    with Image.open(preview) as image:
        np.testing.assert_array_equal(np.asarray(image), image_grid([np.stack(skeletons)]))


def test_bundled_dancer_has_bones_of_fixed_length_and_stays_in_the_image():
    clip = json.loads(DANCE.read_text())
    people = np.array(clip["frames"])
    assert people.shape == (150, 1, 17, 3)
    assert (clip["width"], clip["height"], clip["fps"]) == (512, 512, 30)
    xy = people[:, 0, :, :2]
    assert xy.min() > 16
    assert xy.max() < 496
    pose = runpy.run_path(str(RENDER_POSE_CLIP))["pose"]
    space = [pose(i / 150) for i in range(150)]
    for a, b, _ in LINKS:
        if {a.split("_")[-1], b.split("_")[-1]} in [{"shoulder", "hip"}, {"ear", "shoulder"}]:
            continue  # these links are no bones
        lengths = [np.linalg.norm(joints[a] - joints[b]) for joints in space]
        assert np.ptp(lengths) < 1e-9, (a, b)
    jump = np.abs(np.diff(xy, axis=0, append=xy[:1])).max()
    assert jump < 0.07 * 512  # no joint jumps, nor does it where the clip loops
