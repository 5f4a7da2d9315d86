"""The synthetic world: what a scene determines, what moves, what is held out."""

import csv
import hashlib
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_utils import SCRIPTS, assert_mistake, run_script
from conftest import slow
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.data.config import DataConfig
from fyp_jax.data.datasets import open_records
from fyp_jax.data.loader import Loader
from fyp_jax.data.synthetic_source import VERSION, SyntheticRecordSource
from fyp_jax.errors import UserError
from fyp_jax.evaluation.scene_metrics import limb_points
from fyp_jax.media.clips import bundled_clip
from fyp_jax.media.reading import read_frames
from fyp_jax.pose.skeleton import JOINTS, draw_skeleton
from fyp_jax.synthetic.kinematics import Figure, joint_positions
from fyp_jax.synthetic.looks import (
    HELD_OUT_CLOTHES,
    NAMED,
    OPEN,
    TRAIN_CLOTHES,
    sample_clothes,
    sample_look,
)
from fyp_jax.synthetic.motions import HELD_OUT_MOTION, MOTIONS, make_motion
from fyp_jax.synthetic.pairs import HELD_OUT_PAIRS, PAIRS, TRAIN_PAIRS
from fyp_jax.synthetic.parts import PARTS
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES
from fyp_jax.synthetic.scenes import (
    FIRST_HELD_OUT_SEED,
    FIRST_MOVER_LABEL,
    PERSON_LABELS,
    Scene,
    caption,
    caption_words,
    pan_velocity,
    render_clip,
    render_frames,
    scene_keypoints,
    scene_looks,
    training_scene,
)
from fyp_jax.synthetic.styles import STYLES

ROOT = SCRIPTS.parent
PERSON = Scene(("person",), "park", "none", "walk", 3, pan=1.5 / 128)
IMAGES, VIDEOS = "synthetic://pose_images", "synthetic://captioned_videos"


def part_of(labels: np.ndarray, part: str, person: int = 0) -> np.ndarray:
    """Mask of a part (one of PARTS) of a person in label maps."""
    return labels == PERSON_LABELS * person + 1 + PARTS.index(part)


def digest(seeds: range) -> str:
    """A checksum of training scenes: frames, labels, keypoints, velocities and captions."""
    total = hashlib.sha256()
    for seed in seeds:
        clip = render_clip(training_scene(seed), 2, labels=True)
        assert clip.labels is not None
        for array in (clip.video, clip.labels, clip.keypoints.round(6) + 0.0, clip.velocities.round(6) + 0.0):
            total.update(array.tobytes())
        total.update(clip.caption.encode())
    return total.hexdigest()[:16]


def test_drawing_is_that_of_the_sources_version():
    """Where the drawing changes, so must VERSION of data/synthetic_source.py, which a resumed run checks."""
    assert (VERSION, digest(range(8))) == ("2.1", "5a4154bb8a91cc32")


