"""Keypoints of other tools: each form gives the skeletons of the dance, or is refused with what to do."""

import contextlib
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.data.ingest.examples import parse_keypoints
from fyp_jax.data.ingest.items import ItemError
from fyp_jax.errors import UserError
from fyp_jax.media.writing import write_mp4
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.formats.document import order_frames
from fyp_jax.pose.keypoints import BadPoseError, KeypointClip, save_keypoints
from fyp_jax.pose.loading import load_configured_pose, load_pose
from fyp_jax.pose.reading import load_keypoints, parse_size
from fyp_jax.pose.skeleton import JOINTS
from keypoint_files import (
    COCO_18,
    FRACTION,
    HEIGHT,
    SIZE,
    SIZE_INSIDE,
    WIDTH,
    WRITERS,
    Dance,
    coco_annotations,
    flat,
    make_dance,
    openpose_frame,
    ours,
    write,
)

DANCE = make_dance()
CONVERT = SCRIPTS / "convert_poses.py"
ONE: dict[str, Any] = {"num_frames": 1, "stride": 1, "start": 0, "height": 64, "width": 64}


def size_for(form: str) -> str | None:
    return None if form in SIZE_INSIDE else SIZE


def assert_same_dance(clip: KeypointClip, dance: Dance, atol: float = 1e-9) -> None:
    assert (clip.width, clip.height) == (WIDTH, HEIGHT)
    assert [len(people) for people in clip.frames] == [len(people) for people in dance]
    for found, people in zip(clip.frames, dance, strict=True):
        for a, b in zip(found, people, strict=True):
            np.testing.assert_allclose(a, b, atol=atol)


@pytest.mark.parametrize("form", WRITERS)
def test_load_keypoints_of_every_form_gives_the_joints_of_the_dance(tmp_path, form):
    clip = load_keypoints(WRITERS[form](tmp_path, DANCE), size_for(form))
    assert_same_dance(clip, DANCE)
    assert clip.form == form.split(",")[0]


def test_load_pose_of_every_form_gives_the_same_skeleton_images(tmp_path):
    window: dict[str, Any] = {"num_frames": 3, "stride": 4, "start": 2, "height": 96, "width": 128}
    expected = load_pose(ours(tmp_path, DANCE), **window)
    assert expected[0].any()
    assert not expected[1].any()  # frame 6 is without anybody
    for number, (form, writer) in enumerate(WRITERS.items()):
        (tmp_path / str(number)).mkdir()
        path = writer(tmp_path / str(number), DANCE)
        np.testing.assert_array_equal(load_pose(path, **window, size=size_for(form)), expected, err_msg=form)


@pytest.mark.parametrize("form", sorted(set(WRITERS) - SIZE_INSIDE))
def test_load_pose_of_a_form_without_size_asks_for_the_size(tmp_path, form):
    path = WRITERS[form](tmp_path, DANCE)
    with pytest.raises(
        BadPoseError, match=r"without the size of the image.*pose\.size=WIDTHxHEIGHT"
    ) as caught:
        load_pose(path, **ONE)
    assert f"is {form.split(',')[0]} with 12 frames" in str(caught.value)
    config = PoseConfig(path=str(path), size=SIZE, stride=1)
    assert load_configured_pose(config, 2, 64, 64).any()  # pyright: ignore


@pytest.mark.parametrize("form", sorted(SIZE_INSIDE))
def test_load_keypoints_of_another_size_than_the_files_own_is_refused(tmp_path, form):
    path = WRITERS[form](tmp_path, DANCE)
    assert load_keypoints(path, SIZE).width == WIDTH
    with pytest.raises(BadPoseError, match="has 640x480 pixels as given, but its keypoints say 512x384"):
        load_keypoints(path, "640x480")


@pytest.mark.parametrize("text", ["512", "512x", "axb", "0x4", "9999x9", "-1x5", "1e3x5", ""])
def test_parse_size_of_anything_but_two_sides_is_refused(text):
    with pytest.raises(UserError):
        parse_size(text)
    assert parse_size(" 512x384 ") == parse_size("512X384") == (512, 384)


