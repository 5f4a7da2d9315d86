"""Videos and pictures come out as players show them: upright, with true proportions and colours."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from fyp_jax.data import decoding
from fyp_jax.data.ingest.examples import make_example
from fyp_jax.data.ingest.items import Blob, Caption, Item
from fyp_jax.errors import UserError
from fyp_jax.media import pictures
from fyp_jax.media.display import DisplayError, orient, picture_to_rgb
from fyp_jax.media.errors import BrokenVideoError, MediaError, NotAVideoError
from fyp_jax.media.images import resize_center_crop
from fyp_jax.media.pictures import open_picture
from fyp_jax.media.reading import inspect_video, read_frames, read_window
from fyp_jax.pose.loading import load_pose

ORIENTATIONS = [
    (a, b, c, d) for a, d in ((1, 1), (-1, 1), (1, -1), (-1, -1)) for b, c in ((0, 0),)
] + [(0, b, c, 0) for b, c in ((1, 1), (-1, 1), (1, -1), (-1, -1))]  # fmt: skip
EXIF = {  # the display matrix of each EXIF orientation
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def bright_images_are_poses(monkeypatch: pytest.MonkeyPatch):
    """Images with a bright ground, which are refused as poses, show geometry and colour best."""
    monkeypatch.setattr("fyp_jax.pose.loading._require_black", lambda path, clip: None)


def quadrants(height: int = 64, width: int = 96) -> np.ndarray:
    """A picture whose four quadrants have four colours."""
    image = np.empty((height, width, 3), np.uint8)
    y, x = height // 2, width // 2
    image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:] = (
        (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 230, 230)
    )  # fmt: skip
    return image


def shown(image: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Where a display matrix puts each pixel: x, y to a x + c y, b x + d y."""
    a, b, c, d = matrix
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    out = np.zeros((to_y.max() + 1, to_x.max() + 1, 3), np.uint8)
    out[to_y, to_x] = image
    return out


def encode(
    path: Path,
    images: Sequence[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv444p",
    aspect: Fraction | None = None,
    **options: str,
) -> Path:
    """Encode RGB or RGBA images as a video of 10 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def set_display_matrix(path: Path, matrix: Sequence[float]) -> None:
    """Write a, b, c, d into the track header of an mp4 or mov file, in 16.16 fixed point."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (round(65536 * number) for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def read_everywhere(path: Path, frames: int) -> np.ndarray:
    """The frames of `read_frames`, which those of `inspect_video` and `read_window` must equal."""
    data = path.read_bytes()
    assert inspect_video(data, path.name).num_frames == frames
    whole = read_frames(path, range(frames))
    for start in range(frames):
        np.testing.assert_array_equal(
            read_window(data, path.name, range(start, frames), frames), whole[start:]
        )
    return whole


def encode_picture(picture: Image.Image, form: str = "PNG", **more: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **more)
    return out.getvalue()


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_a_video_with_any_display_matrix_is_shown_by_it(tmp_path, matrix):
    path = encode(tmp_path / "phone.mov", [quadrants()] * 3)
    set_display_matrix(path, matrix)
    expected = shown(quadrants(), matrix)
    for frame in read_everywhere(path, 3):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).mean() < 4
    pose = load_pose(path, num_frames=1, stride=1, start=0, height=64, width=64)
    assert np.abs(pose[0].astype(int) - resize_center_crop(expected[None], 64, 64)[0]).mean() < 4


def test_display_matrices_of_any_angle_and_scale_round_to_the_nearest_orientation():
    rng = np.random.default_rng(0)
    image = quadrants(4, 6)
    for _ in range(500):
        nearest = ORIENTATIONS[rng.integers(8)]
        turn, scale = np.radians(rng.uniform(-44, 44)), rng.uniform(0.1, 30000)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        matrix = [round(v) for v in (scale * 65536 * np.reshape(nearest, (2, 2)) @ rotation).ravel()]
        np.testing.assert_array_equal(orient(image, matrix), shown(image, nearest))
    np.testing.assert_array_equal(orient(image, (0, 0, 0, 0)), image)  # no matrix at all