def test_render_clip_is_the_same_in_another_process():
    code = (
        "import hashlib; from fyp_jax.synthetic.scenes import render_clip, training_scene\n"
        "for seed in range(4): print(hashlib.sha256(render_clip(training_scene(seed), 2).video).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    clips = [render_clip(training_scene(seed), 2).video for seed in range(4)]
    assert run.stdout.split() == [hashlib.sha256(video.tobytes()).hexdigest() for video in clips]


@pytest.mark.parametrize("style", STYLES)
def test_render_clip_from_any_frame_on_is_a_part_of_a_longer_clip(style: str):
    scene = PERSON._replace(style=style, place="street")
    whole = render_clip(scene, 6, labels=True)
    part = render_clip(scene, 2, start=2, stride=3, labels=True)
    for field in ("video", "keypoints", "labels"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[2::3])
    np.testing.assert_allclose(part.velocities, 3 * whole.velocities)


def test_each_field_of_a_scene_changes_its_clip():
    clip = render_clip(PERSON, 2)
    others = {
        "characters": ("child",), "place": "sea", "style": "sunset", "motion": "star", "seed": 4,
        "held_out_clothes": True, "pan": 0.0,
    }  # fmt: skip
    for field, value in others.items():
        assert not np.array_equal(clip.video, render_clip(PERSON._replace(**{field: value}), 2).video), field


@pytest.mark.parametrize("size", [64, 96, 256])
def test_render_clip_of_another_size_shows_the_same(size: int):
    scene = PERSON._replace(pan=0.0)
    small, large = (render_clip(scene, 1, n).video[0] for n in (64, size))
    reduced = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(reduced.astype(int) - small).mean() < 6
    np.testing.assert_allclose(
        render_clip(scene, 1, size).keypoints[..., 0],
        2 * size / 128 * render_clip(scene, 1, 64).keypoints[..., 0],
    )


def test_render_clip_of_a_size_that_is_no_multiple_of_32_is_refused():
    with pytest.raises(UserError, match="multiples of 32, not 100"):
        render_clip(PERSON, 1, 100)


def measured_shift(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """The shift to the right, in steps of a quarter pixel, that moves `a` nearest to `b` where `mask` is."""
    x = np.arange(a.shape[1])

    def shifted(shift: float) -> np.ndarray:
        left = np.floor(x - shift).astype(int)
        weight = (x - shift - left)[None, :, None]
        rows = [a[:, np.clip(left + i, 0, len(x) - 1)] for i in (0, 1)]
        return (1 - weight) * rows[0] + weight * rows[1]

    shifts = np.arange(-3, 3.01, 0.25)
    inside = mask & (x >= 4) & (x < len(x) - 4)
    return float(shifts[np.argmin([np.abs(shifted(s) - b)[inside].mean() for s in shifts])])


@pytest.mark.parametrize("place", [place for place in PLACES if place != "simple"])
def test_pan_moves_the_place_as_the_clip_says(place: str):
    for seed, pan in ((1, 1.5), (2, -2.0), (3, 0.0)):
        scene = Scene((), place, "none", "walk", seed, pan=pan / 128)
        frames, velocities, labels = render_frames(scene, np.zeros((2, 0, 17, 3)), labels=True)
        assert labels is not None
        assert velocities[0].tolist() == [-pan, 0]
        a, b = frames.astype(float)
        if place == "sea":  # its waves cover it: what is below the horizon is even
            continue
        assert measured_shift(a, b, (labels[0] == 0) & (labels[1] == 0)) == pytest.approx(-pan, abs=0.25)


def test_what_moves_by_itself_moves_as_the_clip_says():
    found = 0
    for place, seed in (("street", 0), ("street", 1), ("street", 2), ("sea", 3), ("park", 4), ("moon", 5)):
        scene = Scene((), place, "none", "walk", seed, pan=1.0 / 128)
        _, velocities, labels = render_frames(scene, np.zeros((7, 0, 17, 3)), labels=True)
        assert labels is not None
        for index, velocity in list(enumerate(velocities))[1:]:
            first, last = (labels[i] == FIRST_MOVER_LABEL + index for i in (0, 6))
            moved = np.roll(first, np.round(6 * velocity[::-1]).astype(int), axis=(0, 1))
            inner = slice(20, -20)
            if first[:, inner].sum() > 40:
                overlap = (moved & last)[:, inner].sum() / (moved | last)[:, inner].sum()
                assert overlap > (0.45 if place == "moon" else 0.75), (place, seed, index)
                found += 1
    assert found >= 6


@pytest.mark.parametrize("character", [*NAMED, *OPEN])
def test_looks_of_a_character_are_constant_if_named_and_sampled_if_open(character: str):
    looks = [sample_look(character, seed) for seed in range(12)]
    assert looks == [sample_look(character, seed) for seed in range(12)]
    assert len(set(looks)) == (1 if character in NAMED else 12)


@pytest.mark.parametrize("character", ["person", "batman"])
def test_colours_of_parts_are_the_same_in_each_frame_of_a_clip(character: str):
    scene = Scene((character,), "town", "none", "routine", 11)
    clip = render_clip(scene, 8, stride=3, labels=True)
    assert clip.labels is not None
    for part in ("torso", "thighs", "arms"):
        masks = part_of(clip.labels, part)
        medians = [np.median(clip.video[i][masks[i]], axis=0) for i in range(8) if masks[i].sum() > 60]
        assert len(medians) >= 4, part
        assert np.ptp(medians, axis=0).max() <= 3, part


def test_open_people_of_one_scene_differ_and_stay_the_same_over_styles():
    looks = scene_looks(Scene(("person", "person"), "park", "none", "walk", 1))
    assert looks[0] != looks[1]
    assert looks == scene_looks(Scene(("person", "person"), "sea", "sunset", "kick", 1))


def test_training_scenes_have_no_held_out_pair_motion_or_clothes():
    assert 0.1 < len(HELD_OUT_CLOTHES) / (len(HELD_OUT_CLOTHES) + len(TRAIN_CLOTHES)) < 0.15
    assert not set(HELD_OUT_CLOTHES) & set(TRAIN_CLOTHES)
    for part in (0, 1):  # each colour is seen, as a top and as a bottom
        assert {clothes[part] for clothes in HELD_OUT_CLOTHES} <= {clothes[part] for clothes in TRAIN_CLOTHES}
    scenes = [training_scene(seed) for seed in range(2500)]
    assert not any(scene.held_out_clothes for scene in scenes)
    worn = {sample_clothes(scene.seed, i) for scene in scenes for i in range(len(scene.characters))}
    assert worn == set(TRAIN_CLOTHES)
    assert {sample_clothes(seed, 0, True) for seed in range(2000)} == set(HELD_OUT_CLOTHES)
    assert not {(name, scene.place) for scene in scenes for name in scene.characters} & set(HELD_OUT_PAIRS)
    assert {scene.motion for scene in scenes} == set(MOTIONS) - {HELD_OUT_MOTION}
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {len(scene.characters) for scene in scenes} == {1, 2, 3}
    with pytest.raises(ValueError, match="training scenes"):
        training_scene(FIRST_HELD_OUT_SEED)


@pytest.mark.parametrize(
    ("characters", "place", "style", "comma", "text"),
    [
        (("person",), "street", "none", False, "A person on the street"),
        (("dancer",), "park", "none", True, "A dancer, in the park"),
        (("person", "person"), "park", "sunset", False, "Two people in the park, at sunset"),
        (("child",) * 3, "outside", "none", True, "Three children, outside"),
        (("batman", "robot"), "beach", "none", True, "Batman and a robot, on the beach"),
        (("astronaut", "iron man"), "town", "none", False, "An astronaut and Iron man in a town"),
    ],
)
def test_caption_names_the_people_and_nothing_of_their_looks(characters, place, style, comma, text):
    assert caption(Scene(characters, place, style, "walk", 0), comma) == text


@pytest.mark.parametrize("motion", MOTIONS)
def test_limbs_of_a_motion_are_never_longer_than_the_bones_and_move_smoothly(motion: str):
    figure = Figure(0.8, 0.5, 0.95)
    moves = make_motion(motion, np.random.default_rng(5))
    points = np.stack([joint_positions(moves(0.5 + 0.1 * frame), figure) for frame in range(24)])
    at = {name: points[:, i] for i, name in enumerate(JOINTS)}
    for side in ("left", "right"):
        for a, b, bone in (
            ("shoulder", "elbow", 0.17),
            ("elbow", "wrist", 0.16),
            ("hip", "knee", 0.245),
            ("knee", "ankle", 0.235),
        ):
            lengths = np.linalg.norm(at[f"{side}_{a}"] - at[f"{side}_{b}"], axis=-1)
            assert lengths.max() <= 0.8 * bone + 1e-9
    assert np.maximum(at["left_ankle"], at["right_ankle"])[:, 1].max() <= 0.95 + 1e-9
    assert 0.005 < np.abs(np.diff(points, axis=0)).max() < 0.3


@pytest.mark.parametrize("character", [*NAMED, *OPEN])
def test_figure_covers_its_limbs_and_its_labels_say_which(character: str):
    scene = Scene((character,), "park", "none", "kick", 3)
    keypoints = np.ones((1, 1, 17, 3))
    figure = Figure(0.75, 0.5, 0.92)
    keypoints[0, 0, :, :2] = 128 * joint_positions(make_motion("star", np.random.default_rng(2))(0.3), figure)
    _, _, labels = render_frames(scene, keypoints, labels=True)
    assert labels is not None
    x, y = np.floor(limb_points(keypoints[0, 0])).astype(int).T
    assert ((labels[0, y, x] > 0) & (labels[0, y, x] < PERSON_LABELS)).mean() > 0.98
    points = {name: keypoints[0, 0, i, :2] for i, name in enumerate(JOINTS)}
    for part, a, b in (("forearms", "left_elbow", "left_wrist"), ("shins", "right_knee", "right_ankle")):
        x, y = ((points[a] + points[b]) / 2).astype(int)
        assert labels[0, y, x] == 1 + PARTS.index(part)


def test_people_are_where_their_keypoints_are_and_have_labels_of_their_own():
    scene = Scene(("person", "robot"), "street", "none", "walk", 2)
    clip = render_clip(scene, 2, labels=True)
    assert clip.keypoints.shape == (2, 2, 17, 3)
    assert clip.labels is not None
    for person in (0, 1):
        columns = np.nonzero(part_of(clip.labels[0], "torso", person))[1]
        hips = clip.keypoints[0, person, [JOINTS.index("left_hip"), JOINTS.index("right_hip")], 0].mean()
        assert abs(columns.mean() - hips) < 8


def test_confidence_is_0_for_joints_outside_of_the_frame_and_for_some_others():
    outside = hidden = 0
    for seed in range(120):
        joints = scene_keypoints(training_scene(seed), range(1))[0]
        x, y, confidence = joints.reshape(-1, 3).T
        away = (x < -1.5) | (y < -1.5) | (x > 129.5) | (y > 129.5)
        assert not confidence[away].any()
        outside, hidden = outside + away.sum(), hidden + ((confidence == 0) & ~away).sum()
    assert outside > 40
    assert hidden > 40


def test_half_of_the_scenes_pan_by_at_most_two_pixels_a_frame():
    pans = np.array([pan_velocity(training_scene(seed)) for seed in range(400)])
    assert 0.4 < (pans != 0).mean() < 0.6
    assert np.abs(pans).max() <= 2
    assert (4 * pans == np.round(4 * pans)).all()


def tokenize(text: str) -> np.ndarray:
    return np.frombuffer(text.encode().ljust(60)[:60], np.uint8).astype(np.int32)


@pytest.mark.parametrize(("path", "frames"), [slow(IMAGES, 1), slow(VIDEOS, 3)])
def test_stream_is_the_same_with_any_workers_and_resumes_by_its_step(path: str, frames: int):
    def batches(workers: int, start: int, count: int) -> list:
        config = DataConfig(
            path, num_frames=frames, stride=2, height=64, width=64, batch_size=3, workers=workers
        )
        with Loader(open_records(path), config, tokenize, 5, range(3), start) as loader:
            return [next(loader) for _ in range(count)]

    expected = batches(0, 0, 3)
    for other, wanted in ((batches(2, 0, 3), expected), (batches(0, 2, 1), expected[2:])):
        for a, b in zip(other, wanted, strict=True):
            np.testing.assert_array_equal(a.video, b.video)
            np.testing.assert_array_equal(a.input_ids, b.input_ids)
            assert (a.pose_images is None) == (path == VIDEOS)
            if a.pose_images is not None:
                np.testing.assert_array_equal(a.pose_images, b.pose_images)
    assert expected[0].video.shape == (3, frames, 64, 64, 3)
    assert not np.array_equal(expected[0].video, expected[1].video)


def test_stream_of_images_gives_frames_of_training_scenes_with_their_skeletons():
    records = open_records(IMAGES)
    assert isinstance(records, SyntheticRecordSource)
    sample = records.render(
        records[7], DataConfig(IMAGES, num_frames=1, height=128, width=128), np.random.default_rng(0), True
    )
    clip = render_clip(training_scene(7), 1)
    np.testing.assert_array_equal(sample.video, clip.video)
    assert sample.caption == clip.caption
    assert sample.pose_images is not None
    np.testing.assert_array_equal(sample.pose_images[0], draw_skeleton(clip.keypoints[0], 128, 128))
    assert open_records(IMAGES).fingerprint != open_records(VIDEOS).fingerprint
    with pytest.raises(IndexError):
        records[len(records)]


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        ("synthetic://films", {}, "synthetic://films: the synthetic world has synthetic://pose_images and"),
        (IMAGES, {"width": 64}, "the synthetic world is square"),
        (IMAGES, {"height": 100, "width": 100}, "multiples of 32"),
        (IMAGES, {"num_frames": 2}, "set data.num_frames=1"),
    ],
)
def test_stream_that_cannot_be_is_refused_with_what_to_do(path: str, change: dict, message: str):
    config = DataConfig(
        path, **{"num_frames": 1, "height": 128, "width": 128, "batch_size": 1, "workers": 0, **change}
    )
    with (
        pytest.raises(UserError, match=message),
        Loader(open_records(path), config, tokenize, 0, range(1)) as loader,
    ):
        next(loader)