def test_load_pose_of_a_video_with_a_size_is_refused(tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((2, 64, 64, 3), np.uint8), fps=8)
    assert not load_pose(tmp_path / "clip.mp4", **ONE).any()
    with pytest.raises(UserError, match=r"pose\.size.* is for keypoints only"):
        load_pose(tmp_path / "clip.mp4", **ONE, size="64x64")


FRACTIONS = [[person / FRACTION for person in people] for people in DANCE]


@pytest.mark.parametrize("form", [f for f in WRITERS if not f.startswith(("ControlNet", "MediaPipe"))])
def test_load_keypoints_of_fractions_in_a_form_that_does_not_say_so_is_refused(tmp_path, form):
    with pytest.raises(BadPoseError, match=r"look like fractions.*multiply x by the width"):
        load_keypoints(WRITERS[form](tmp_path, FRACTIONS), size_for(form))


def test_load_keypoints_scales_fractions_of_a_controlnet_canvas_with_a_joint_just_outside(tmp_path):
    outside = [
        [np.where(person == person[:, :2].max(), 1.04, person) for person in people] for people in FRACTIONS
    ]
    path = WRITERS["ControlNet COCO-18"](tmp_path, outside)
    assert_same_dance(load_keypoints(path), [[person * FRACTION for person in p] for p in outside])


def test_load_keypoints_of_mediapipe_landmarks_in_pixels_is_refused(tmp_path):
    dance = [[person * FRACTION for person in people] for people in DANCE]
    with pytest.raises(BadPoseError, match="must be fractions of the image, but they look like pixels"):
        load_keypoints(WRITERS["MediaPipe"](tmp_path, dance), SIZE)


def test_load_keypoints_of_our_own_form_takes_what_people_write(tmp_path):
    first = DANCE[0][0]
    gone = first.copy()
    gone[3] = 0
    rows = first.tolist()
    forms = {
        "null": (gone, [*rows[:3], [None, None, 0], *rows[4:]]),
        "half": (gone, [*rows[:3], [5, None, 1], *rows[4:]]),
        "nothing": (gone, [*rows[:3], None, *rows[4:]]),
        "nan": (gone, [*rows[:3], [float("nan")] * 3, *rows[4:]]),
        "flat": (gone, [*first.ravel().tolist()[:9], None, None, None, *first.ravel().tolist()[12:]]),
        "xy": (first, first[:, :2].tolist()),  # (0, 0) is no joint: right_ear
        "flat xy": (first, first[:, :2].ravel().tolist()),
        "mixed": (first, [rows[0][:2], *rows[1:]]),
    }
    for name, (expected, person) in forms.items():
        path = write(tmp_path / "own.json", {"width": 512.0, "height": 384.0, "frames": [[person]]})
        np.testing.assert_array_equal(load_keypoints(path).frames[0][0], expected, err_msg=name)
        text = json.dumps(person)
        np.testing.assert_array_equal(parse_keypoints(text, HEIGHT, WIDTH)[0], np.float32(expected), name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["dance.json", "dance.txt", "dance"])
def test_load_pose_finds_keypoints_by_content_with_or_without_byte_order_mark(tmp_path, encoding, name):
    text = ours(tmp_path, DANCE).read_text()
    (tmp_path / name).write_text(text, encoding=encoding)
    if encoding == "utf-16" and not name.endswith(".json"):
        return  # the first byte does not tell; a video reader refuses it
    assert load_pose(tmp_path / name, **ONE).any()


def test_frames_that_do_not_begin_at_the_first_or_are_thinned_out_are_told():
    """Frame 0 of the pose is then another frame of the film."""
    people = {f"{number}.jpg": [np.zeros((17, 3))] for number in (30, 40, 60)}
    frames, notes = order_frames(people)
    assert len(frames) == 4
    assert notes[0] == "its frames are numbered from 30 in steps of 10; number 30 becomes frame 0 of the pose"
    assert "1 of 4 frames are not in it" in notes[1]
    assert order_frames({1: [np.zeros((17, 3))], 2: [np.zeros((17, 3))]})[1] == ()


