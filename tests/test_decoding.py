"""Decoding a record gives the right frames, the nearest caption and an aligned pose, or a clear error."""

import io
from collections import Counter
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fyp_jax.data import decoding
from fyp_jax.data.config import DataConfig
from fyp_jax.data.decoding import Sample, random_crop
from fyp_jax.errors import UserError
from fyp_jax.media.errors import ClipTooShort
from fyp_jax.media.images import resize_center_crop
from fyp_jax.media.reading import read_frames
from fyp_jax.pose.skeleton import draw_skeleton


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def encode_video(frames: int, height: int = 48, width: int = 64) -> bytes:
    """A video whose frame i has grey level 5 i, with B-frames and a keyframe every 10 frames."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10", "bf": "2", "crf": "10"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 5 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


VIDEO = encode_video(40)


def video_record(**changes: Any) -> dict[str, Any]:
    starts = np.arange(0, 40, 8)
    texts = [f"from {start}" for start in starts]
    record = {"name": "clip", "video": VIDEO, "frames": np.int64(40), "fps": np.float32(10)}
    return record | {"captions": {"frame": starts, "text": texts}} | changes


def encode_image(image: Image.Image | np.ndarray, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **more)
    return out.getvalue()


def image_record(image: bytes, skeleton: bytes = b"", people: Any = ()) -> dict[str, Any]:
    keypoints = np.asarray(people, np.float32).reshape(-1, 17, 3)
    return {"name": "img", "image": image, "skeleton": skeleton, "keypoints": keypoints, "caption": "a man"}


def test_sample_window_is_uniform_over_all_windows_that_fit():
    generator, runs = rng(), 4000
    windows = [
        decoding.sample_window(generator, "x", video_length=20, num_frames=4, stride=3) for _ in range(runs)
    ]
    assert {(w.step, len(w)) for w in windows} == {(3, 4)}
    counts = Counter(w[0] for w in windows)
    assert set(counts) == set(range(11))  # 10, 13, 16, 19 is the last
    expected = runs / 11
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 30  # 10 degrees of freedom: one seed in 1000 exceeds it


@pytest.mark.parametrize("has", range(1, 30))
@pytest.mark.parametrize(("frames", "stride"), [(1, 5), (4, 5), (8, 3), (2, 20)])
def test_sample_window_of_a_short_video_uses_the_largest_stride_that_fits(has, frames, stride):
    fitting = [s for s in range(1, stride + 1) if (frames - 1) * s < has]
    if not fitting or has < frames:
        with pytest.raises(ClipTooShort, match=f"x: has {has} frames"):
            decoding.sample_window(rng(), "x", video_length=has, num_frames=frames, stride=stride)
        return
    for seed in range(20):
        window = decoding.sample_window(rng(seed), "x", video_length=has, num_frames=frames, stride=stride)
        assert len(window) == frames
        assert window.step == max(fitting)
        assert 0 <= window[0] <= window[-1] < has


@pytest.mark.parametrize(
    ("window", "start"),
    [(range(8), 0), (range(60, 68), 64), (range(30, 35), 0), (range(31, 34), 0), (range(31, 36), 64),
     (range(0, 300, 100), 128), (range(200, 300), 128), (range(95, 98), 64)],
)  # fmt: skip
def test_nearest_caption_starts_nearest_to_the_middle_of_the_window(window, start):
    starts = np.array([0, 64, 128])
    assert starts[decoding.nearest_caption(starts, window)] == start


@pytest.mark.parametrize("seed", range(6))
def test_decode_video_gives_evenly_spaced_frames_and_the_nearest_caption(tmp_path, seed):
    sample = decoding.decode_video(video_record(), num_frames=4, stride=5, height=32, width=32, rng=rng(seed))
    assert sample.video.dtype == np.uint8
    assert sample.video.shape == (4, 32, 32, 3)
    assert sample.pose_images is None
    shown = [round(int(v) / 5) for v in sample.video[:, 16, 16, 0]]
    assert np.diff(shown).tolist() == [5, 5, 5]
    middle = (shown[0] + shown[-1]) / 2
    assert sample.caption == f"from {min(range(0, 40, 8), key=lambda start: abs(start - middle))}"
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    read = resize_center_crop(read_frames(tmp_path / "clip.mp4", shown), 32, 32)
    np.testing.assert_array_equal(sample.video, read)


def test_decode_video_accepts_text_as_bytes():
    record = video_record(name=b"clip", captions={"frame": np.array([0]), "text": [b"d\xc3\xa9j\xc3\xa0"]})
    sample = decoding.decode_video(record, num_frames=1, stride=1, height=8, width=8, rng=rng())
    assert sample.caption == "déjà"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.int64(3)}, "clip: has 3 frames, but num_frames=4 stride=1 start=0 needs 4"),
        ({"frames": np.int64(400)}, "clip: frame [0-9]+ cannot be decoded"),
        ({"video": VIDEO[:300]}, "clip: "),
        ({"video": b""}, "clip: "),
        ({"captions": {"frame": np.zeros(0, np.int64), "text": []}}, "clip: has no caption"),
    ],
)
def test_decode_video_of_a_corrupt_record_raises_its_name(changes, message):
    with pytest.raises(UserError, match=message):
        decoding.decode_video(video_record(**changes), num_frames=4, stride=20, height=8, width=8, rng=rng(1))


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with a white disc to the right of and below its middle, and the centre of the disc as x, y."""
    centre = np.array([0.55 * width, 0.6 * height])
    y, x = np.mgrid[:height, :width] + 0.5
    disc = np.hypot(x - centre[0], y - centre[1]) < min(height, width) / 20
    return np.repeat(disc[..., None] * np.uint8(255), 3, axis=2).astype(np.uint8), centre