@pytest.mark.parametrize("tag", EXIF)
def test_a_picture_with_any_exif_orientation_is_upright_for_all_readers(tmp_path, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    expected = shown(quadrants(), EXIF[tag])
    stored = encode_picture(Image.fromarray(quadrants()), exif=exif)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.png").write_bytes(stored)
    height, width = expected.shape[:2]
    size = {"height": height, "width": width}
    for path in (folder, folder / "0.png"):
        np.testing.assert_array_equal(load_pose(path, num_frames=1, stride=1, start=0, **size)[0], expected)
    record = {"name": "i", "image": stored, "skeleton": stored, "caption": "x"}
    sample = decoding.decode_image(record, **size)
    assert sample.pose_images is not None
    np.testing.assert_array_equal(sample.video[0], expected)
    np.testing.assert_array_equal(sample.pose_images[0], expected)


@pytest.mark.parametrize(("width", "aspect"), [(48, Fraction(2)), (96, Fraction(1)), (128, Fraction(3, 4))])
def test_a_video_of_oblong_pixels_is_as_wide_as_players_show_it(tmp_path, width, aspect):
    path = encode(tmp_path / "dv.mp4", [quadrants(64, width)] * 2, aspect=aspect)
    frames = read_everywhere(path, 2)
    assert frames.shape == (2, 64, 96, 3)
    assert np.abs(frames[0].astype(int) - quadrants()).mean() < 4
    set_display_matrix(path, EXIF[6])  # pixels are oblong as they are stored, before the turn
    turned = read_everywhere(path, 2)
    np.testing.assert_array_equal(turned[0], shown(frames[0], EXIF[6]))


def test_an_impossible_pixel_aspect_ratio_is_named(tmp_path):
    path = encode(tmp_path / "odd.mp4", [quadrants()], aspect=Fraction(50))
    for read in (lambda: read_frames(path, [0]), lambda: inspect_video(path.read_bytes(), path.name)):
        with pytest.raises(BrokenVideoError, match=r"odd.mp4: its pixel aspect ratio is 50:1"):
            read()


def rgba() -> np.ndarray:
    """Red: transparent on the left, half transparent in the upper right quarter, opaque below that."""
    image = np.zeros((64, 96, 4), np.uint8)
    image[..., 0] = 200
    image[:32, 48:, 3], image[32:, 48:, 3] = 128, 255
    return image


def save_animation(path: Path, images: Sequence[np.ndarray], **more: object) -> Path:
    first, *others = (Image.fromarray(image) for image in images)
    first.save(path, save_all=True, append_images=others, duration=50, **more)
    return path


TRANSPARENT: list[tuple[str, Callable[[Path], Path]]] = [
    ("q.mov", lambda path: encode(path, [rgba()] * 3, "qtrle", "argb")),
    ("p.mov", lambda path: encode(path, [rgba()] * 3, "prores_ks", "yuva444p10le", profile="4")),
    ("f.mkv", lambda path: encode(path, [rgba()] * 3, "ffv1", "yuva420p")),
    ("8.webm", lambda path: encode(path, [rgba()] * 3, "libvpx", "yuva420p", **{"auto-alt-ref": "0"})),
    ("9.webm", lambda path: encode(path, [rgba()] * 3, "libvpx-vp9", "yuva420p", **{"auto-alt-ref": "0"})),
    ("a.webp", lambda path: save_animation(path, changing(rgba(), 3), lossless=True)),
    ("a.png", lambda path: save_animation(path, changing(rgba(), 3), blend=0)),
    ("a.gif", lambda path: save_animation(path, changing(rgba(), 3), disposal=2)),
]


def changing(image: np.ndarray, frames: int) -> list[np.ndarray]:
    """Copies that differ in a corner, because writers merge equal frames."""
    copies = [image.copy() for _ in range(frames)]
    for i, copy in enumerate(copies):
        copy[-3:, -3:, 0] = 190 + 5 * i
    return copies


@pytest.mark.parametrize(("name", "make"), TRANSPARENT, ids=[name for name, _ in TRANSPARENT])
def test_transparent_pixels_show_black_below_poses_and_white_below_training_frames(tmp_path, name, make):
    path = make(tmp_path / name)
    mixed = {0: (100, 0, 0), 255: (228, 127, 127)}
    half = (
        dict.fromkeys(mixed, (200, 0, 0)) if name == "a.gif" else mixed
    )  # a GIF has no half transparent pixels
    pose = load_pose(path, num_frames=3, stride=1, start=0, height=64, width=96)
    for frames, below in ((read_everywhere(path, 3), 255), (pose, 0)):
        for frame in frames.astype(int):
            np.testing.assert_allclose(frame[10:50:20, 20], below, atol=3)
            np.testing.assert_allclose(frame[15, 70], half[below], atol=4)
            np.testing.assert_allclose(frame[50, 70], (200, 0, 0), atol=4)


def test_the_film_is_read_and_not_its_thumbnail(tmp_path):
    images = [np.full((side, side, 3), grey, np.uint8) for side, grey in ((128, 60), (64, 120))]
    films = [
        encode(tmp_path / "thumb.mp4", images[:1], "mjpeg", "yuvj420p"),
        encode(tmp_path / "film.mp4", images[1:] * 4, "libx264", "yuv420p"),
    ]
    path = tmp_path / "drone.mp4"
    with av.open(str(films[0])) as thumb, av.open(str(films[1])) as film, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(part.streams.video[0]) for part in (thumb, film)]
        streams[0].disposition = Disposition.attached_pic
        for part, stream in zip((thumb, film), streams, strict=True):
            for packet in part.demux(part.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    frames = read_everywhere(path, 4)
    assert frames.shape == (4, 64, 64, 3)
    np.testing.assert_allclose(frames.astype(int), 120, atol=3)


def test_an_attached_picture_alone_is_no_video(tmp_path):
    jpeg = encode(tmp_path / "cover.mp4", [quadrants()], "mjpeg", "yuvj420p")
    path = tmp_path / "song.m4a"
    with av.open(str(jpeg)) as cover, av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream_from_template(cover.streams.video[0])
        stream.disposition = Disposition.attached_pic
        for packet in cover.demux(cover.streams.video[0]):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    for read in (lambda: read_frames(path, [0]), lambda: inspect_video(path.read_bytes(), "song.m4a")):
        with pytest.raises(NotAVideoError, match="song.m4a: has no video stream, but an attached picture"):
            read()


def test_of_several_films_the_largest_is_read_unless_another_is_the_default(tmp_path):
    for default, expected in ((None, 96), (0, 64)):
        path = tmp_path / "two.mkv"
        with av.open(str(path), "w") as out:
            streams = [out.add_stream("mpeg4", rate=10) for _ in range(2)]
            for i, (side, stream) in enumerate(zip((64, 96), streams, strict=True)):
                stream.height = stream.width = side
                stream.disposition = Disposition.default if i == default else Disposition(0)
            for side, stream in zip((64, 96), streams, strict=True):
                image = np.zeros((side, side, 3), np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                out.mux(stream.encode())
        assert read_frames(path, [0]).shape[1] == expected


def test_an_animated_webp_gives_its_frames_and_speed(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (40, 60, 3)).astype(np.uint8) for _ in range(5)]
    for image in images[1:]:
        image[:20] = images[0][:20]  # frames are stored as the part that changes
    path = save_animation(tmp_path / "a.webp", images, lossless=True)
    np.testing.assert_array_equal(read_everywhere(path, 5), images)
    assert inspect_video(path.read_bytes(), "a.webp").fps == pytest.approx(20)
    with pytest.raises(UserError, match="has 5 frames"):
        read_frames(path, range(6))


def test_a_damaged_animated_webp_is_told_in_one_line(tmp_path):
    whole = save_animation(tmp_path / "a.webp", changing(quadrants(), 4), lossless=True).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole[: rng.integers(22, len(whole))] if rng.random() < 0.5 else whole)
        for at in rng.integers(22, len(data), 4):
            data[at] = rng.integers(256)
        with contextlib.suppress(MediaError):
            inspect_video(bytes(data), "a.webp")
    with pytest.raises(BrokenVideoError, match=r"a.webp: is truncated or damaged"):
        inspect_video(whole[: len(whole) // 2], "a.webp")


def write_apng(path: Path, frames: Sequence[tuple[np.ndarray, int, int, int, int]], size: tuple[int, int]):
    """Write RGBA frames with their left, top, disposal and blend; the format of the PNG specification."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = size
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    data += chunk(b"acTL", struct.pack(">II", len(frames), 0))
    number = 0
    for i, (image, left, top, disposal, blend) in enumerate(frames):
        h, w = image.shape[:2]
        control = struct.pack(">IIIIIHHBB", number, w, h, left, top, 1, 20, disposal, blend)
        lines = np.concatenate([np.zeros((h, 1), np.uint8), image.reshape(h, -1)], axis=1).tobytes()
        body = zlib.compress(lines)
        data += chunk(b"fcTL", control)
        data += chunk(b"IDAT", body) if i == 0 else chunk(b"fdAT", struct.pack(">I", number + 1) + body)
        number += 1 if i == 0 else 2
    path.write_bytes(data + chunk(b"IEND", b""))


def test_an_animated_png_is_composed_as_its_specification_says(tmp_path):
    rng = np.random.default_rng(3)
    for trial in range(6):
        size, frames, canvas, expected = (32, 48), [], np.zeros((32, 48, 4)), []
        for i in range(6):
            h, w = (32, 48) if i == 0 else rng.integers(4, 20, 2)
            top, left = (0, 0) if i == 0 else (rng.integers(0, 32 - h), rng.integers(0, 48 - w))
            disposal, blend = int(rng.integers(0, 2 if i == 0 else 3)), int(rng.integers(2))
            image = rng.integers(0, 256, (h, w, 4)).astype(np.uint8)
            image[..., 3] = rng.choice([0, 255, 255], (h, w))
            frames.append((image, int(left), int(top), disposal, blend))
            area, before = np.s_[top : top + h, left : left + w], canvas.copy()
            replaced = (image[..., 3:] == 255) if blend else np.ones((h, w, 1), bool)
            canvas[area] = np.where(replaced, image, canvas[area])
            expected.append(canvas[..., :3] * (canvas[..., 3:] == 255))
            if disposal == 1:
                canvas[area] = 0
            elif disposal == 2:
                canvas = before
        write_apng(tmp_path / "a.png", frames, size)
        pose = load_pose(tmp_path / "a.png", num_frames=6, stride=1, start=0, height=32, width=48)
        np.testing.assert_array_equal(pose, expected, err_msg=f"trial {trial}")
    info = inspect_video((tmp_path / "a.png").read_bytes(), "a.png")
    assert info == (6, 20)


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_a_gif_is_composed_by_its_disposal(tmp_path, disposal):
    images = []
    for i in range(4):
        image = np.zeros((32, 48, 4), np.uint8)
        image[5:15, 4 + 8 * i : 14 + 8 * i] = (250, 20, 20, 255)
        images.append(image)
    path = save_animation(tmp_path / "a.gif", images, disposal=disposal)
    pose = load_pose(path, num_frames=4, stride=1, start=0, height=32, width=48)
    with Image.open(path) as gif:
        for i, frame in enumerate(pose):
            gif.seek(i)
            seen = np.asarray(gif.convert("RGBA")).astype(int)
            np.testing.assert_array_equal(frame, seen[..., :3] * (seen[..., 3:] > 0))


MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}
"""Kr and Kb of BT.709, BT.601 (two numbers), BT.2020, and of no tag, by their number in H.273."""


def standard_rgb(yuv: np.ndarray, matrix: int, full: bool, bits: int) -> np.ndarray:
    """R, G, B in 0..255 of Y, Cb, Cr by the formula of BT.601, BT.709 and BT.2020."""
    kr, kb = MATRICES[matrix]
    y, cb, cr = yuv / 2 ** (bits - 8)
    if full:
        y, cb, cr = (yuv - np.array([0, 2 ** (bits - 1), 2 ** (bits - 1)])) / (2**bits - 1)
    else:
        y, cb, cr = (y - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return 255 * np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b]).clip(0, 1)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("color_range", [0, 1, 2])
@pytest.mark.parametrize(("pixels", "bits"), [("yuv420p", 8), ("yuv444p10le", 10)])
def test_colours_follow_the_tags_of_matrix_and_range(tmp_path, matrix, color_range, pixels, bits):
    values = [np.array(v) * 2 ** (bits - 8) for v in ((120, 90, 180), (60, 140, 120), (200, 120, 130))]
    path = tmp_path / "c.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 32, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        for i, yuv in enumerate(values):
            frame = av.VideoFrame(32, 32, pixels)
            for plane, value in zip(frame.planes, yuv, strict=True):
                count = plane.buffer_size * 8 // (8 if bits == 8 else 16)
                plane.update(np.full(count, value, np.uint8 if bits == 8 else "<u2").tobytes())
            frame.colorspace, frame.color_range = matrix, color_range
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for yuv, frame in zip(values, read_everywhere(path, 3), strict=True):
        expected = standard_rgb(yuv, matrix, color_range == 2, bits)
        np.testing.assert_allclose(frame[16, 16], expected, atol=2)


def test_a_colour_matrix_that_cannot_be_converted_is_named(tmp_path):
    path = tmp_path / "c.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace = 8  # YCgCo
        frame = av.VideoFrame(32, 32, "yuv444p")
        frame.colorspace = 8
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for read in (lambda: read_frames(path, [0]), lambda: inspect_video(path.read_bytes(), "c.mkv")):
        with pytest.raises(BrokenVideoError, match=r"c.mkv: its colour matrix is number 8 of ITU-T H.273"):
            read()


RAMP = np.linspace(0, 255, 48).astype(np.uint8)[None].repeat(32, axis=0)
DEEP = {
    "I;16": Image.fromarray(RAMP.astype(np.uint16) * 257),
    "I;16B": Image.frombytes("I;16B", (48, 32), (RAMP.astype(np.uint16) * 257).astype(">u2").tobytes()),
    "I": Image.fromarray(RAMP.astype(np.int32) * 257),
    "I in 0..255": Image.fromarray(RAMP.astype(np.int32)),
    "F in 0..1": Image.fromarray(RAMP.astype(np.float32) / 255),
    "F in 0..255": Image.fromarray(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_pictures_of_more_than_8_bits_are_scaled_and_not_clipped(kind):
    expected = np.dstack([RAMP] * 3)
    np.testing.assert_array_equal(picture_to_rgb(DEEP[kind], "white"), expected)


@pytest.mark.parametrize("least", [-1.0, float("nan"), 1e9, 300.5])
def test_numbers_that_are_no_grey_levels_are_refused(least):
    with pytest.raises(DisplayError, match=r"its pixels are (numbers|floats)"):
        picture_to_rgb(Image.fromarray(np.full((4, 4), least, np.float32)), "black")


def test_16_bit_png_is_read_alike_by_all_readers(tmp_path):
    deep = encode_picture(DEEP["I;16"])
    expected = np.dstack([RAMP] * 3).astype(int)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "0.png").write_bytes(deep)
    for path in (tmp_path / "f", tmp_path / "f" / "0.png"):
        pose = load_pose(path, num_frames=1, stride=1, start=0, height=32, width=48)
        np.testing.assert_allclose(pose[0], expected, atol=1)
    record = {"name": "i", "image": deep, "skeleton": deep, "caption": "x"}
    sample = decoding.decode_image(record, height=32, width=48)
    np.testing.assert_array_equal(sample.video[0], expected)


def test_a_grey_16_bit_png_with_a_transparent_level_shows_the_background():
    data = encode_picture(DEEP["I;16"])
    clear = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 257 * 255)
    clear += struct.pack(">I", zlib.crc32(clear[4:]))
    at = data.index(b"IDAT") - 4
    with open_picture(data[:at] + clear + data[at:]) as picture:
        image = picture_to_rgb(picture, "black")
    np.testing.assert_array_equal(image[..., 0], np.where(RAMP == 255, 0, RAMP))


HEIC = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00heicmif1heic" + bytes(200)
AVIF = b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf" + bytes(200)


def image_item(path: Path) -> Item:
    return Item("photo", captions=(Caption(0, "x"),), media=blob(path), keypoints="[]")


def blob(path: Path) -> Blob:
    stat = path.stat()
    return Blob(str(path), 0, stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize(
    ("data", "plugin", "says"),
    [
        (HEIC, False, r"is HEIC: pip install -e '\.\[heic\]' to read it"),
        (HEIC, True, "is HEIC, and damaged or cut off"),
        (AVIF, True, "is AVIF, and damaged or cut off"),
    ],
)
def test_heic_and_avif_are_named_with_what_to_do(tmp_path, monkeypatch, data, plugin, says):
    if plugin:
        pytest.importorskip("pillow_heif")
    else:
        monkeypatch.setattr(pictures, "register_heic", lambda: False)
        monkeypatch.setattr(Image, "open", no_plugin)
    (tmp_path / "IMG_1.HEIC").write_bytes(data)
    size = {"num_frames": 1, "stride": 1, "start": 0, "height": 8, "width": 8}
    for path in (tmp_path, tmp_path / "IMG_1.HEIC"):
        with pytest.raises(MediaError, match=says):
            load_pose(path, **size)
    with pytest.raises(decoding.CorruptRecordError, match=says):
        decoding.decode_image({"name": "i", "image": data, "skeleton": b"", "caption": ""}, height=8, width=8)
    rejection = make_example("pose_images", image_item(tmp_path / "IMG_1.HEIC")).rejection
    assert rejection is not None
    assert rejection.reason.startswith("its image is " + says[3:7])


def no_plugin(*_: object) -> Image.Image:
    raise Image.UnidentifiedImageError("cannot identify image file")


def test_heic_pictures_are_read_where_the_extra_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encode_picture(Image.fromarray(quadrants()), "HEIF", quality=95)
    (tmp_path / "IMG_1.HEIC").write_bytes(data)
    pose = load_pose(tmp_path, num_frames=1, stride=1, start=0, height=64, width=96)
    assert np.abs(pose[0].astype(int) - quadrants()).mean() < 5


def test_ingest_rejects_a_video_of_one_frame_with_words_that_say_so(tmp_path):
    path = encode(tmp_path / "one.mp4", [quadrants()])
    item = Item("one.mp4", captions=(Caption(0, "x"),), media=blob(path))
    rejection = make_example("captioned_videos", item).rejection
    assert rejection is not None
    assert rejection.reason == "has a single frame: a video needs at least 2, a picture belongs to `images`"