def test_load_keypoints_fills_frames_that_are_left_out_and_says_so(tmp_path, caplog):
    path = WRITERS["AlphaPose"](tmp_path, DANCE)
    assert "2 of 12 frames" in load_keypoints(path, SIZE).notes[0]
    with caplog.at_level(logging.WARNING):
        assert not load_pose(path, **{**ONE, "start": 5}, size=SIZE).any()
    assert "frames without anybody" in caplog.text
    assert "no person is seen in the 1 frames that are taken" in caplog.text
    far = json.loads(path.read_text())
    far[-1]["image_id"] = "900000000.jpg"
    with pytest.raises(BadPoseError, match="numbered from 0 to 900000000; not frames of one film"):
        load_keypoints(write(path, far), SIZE)


def test_load_keypoints_of_a_folder_takes_one_file_for_each_frame(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    canvas = {"canvas_width": WIDTH, "canvas_height": HEIGHT}
    for i, people in enumerate(DANCE):
        write(folder / f"{i}.json", [{**openpose_frame(people, COCO_18), **canvas}] if people else [])
    (folder / "._1.json").write_bytes(b"litter")
    assert_same_dance(load_keypoints(folder), DANCE)
    write(folder / "12.json", [{**openpose_frame(DANCE[0], COCO_18), "canvas_width": 9, "canvas_height": 9}])
    with pytest.raises(BadPoseError, match="different sizes of image"):
        load_keypoints(folder)
    write(folder / "12.json", {"prompt": "a dance"})
    with pytest.raises(BadPoseError, match=r"12\.json: its JSON is an object of 'prompt', which"):
        load_keypoints(folder)
    ours(tmp_path, DANCE).rename(folder / "12.json")
    with pytest.raises(BadPoseError, match=r"12\.json: has 12 frames; a folder has one file for each"):
        load_keypoints(folder)


def test_load_keypoints_of_a_folder_with_two_clips_of_openpose_is_refused(tmp_path):
    folder = WRITERS["OpenPose BODY_25"](tmp_path, DANCE)
    write(folder / "notes.json", {})  # not named as OpenPose's, so it does not count
    assert len(load_keypoints(folder, SIZE).frames) == 12
    write(folder / "b_0_keypoints.json", openpose_frame([], COCO_18))
    with pytest.raises(BadPoseError, match=r"files of 2 clips \(a, b\)"):
        load_keypoints(folder, SIZE)


def test_load_pose_of_a_folder_with_images_and_keypoints_takes_the_images_and_says_so(tmp_path, caplog):
    folder = WRITERS["OpenPose BODY_25"](tmp_path, DANCE)
    Image.new("RGB", (64, 64)).save(folder / "0.png")
    with caplog.at_level(logging.WARNING):
        assert not load_pose(folder, **ONE).any()
    assert "1 images and 12 keypoint files; the images are taken" in caplog.text


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"people": [{"pose_keypoints_2d": [1.0] * 45}]}, "has 15 joints; known are OpenPose's 25"),
        ([{"image_id": 1, "keypoints": [1.0] * 48}], "has 16 joints without their names"),
        ([{"image_id": None, "keypoints": [9.0] * 51}], "image_id is neither a number nor a name"),
        ([{"image_id": 1.5, "keypoints": [9.0] * 51}], "image_id is neither"),
        ({"instance_info": [{"frame_id": 1, "instances": [{"keypoints": [[1, 2, 3]] * 17}]}]}, "3-D pose"),
        ({"instance_info": [{"frame_id": 1, "instances": [{"keypoints": [[1, 2]] * 16}]}]}, "16 joints"),
        ({"meta_info": {"dataset_name": "h36m"}, "instance_info": []}, "joints of .h36m., without"),
        ([{"keypoints": [[9, 9]] * 68, "keypoint_scores": [1] * 68}], "has 68 joints without their names"),
        ({"instance_info": [{"frame_id": i, "instances": []} for i in (1, 1)]}, "two frames have the"),
        ([{"class": 0, "confidence": 1.0, "box": {}}], "has no keypoints; use a pose model"),
        ([{"people": [], "canvas_width": 5, "canvas_height": i} for i in (5, 6)], "several sizes .5x5, 5x6"),
        ([{"people": [], "canvas_width": 5}], "height is None"),
        ({"worldLandmarks": [[]]}, "no known form of keypoints"),
        ({"images": [], "annotations": []}, "has no image"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 2, "keypoints": []}]}, "not that of an image"),
        ([], "a list of 0, which is no known form"),
        ("text", "a str, which is no known form"),
    ],
)  # fmt: skip
def test_load_keypoints_of_what_cannot_be_drawn_says_what_it_is(tmp_path, document, says):
    with pytest.raises(BadPoseError, match=says):
        load_keypoints(write(tmp_path / "clip.json", document), SIZE)