def test_make_mini_tokenizer_writes_the_bundled_tokenizer(tmp_path: Path):
    run = run_script(SCRIPTS / "make_mini_tokenizer.py", "--out", tmp_path / "tokenizer")
    assert run.status == 0, run
    written = sorted((tmp_path / "tokenizer").iterdir())
    assert [file.name for file in written] == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    bundled = Path(str(resources.files("fyp_jax"))) / "assets" / "models" / "mini"
    for folder in (ROOT / "configs" / "mini" / "pipeline", bundled):
        for file in written:
            assert file.read_bytes() == (folder / "tokenizer" / file.name).read_bytes(), file.name


def test_bundled_tokenizer_has_one_token_for_each_word_of_the_captions():
    folder = PipelineFolder("mini", parts=())
    tokenizer, known = folder.latent_encoders().tokenizer, caption_words()
    assert len(tokenizer.get_vocab()) == folder.json("text_encoder")["vocab_size"]
    assert all(tokenizer.token_to_id(word + "</w>") is not None for word in known)
    encoders = folder.latent_encoders()
    for seed in range(200):
        words = re.findall(r"[a-z]+|,", clip_caption(seed).lower())
        assert set(words) - {","} <= known
        ids, cut = encoders.tokenize(clip_caption(seed))
        assert not cut
        tokens = [tokenizer.id_to_token(token) for token in ids[0, : 2 + len(words)]]
        assert tokens == ["<|startoftext|>", *(word + "</w>" for word in words), "<|endoftext|>"]