def centroid(image: np.ndarray) -> np.ndarray:
    """Centre of brightness of an image, as x, y."""
    light = image.astype(float).sum(-1)
    y, x = np.mgrid[: light.shape[0], : light.shape[1]] + 0.5
    return np.array([(x * light).sum(), (y * light).sum()]) / light.sum()


def person_at(point: np.ndarray) -> np.ndarray:
    """A person with a nose and a left eye alone, both at this point, so that one disc is drawn."""
    person = np.zeros((17, 3), np.float32)
    person[:2] = [*point, 1]
    return person


SIZES = [(200, 300), (300, 200), (128, 128), (400, 401), (1000, 600)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(128, 128), (64, 128), (192, 128)])
def test_decode_image_aligns_keypoints_with_the_image(size, target):
    image, centre = scene(*size)
    record = image_record(encode_image(image), people=[person_at(centre)])
    sample = decoding.decode_image(record, height=target[0], width=target[1])
    assert sample.pose_images is not None
    assert sample.video.shape == sample.pose_images.shape == (1, *target, 3)
    np.testing.assert_allclose(centroid(sample.pose_images[0]), centroid(sample.video[0]), atol=0.5)
    assert sample.caption == "a man"


@pytest.mark.parametrize("size", SIZES)
def test_decode_image_aligns_a_skeleton_image_of_any_size(size):
    image, centre = scene(*size)
    scale = 128 / min(size)
    small = round(size[0] * scale), round(size[1] * scale)
    for height, width in (size, small):
        skeleton = draw_skeleton(person_at(centre * (width / size[1], height / size[0]))[None], height, width)
        sample = decoding.decode_image(
            image_record(encode_image(image), encode_image(skeleton)), height=96, width=128
        )
        assert sample.pose_images is not None
        np.testing.assert_allclose(centroid(sample.pose_images[0]), centroid(sample.video[0]), atol=0.6)


def test_keypoints_and_a_skeleton_image_give_nearly_the_same_pose_image():
    joints = np.concatenate([rng(0).uniform(60, 340, (2, 17, 2)), np.ones((2, 17, 1))], axis=-1)
    image = encode_image(np.zeros((400, 400, 3), np.uint8))
    pose = decoding.decode_image(image_record(image, people=joints), height=128, width=128).pose_images
    resized = resize_center_crop(draw_skeleton(joints, 400, 400)[None], 128, 128)
    assert pose is not None
    distance = np.abs(pose.astype(int) - resized).mean()
    assert distance < 3  # edges are rounded differently
    assert np.abs(pose.astype(int) - np.roll(resized, 2, axis=2)).mean() > 5 * distance