def test_load_pose_of_keypoints_in_which_nobody_is_seen_is_refused(tmp_path):
    far = [[person + np.array([5000, 0, 0]) for person in people] for people in DANCE]
    doubtful = [[person * [1, 1, 0.2] for person in people] for people in DANCE]
    for dance, says in (
        ([[], []], "contain no person"),
        (far, "inside the image"),
        (doubtful, "no keypoint"),
    ):
        path = ours(tmp_path, dance)
        assert len(load_keypoints(path).frames) == len(dance)  # what a score compares with may be empty
        with pytest.raises(BadPoseError, match=says):
            load_pose(path, **ONE)


def test_load_keypoints_finds_joints_by_the_names_of_the_file_and_tells_what_is_missing(tmp_path):
    document = json.loads(coco_annotations(tmp_path, DANCE).read_text())
    names = [name for name in reversed(JOINTS) if name != "nose"]
    document["categories"][0]["keypoints"] = names
    ordered = [person for people in DANCE for person in people]
    for annotation, person in zip(document["annotations"], ordered, strict=True):
        annotation["keypoints"] = flat(person, names)
    clip = load_keypoints(write(tmp_path / "names.json", document))
    without_nose = [[person * (np.arange(17) > 0)[:, None] for person in people] for people in DANCE]
    assert_same_dance(clip, without_nose)
    assert clip.notes == ("its set of joints lacks nose",)