def clip_caption(seed: int) -> str:
    return caption(training_scene(seed), comma=bool(seed % 2))


@pytest.mark.release
def test_render_synthetic_preview_shows_rows_of_twelve_frames(tmp_path: Path):
    run = run_script(SCRIPTS / "render_synthetic.py", "--preview", tmp_path / "preview.png")
    assert run.status == 0, run
    with Image.open(tmp_path / "preview.png") as image:
        assert image.width == 12 * 128
        picture = np.asarray(image.convert("RGB")).astype(int)
    clip = render_clip(Scene(("robot",), "beach", "none", MOTIONS[6], 6), 1).video[0]
    assert np.abs(picture[:128, 6 * 128 : 7 * 128] - clip).mean() < 12  # of a palette


def test_render_synthetic_writes_images_with_skeletons_and_videos_of_training_scenes(tmp_path: Path):
    sizes = ("--images", 3, "--videos", 1, "--workers", 1, "--size", 64)
    run = run_script(SCRIPTS / "render_synthetic.py", "--out", tmp_path, *sizes)
    assert run.status == 0, run
    images, videos = (
        list(csv.DictReader((tmp_path / kind / "metadata.csv").read_text().splitlines()))
        for kind in ("images", "videos")
    )
    assert [row["file_name"] for row in images] == ["000000.png", "000001.png", "000002.png"]
    for seed, row in enumerate(images):
        clip = render_clip(training_scene(seed), 1, 64)
        assert row["text"] == clip.caption
        for name, expected in (
            (row["file_name"], clip.video[0]),
            (row["skeleton"], draw_skeleton(clip.keypoints[0], 64, 64)),
        ):
            with Image.open(tmp_path / "images" / name) as image:
                np.testing.assert_array_equal(np.asarray(image), expected, err_msg=name)
    (video,) = videos
    clip = render_clip(training_scene(10**6), 24, 64)
    assert video == {"file_name": "000000.mp4", "text": clip.caption}
    read = read_frames(tmp_path / "videos" / "000000.mp4", range(24))
    assert np.abs(read.astype(int) - clip.video).mean() < 8  # H.264 is lossy