def test_skeleton_lines_have_the_same_width_for_images_of_any_size():
    joints = np.concatenate([rng(1).uniform(0.2, 0.8, (1, 17, 2)), np.ones((1, 17, 1))], axis=-1)
    lit = []
    for side in (64, 1024):
        record = image_record(
            encode_image(np.zeros((side, side, 3), np.uint8)), people=joints * (side, side, 1)
        )
        pose = decoding.decode_image(record, height=256, width=256).pose_images
        assert pose is not None
        lit.append(int((pose.max(-1) > 127).sum()))
    assert lit[0] == pytest.approx(lit[1], rel=0.01)


def test_decode_image_without_people_gives_a_black_pose_image():
    sample = decoding.decode_image(image_record(encode_image(scene(50, 50)[0])), height=32, width=32)
    assert sample.pose_images is not None
    assert not sample.pose_images.any()


@pytest.mark.parametrize("size", [(100, 50), (103, 100), (50, 48)])
def test_decode_image_rejects_a_skeleton_of_another_aspect_ratio(size):
    record = image_record(encode_image(scene(100, 100)[0]), encode_image(np.zeros((*size, 3), np.uint8)))
    with pytest.raises(
        decoding.CorruptRecordError, match=f"img: its skeleton of {size[1]}x{size[0]} .* 100x100"
    ):
        decoding.decode_image(record, height=32, width=32)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "RGBA", "LA"])
def test_decode_image_converts_any_mode_to_rgb(kind, mode):
    grey = Image.fromarray(np.full((40, 40, 3), 255, np.uint8)).convert(mode)
    try:
        data = encode_image(grey, kind, quality=95)
    except OSError:
        pytest.skip(f"no {kind} of {mode}")
    sample = decoding.decode_image(image_record(data), height=32, width=32)
    np.testing.assert_allclose(sample.video.astype(int), 255, atol=3)


def test_transparent_pixels_are_white_in_images_and_black_in_skeletons():
    clear = Image.new("RGBA", (40, 40), (200, 30, 30, 0))
    sample = decoding.decode_image(
        image_record(encode_image(clear), encode_image(clear)), height=32, width=32
    )
    assert sample.pose_images is not None
    assert (sample.video == 255).all()
    assert (sample.pose_images == 0).all()


def test_decode_image_turns_an_image_upright_by_its_exif_tag():
    image, _ = scene(60, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right by a quarter
    turned = encode_image(np.rot90(image).copy(), "JPEG", exif=exif, quality=95)
    sample = decoding.decode_image(image_record(turned), height=60, width=90)
    np.testing.assert_allclose(centroid(sample.video[0]), centroid(image), atol=0.5)


@pytest.mark.parametrize("data", [b"", b"no image" * 20, encode_image(scene(60, 90)[0], "JPEG")[:500]])
def test_decode_image_of_a_corrupt_file_raises_its_name(data):
    whole = encode_image(scene(60, 90)[0])
    with pytest.raises(decoding.CorruptRecordError, match="img: its image cannot be decoded"):
        decoding.decode_image(image_record(data), height=32, width=32)
    if data:
        with pytest.raises(decoding.CorruptRecordError, match="img: its skeleton cannot be decoded"):
            decoding.decode_image(image_record(whole, data), height=32, width=32)


def test_random_crop_cuts_the_same_square_of_all_frames_and_skeletons_and_reaches_every_place():
    rows, columns = np.mgrid[:12, :16].astype(np.uint8)
    frame = np.stack([rows, columns, rows * 0], -1)
    sample = Sample(np.stack([frame, frame + 100]), np.stack([frame, frame + 100]), "a dancer")
    corners = set()
    for seed in range(300):
        cut = random_crop(sample, 8, np.random.default_rng(seed))
        top, left, _ = map(int, cut.video[0, 0, 0])
        corners.add((top, left))
        np.testing.assert_array_equal(cut.video, sample.video[:, top : top + 8, left : left + 8])
        np.testing.assert_array_equal(cut.pose_images, cut.video)
        assert cut.caption == "a dancer"
    assert corners == {(top, left) for top in range(5) for left in range(9)}


@pytest.mark.parametrize("size", [0, 65])
def test_random_crop_larger_than_a_frame_is_refused(size):
    config = DataConfig(height=64, width=128, random_crop=size)
    with pytest.raises(UserError, match=f"data.random_crop={size} is not between 1 and 64"):
        config.check()