def test_prepare_data_reads_an_image_of_another_tool_with_the_same_check():
    text = json.dumps(openpose_frame(DANCE[4], COCO_18))
    np.testing.assert_array_equal(parse_keypoints(text, HEIGHT, WIDTH), np.asarray(DANCE[4], np.float32))
    with pytest.raises(ItemError, match="look like fractions"):
        parse_keypoints(json.dumps(openpose_frame(FRACTIONS[4], COCO_18)), HEIGHT, WIDTH)
    with pytest.raises(ItemError, match="no keypoint .* inside the image of 8x8"):
        parse_keypoints(text, 8, 8)
    two = json.dumps([openpose_frame(people, COCO_18) for people in DANCE[:2]])
    with pytest.raises(ItemError, match="have 2 frames, but an image has one"):
        parse_keypoints(two, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_load_pose_of_a_film_is_refused_with_the_name_of_pose_from(tmp_path, kind):
    skeletons = load_pose(ours(tmp_path, DANCE), **{**ONE, "num_frames": 4})
    rng = np.random.default_rng(0)
    films = {
        "skeleton": skeletons,
        "film": rng.integers(60, 200, skeletons.shape, dtype=np.uint8),
        "white": 255 - skeletons,
    }
    for name, images in films.items():
        path = tmp_path / (f"{name}.mp4" if kind == "video" else name)
        if kind == "video":
            write_mp4(path, images, fps=8)
        else:
            path.mkdir()
            for i, image in enumerate(images):
                Image.fromarray(image).save(path / f"{i}.png")
        if name == "skeleton":
            assert load_pose(path, **ONE).any()
        else:
            with pytest.raises(BadPoseError, match=r"is not black, so it is no skeleton.* --pose-from"):
                load_pose(path, **ONE)


def test_convert_poses_prints_what_it_understood_and_writes_our_form(tmp_path):
    out = tmp_path / "out.json"
    run = run_script(CONVERT, WRITERS["OpenPose BODY_25"](tmp_path, DANCE), out, "--size", SIZE)
    assert run.status == 0, run
    for line in (
        "form: OpenPose BODY_25",
        f"size: {SIZE}",
        "frames: 12",
        "people: 0 to 2 in each frame, 17 in all",
        "frames without anybody: 5, 6",
        "joints missing in all people: none",
        "joints missing in some people: right_ear (10 of 17), left_wrist (6 of 17)",
        f"wrote {out}",
    ):
        assert line in run.out.splitlines(), run.out
    assert_same_dance(load_keypoints(out), DANCE)


def test_convert_poses_of_a_bad_command_line_is_one_line(tmp_path):
    source = WRITERS["AlphaPose"](tmp_path, DANCE)
    before = source.read_bytes()
    assert_mistake(run_script(CONVERT, source, tmp_path / "out.json"), "--size WIDTHxHEIGHT")
    assert_mistake(run_script(CONVERT, source, source, "--size", SIZE), "is the source")
    assert_mistake(run_script(CONVERT, source, tmp_path / "out.txt", "--size", SIZE), "must end with .json")
    nobody = ours(tmp_path, [[], []])
    assert_mistake(run_script(CONVERT, nobody, tmp_path / "out.json"), "with 2 frames, and nobody is in it")
    assert_mistake(run_script(CONVERT, tmp_path / "none.json", tmp_path / "out.json"), "no such file")
    assert source.read_bytes() == before
    assert not (tmp_path / "out.json").exists()


def test_save_keypoints_writes_every_bit_of_a_clip(tmp_path):
    clip = KeypointClip(WIDTH, HEIGHT, load_keypoints(ours(tmp_path, DANCE)).frames)
    save_keypoints(tmp_path / "a" / "clip.json", clip)
    for found, expected in zip(load_keypoints(tmp_path / "a" / "clip.json").frames, clip.frames, strict=True):
        np.testing.assert_array_equal(found, expected)


ODD = [
    None,
    [],
    {},
    "",
    "x",
    "9" * 5000,
    0,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    True,
    [[]],
    [None],
]


def mutate(value: object, rng: random.Random, odds: float) -> object:
    """The value with some parts replaced, left out or repeated."""
    if rng.random() < odds:
        return rng.choice(ODD)
    if isinstance(value, dict):
        return {
            rng.choice(["frames", "people", "x", key]) if rng.random() < odds else key: mutate(v, rng, odds)
            for key, v in value.items()
            if rng.random() >= odds
        }
    if isinstance(value, list):
        items = [mutate(item, rng, odds) for item in value for _ in range(1 + (rng.random() < odds))]
        return [item for item in items if rng.random() >= odds / 2]
    return value


def test_load_keypoints_of_500_mutated_files_is_a_clip_or_a_user_error(tmp_path):
    short = make_dance(7)[2:6]
    documents = []
    for number, writer in enumerate(WRITERS.values()):
        (tmp_path / str(number)).mkdir()
        path = writer(tmp_path / str(number), short)
        documents.append(json.loads(next(path.iterdir() if path.is_dir() else iter([path])).read_text()))
    file, refused = tmp_path / "mutated.json", 0
    for case in range(500):
        rng = random.Random(case)
        text = json.dumps(mutate(rng.choice(documents), rng, rng.choice([0.002, 0.02, 0.2])))
        data = bytearray(text.encode())
        if rng.random() < 0.2:
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        file.write_bytes(data)
        try:
            clip = load_keypoints(file, rng.choice([None, SIZE]))
        except UserError:
            refused += 1
        else:
            assert all(np.isfinite(people).all() for people in clip.frames)
        with contextlib.suppress(ItemError):
            parse_keypoints(bytes(data), HEIGHT, WIDTH)
    assert 100 < refused < 480


@pytest.mark.parametrize("text", ["[" * 100_000, '{"frames":' * 50_000, "[" * 500 + "]" * 500, "9" * 5000])
def test_load_keypoints_of_deep_or_endless_json_is_refused(tmp_path: Path, text: str):
    (tmp_path / "deep.json").write_text(text)
    with pytest.raises(BadPoseError):
        load_keypoints(tmp_path / "deep.json", SIZE)