def test_render_synthetic_of_a_size_that_the_world_does_not_have_is_refused():
    assert_mistake(run_script(SCRIPTS / "render_synthetic.py", "--size", 100), "multiples of 32, not 100")


def test_bundled_clips_are_what_their_script_renders(tmp_path: Path):
    run = run_script(SCRIPTS / "render_bundled_clips.py", "--out", tmp_path)
    assert run.status == 0, run
    for name in ("robot", "waving"):
        rendered, bundled = (
            read_frames(folder / f"{name}.mp4", range(8))
            for folder in (tmp_path, ROOT / "fyp_jax" / "assets" / "clips")
        )
        assert np.abs(rendered.astype(int) - bundled).mean() < 1, name
    assert (tmp_path / "robot.json").read_text() == bundled_clip("robot", ".json").read_text()


def test_synthetic_world_has_the_characters_places_and_styles_of_the_papers_teaser():
    teaser = {"iron man", "hulk", "astronaut", "batman", "superman", "panda", "robot", "stormtrooper"}
    assert teaser <= set(NAMED)
    assert {"beach", "sea", "forest", "snow", "desert", "moon", "street", "simple"} <= set(PLACES)
    assert set(STYLES) == {"none", "sunset", "minecraft", "van gogh"}


def test_held_out_pairs_are_an_eighth_and_leave_each_character_and_place_to_training():
    assert len(HELD_OUT_PAIRS) == round(len(PAIRS) / 8)
    assert set(HELD_OUT_PAIRS) | set(TRAIN_PAIRS) == set(PAIRS)
    assert not set(HELD_OUT_PAIRS) & set(TRAIN_PAIRS)
    assert {character for character, _ in TRAIN_PAIRS} == set(NAMED)
    assert {place for _, place in TRAIN_PAIRS} == set(PLACES) - set(OPEN_PLACES)


def test_keypoints_of_the_left_side_are_at_the_images_right_of_who_faces_the_viewer():
    points = joint_positions(make_motion("squat", np.random.default_rng(0))(0.0), Figure(0.7, 0.5, 0.9))
    for joint in ("shoulder", "hip", "elbow", "eye"):
        assert points[JOINTS.index(f"left_{joint}"), 0] > points[JOINTS.index(f"right_{joint}"), 0]
