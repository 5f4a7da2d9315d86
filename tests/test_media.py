"""Media files: reading gives the right frames, upright and in the right colours, or a clear error."""

import gc
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.media.errors import BrokenVideoError, ClipTooShort, MediaError, MissingFileError, NotAVideoError
from fyp_jax.media.images import GRID_GAP, GRID_GREY, image_grid, resize_center_crop
from fyp_jax.media.reading import frame_indices, inspect_video, read_frames, read_window, require_frames
from fyp_jax.media.writing import write_gif, write_mp4, write_png


def numbered_clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A clip in which frame i has the grey level 10 i, with a red, a green and a blue corner."""
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = 10 * np.arange(frames)[:, None, None, None]
    clip[:, :16, :16] = (255, 0, 0)
    clip[:, :16, -16:] = (0, 255, 0)
    clip[:, -16:, :16] = (0, 0, 255)
    return clip


def frame_numbers(clip: np.ndarray) -> list[int]:
    """The number of each frame of a `numbered_clip`, from the grey level in its middle."""
    height, width = clip.shape[1:3]
    return [round(int(v) / 10) for v in clip[:, height // 2, width // 2, 0]]


def write(path: Path, clip: np.ndarray) -> Path:
    if path.suffix == ".gif":
        write_gif(path, clip, fps=10)
    else:
        write_mp4(path, clip, fps=10)
    return path


def encode(
    path: Path,
    clip: np.ndarray,
    codec: str,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Encode a clip with any container, codec, rotation tag and timestamps (in tenths of a second)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.set_display_rotation(rotation)
        for i, image in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (i if times is None else times[i]), Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def waves(frames: int) -> np.ndarray:
    """A clip of moving waves, in which no two frames are equal."""
    i, y, x, colour = np.ogrid[:frames, :64, :96, :3]
    return (127 + 100 * np.sin((x + 3 * i) / 9 + colour) * np.cos((y - 2 * i) / 7)).astype(np.uint8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_read_frames_by_index_gives_the_frames_written(tmp_path, name):
    path = write(tmp_path / name, numbered_clip(24))
    assert frame_numbers(read_frames(path, range(24))) == list(range(24))
    indices = frame_indices(num_frames=5, stride=4, start=3)
    assert frame_numbers(read_frames(path, indices)) == [3, 7, 11, 15, 19]
    assert frame_numbers(read_frames(path, [23])) == [23]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_mp4_and_gif_keep_colours_and_corners(tmp_path, name):
    read = read_frames(write(tmp_path / name, numbered_clip(3)), range(3))
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read[:, 6, 6].astype(int), [[255, 0, 0]] * 3, atol=6)
    np.testing.assert_allclose(read[:, 6, -6].astype(int), [[0, 255, 0]] * 3, atol=6)
    np.testing.assert_allclose(read[:, -6, 6].astype(int), [[0, 0, 255]] * 3, atol=6)


@pytest.mark.parametrize(
    ("name", "codec"), [("c.mov", "mpeg4"), ("c.webm", "libvpx"), ("a:b %d.avi", "mpeg4")]
)
def test_read_frames_reads_other_containers(tmp_path, name, codec):
    path = encode(tmp_path / name, numbered_clip(12), codec)
    assert frame_numbers(read_frames(path, range(1, 12, 5))) == [1, 6, 11]


def test_read_frames_turns_a_clip_with_a_rotation_tag_upright(tmp_path):
    # The tag says to turn it left by 90 degrees: the upper right corner, green, comes to the upper left.
    path = encode(tmp_path / "phone.mp4", numbered_clip(2), "libx264", rotation=90)
    frame = read_frames(path, [0])[0].astype(int)
    assert frame.shape == (96, 64, 3)
    np.testing.assert_allclose(frame[6, 6], (0, 255, 0), atol=25)
    np.testing.assert_allclose(frame[-6, 6], (255, 0, 0), atol=25)
    np.testing.assert_allclose(frame[-6, -6], (0, 0, 255), atol=25)


def test_read_frames_stops_decoding_at_the_last_index(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    whole = write(tmp_path / "whole.mp4", noise)
    cut = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    np.testing.assert_array_equal(read_frames(cut, range(5)), read_frames(whole, range(5)))
    with pytest.raises(BrokenVideoError, match=r"cut.mp4: decoding fails after \d+ frames"):
        read_frames(cut, range(40))


B_FRAMES = {"g": "12", "bf": "3"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=4:scenecut=0:bframes=3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}  # a keyframe is spread over several frames
UNEVEN = [2 * i + (i % 3 == 1) + 3 * (i > 7) for i in range(40)]


def assert_windows_match(path: Path, clip_length: int) -> None:
    whole, data = read_frames(path, range(clip_length)), path.read_bytes()
    assert len(np.unique(whole.reshape(clip_length, -1), axis=0)) == clip_length  # all differ
    for start in range(clip_length):
        indices = [i for i in (start, start + 3, start + 6) if i < clip_length]
        read = read_window(data, path.name, indices, clip_length)
        np.testing.assert_array_equal(read, whole[indices], err_msg=f"{path.name} from frame {start}")


@pytest.mark.parametrize(
    ("name", "codec", "more"),
    [
        ("b.mp4", "libx264", {"options": B_FRAMES}),
        ("open.mp4", "libx264", {"options": OPEN_GOP}),
        ("open.ts", "libx264", {"options": OPEN_GOP}),
        ("refresh.mkv", "libx264", {"options": REFRESH}),
        ("untimed.avi", "libx264", {"options": B_FRAMES}),
        ("uneven.mp4", "libx264", {"options": B_FRAMES, "times": UNEVEN}),
        ("phone.mp4", "libx264", {"options": B_FRAMES, "rotation": 90}),
        ("hevc.mp4", "libx265", {"options": {"x265-params": "keyint=12:bframes=3:log-level=none"}}),
        ("mpeg4.mp4", "mpeg4", {"options": {"g": "12", "bf": "2"}}),
        ("vp8.webm", "libvpx", {"options": {"g": "24", "lag-in-frames": "16", "auto-alt-ref": "1"}}),
        ("vp9.webm", "libvpx-vp9", {"options": {"g": "12", "deadline": "realtime", "cpu-used": "8"}}),
    ],
)
def test_read_window_equals_read_frames_for_each_codec(tmp_path, name, codec, more):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    assert_windows_match(encode(tmp_path / name, waves(40), codec, **more), 40)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the threads of a process are in /proc")
def test_reading_and_writing_frames_leaves_no_threads(tmp_path: Path):
    """PyAV starts a thread for each core and frame, unless it is told not to, and keeps them for a while."""
    path = tmp_path / "clip.mp4"
    write_mp4(path, np.zeros((8, 64, 64, 3), np.uint8), 8)
    threads = lambda: len(os.listdir("/proc/self/task"))  # noqa: E731
    gc.disable()
    try:
        before = threads()
        write_mp4(tmp_path / "again.mp4", read_window(path.read_bytes(), "clip.mp4", range(8), 8), 8)
        assert threads() == before
    finally:
        gc.enable()


def test_read_window_skips_frames_hidden_by_an_edit_list(tmp_path):
    encode(tmp_path / "whole.mp4", waves(40), "libx264", options=B_FRAMES)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        source = whole.streams.video[0]
        copy = cut.add_stream_from_template(source)
        hidden = 5 * (source.duration or 0) // 40
        for packet in whole.demux(source):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
                packet.stream = copy
                cut.mux(packet)
    assert_windows_match(tmp_path / "cut.mp4", 35)
    with pytest.raises(ClipTooShort, match="has 35 frames"):
        read_frames(tmp_path / "cut.mp4", range(36))


def test_read_window_decodes_nothing_before_its_keyframe(tmp_path):
    path = encode(tmp_path / "clip.mp4", waves(40), "libx264", options=B_FRAMES)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    key = [i for i, packet in enumerate(packets) if packet.is_keyframe][2]
    for packet in packets[:key]:
        assert packet.pos is not None
        data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    late = range(key, key + 9, 4)
    np.testing.assert_array_equal(read_window(bytes(data), "damaged", late, 40), read_frames(path, late))
    with pytest.raises(BrokenVideoError, match="damaged: "):
        read_window(bytes(data), "damaged", range(8), 40)


@pytest.mark.parametrize("clip_length", [30, 41])
def test_read_window_with_a_wrong_clip_length_gives_the_right_frames_or_an_error(tmp_path, clip_length):
    path = encode(tmp_path / "clip.mp4", waves(40), "libx264", options=B_FRAMES)
    np.testing.assert_array_equal(
        read_window(path.read_bytes(), "clip", range(20, 30), clip_length),
        read_frames(path, range(20, 30)),
    )
    if clip_length > 40:
        with pytest.raises(BrokenVideoError, match="clip: frame 40 cannot be decoded, though 41"):
            read_window(path.read_bytes(), "clip", [35, 40], clip_length)
    with pytest.raises(ClipTooShort, match=f"clip: has {clip_length} frames"):
        read_window(path.read_bytes(), "clip", [clip_length], clip_length)


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "n: "), (b"no video\n" * 99, "n: "), (b"WEBVTT\n\n00:01.000 --> 00:02.000\nx", "n: ")],
)
def test_read_window_of_bytes_that_are_no_video_raises_with_the_name(data, says):
    with pytest.raises(NotAVideoError, match=says):
        read_window(data, "n", range(1), 1)


def test_read_frames_rejects_indices_that_do_not_ascend_evenly(tmp_path):
    path = write(tmp_path / "clip.mp4", numbered_clip(5))
    for indices in ([3, 1], [1, 1], [0, 1, 4], [-1, 0]):
        with pytest.raises(ValueError, match="ascend evenly"):
            read_frames(path, indices)


def test_frame_indices_are_evenly_spaced_and_numbers_out_of_range_are_rejected():
    assert list(frame_indices(num_frames=4, stride=5, start=2)) == [2, 7, 12, 17]
    assert list(frame_indices(num_frames=1, stride=9, start=0)) == [0]
    for frames, stride, start, named in [
        (0, 1, 0, "num_frames=0"),
        (1, 0, 0, "stride=0"),
        (1, 1, -1, "start=-1"),
    ]:
        with pytest.raises(UserError, match=named):
            frame_indices(frames, stride, start)


def test_clip_too_short_says_what_fits(tmp_path):
    path = write(tmp_path / "short.mp4", numbered_clip(20))

    def ask(num_frames, stride, start):
        with pytest.raises(ClipTooShort) as caught:
            read_frames(path, frame_indices(num_frames, stride, start))
        assert isinstance(caught.value, UserError)
        return str(caught.value)

    message = ask(num_frames=8, stride=5, start=1)
    assert "short.mp4: has 20 frames" in message
    assert "num_frames=8 stride=5 start=1 needs 37;" in message
    assert "stride=2 at most for num_frames=8" in message
    assert "num_frames=4 at most with stride=5 start=1" in message
    assert "start=19 at most" in ask(num_frames=1, stride=1, start=20)
    no_stride = ask(num_frames=21, stride=1, start=0)
    assert "num_frames=20 at most" in no_stride
    assert "for num_frames=21" not in no_stride


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 60), st.integers(-20, 20))
def test_frame_indices_fit_a_clip_unless_clip_too_short_is_raised(num_frames, stride, start, spare):
    indices = frame_indices(num_frames, stride, start)
    assert len(indices) == num_frames
    assert indices[0] == start
    assert (np.diff(indices) == stride).all()
    needed = start + (num_frames - 1) * stride + 1
    clip_length = max(0, needed + spare)
    if spare >= 0:
        require_frames("x", clip_length, indices)
        assert all(0 <= index < clip_length for index in indices)
    else:
        with pytest.raises(ClipTooShort, match=f"^x: has {clip_length} frames") as caught:
            require_frames("x", clip_length, indices)
        fields = ("clip_length", "num_frames", "stride", "start")
        assert [getattr(caught.value, name) for name in fields] == [clip_length, num_frames, stride, start]


@pytest.mark.parametrize("clip_length", range(1, 12))
@pytest.mark.parametrize(("frames", "stride", "start"), [(4, 3, 0), (4, 3, 2), (1, 2, 3), (12, 1, 0)])
def test_clip_too_short_suggests_the_largest_stride_and_count_that_fit(clip_length, frames, stride, start):
    def fits(n, by):
        return start + (n - 1) * by < clip_length

    if fits(frames, stride):
        return require_frames("x", clip_length, frame_indices(frames, stride, start))
    with pytest.raises(ClipTooShort) as caught:
        require_frames("x", clip_length, frame_indices(frames, stride, start))
    strides = [by for by in range(1, 20) if fits(frames, by) and frames > 1]
    counts = [n for n in range(1, 20) if fits(n, stride)]
    message = str(caught.value)
    assert (f"stride={max(strides, default=0)} at most for" in message) == bool(strides)
    assert (f"num_frames={max(counts, default=0)} at most" in message) == bool(counts)
    return None


def test_read_frames_ignores_the_frame_count_of_the_header(tmp_path):
    path = write(tmp_path / "liar.mp4", numbered_clip(9))
    data = path.read_bytes()
    sizes = data.index(b"stsz") + 12  # the sample table, which starts with the number of frames
    assert int.from_bytes(data[sizes : sizes + 4], "big") == 9
    path.write_bytes(data[:sizes] + (6).to_bytes(4, "big") + data[sizes + 4 :])
    with pytest.raises(ClipTooShort) as caught:
        read_frames(path, range(9))
    assert caught.value.clip_length < 9
    readable = range(caught.value.clip_length)
    assert frame_numbers(read_frames(path, readable)) == list(readable)


def bad_text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("not a video\n" * 50)
    return folder / "text.mp4"


def bad_letters(folder: Path) -> Path:
    (folder / "notes.txt").write_text("FFmpeg renders letters\n" * 50)
    return folder / "notes.txt"


def bad_empty(folder: Path) -> Path:
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def bad_sound(folder: Path) -> Path:
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder / "sound.mp4"


def bad_no_frames(folder: Path) -> Path:
    path = write(folder / "none.mp4", numbered_clip(3))
    data = path.read_bytes()
    sizes = data.index(b"stsz") + 12
    path.write_bytes(data[:sizes] + bytes(4) + data[sizes + 4 :])
    return path


def bad_cut(folder: Path) -> Path:
    path = encode(folder / "cut.mov", numbered_clip(9), "mpeg4")  # the index, at the end, is cut away
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def bad_codec(folder: Path) -> Path:
    path = encode(folder / "codec.avi", numbered_clip(3), "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    return path


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda folder: folder / "nothing.mp4", MissingFileError, "nothing.mp4: no such file"),
        (lambda folder: folder, NotAVideoError, "is a folder"),
        (bad_text, NotAVideoError, "text.mp4: is not a video"),
        (bad_letters, NotAVideoError, "notes.txt: is a text"),
        (bad_empty, NotAVideoError, "empty.mp4: is empty"),
        (bad_sound, NotAVideoError, "sound.mp4: has no video stream .*audio"),
        (bad_no_frames, NotAVideoError, "none.mp4: no frame"),
        (bad_cut, NotAVideoError, "cut.mov: is not a video, or is truncated"),
        (bad_codec, NotAVideoError, "codec.avi: is in a format that this FFmpeg cannot decode"),
    ],
)
def test_read_frames_of_a_bad_file_raises_with_its_path(tmp_path, make, error, says):
    with pytest.raises(error, match=says) as caught:
        read_frames(make(tmp_path), range(1))
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_read_frames_accepts_a_title_in_another_encoding(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQ"
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = 64, 96
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_clip(1)[0], format="rgb24")))
        container.mux(stream.encode())
    assert path.read_bytes().count(b"QQQQ") == 1
    path.write_bytes(path.read_bytes().replace(b"QQQQ", "déjà".encode("latin-1")))
    assert frame_numbers(read_frames(path, range(1))) == [0]


@pytest.mark.parametrize(("name", "codec"), [("c.mp4", "libx264"), ("c.webm", "libvpx"), ("c.avi", "mpeg4")])
def test_inspect_video_counts_the_frames_that_decode(tmp_path, name, codec):
    path = encode(tmp_path / name, numbered_clip(23), codec)
    info = inspect_video(path.read_bytes(), name)
    assert info == (23, 10)
    assert len(read_frames(path, range(info.num_frames))) == 23


@pytest.mark.parametrize("name", ["c.mp4", "c.webm", "c.avi", "c.mkv"])
def test_inspect_video_rejects_truncated_files(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    data = encode(tmp_path / name, noise, "libvpx" if name == "c.webm" else "mpeg4").read_bytes()
    assert inspect_video(data, name).num_frames == 40
    for tenths in range(1, 7):
        with pytest.raises(MediaError, match=rf"^{name}: (decoding fails|is not a video|is truncated|no f)"):
            inspect_video(data[: len(data) * tenths // 10], name)


@pytest.mark.parametrize("make", [bad_text, bad_empty, bad_sound, bad_no_frames, bad_cut])
def test_inspect_video_and_read_frames_raise_the_same_message(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(NotAVideoError) as read:
        read_frames(path, range(1))
    with pytest.raises(NotAVideoError) as inspected:
        inspect_video(path.read_bytes(), str(path))
    assert str(inspected.value) == str(read.value)


def test_inspect_video_rejects_frames_of_two_sizes(tmp_path):
    two = [encode(tmp_path / f"{side}.m2v", numbered_clip(5, side, side), "mpeg2video") for side in (64, 96)]
    joined = two[0].read_bytes() + two[1].read_bytes()
    with pytest.raises(BrokenVideoError, match="frame size changes"):
        inspect_video(joined, "joined.m2v")


def test_resize_center_crop_keeps_the_center_of_a_tall_frame():
    tall = np.zeros((1, 300, 100, 3), np.uint8)
    tall[:, 100:200] = 200  # the middle square
    np.testing.assert_array_equal(resize_center_crop(tall, 100, 100), 200)
    inner = resize_center_crop(tall, 50, 50)[:, 2:-2]  # without the rows that the filter blends with others
    np.testing.assert_array_equal(inner, 200)
    low = resize_center_crop(tall, 32, 64)  # a wide target: the middle 50 rows
    assert low.shape == (1, 32, 64, 3)
    np.testing.assert_array_equal(low, 200)


def test_resize_center_crop_keeps_the_center_and_aspect_of_a_wide_frame():
    wide = np.zeros((2, 100, 400, 3), np.uint8)
    rows, columns = np.mgrid[:100, :400]
    wide[:, (rows - 49.5) ** 2 + (columns - 199.5) ** 2 < 30**2] = 255  # a disc in the middle
    small = resize_center_crop(wide, 64, 96)
    lit = small[0, ..., 0] > 127
    assert small.shape == (2, 64, 96, 3)
    assert abs(int(lit.any(0).sum()) - int(lit.any(1).sum())) <= 1  # still round
    np.testing.assert_allclose(np.argwhere(lit).mean(0), (31.5, 47.5), atol=0.1)
    assert abs(int(lit.any(1).sum()) - 60 * 0.64) <= 1.5


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (320, 64), (512, 448), (7, 13)])
def test_resize_center_crop_covers_a_target_of_any_size(size):
    white = np.full((1, 135, 77, 3), 255, np.uint8)
    fitted = resize_center_crop(white, *size)
    assert fitted.shape == (1, *size, 3)
    assert (fitted == 255).all()  # no border is visible


def test_resize_center_crop_leaves_a_clip_of_the_target_size_as_it_is():
    clip = numbered_clip(2)
    np.testing.assert_array_equal(resize_center_crop(clip, 64, 96), clip)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.png"])
def test_writers_give_equal_bytes_for_equal_frames(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3)).astype(np.uint8)

    def data(folder: str, clip: np.ndarray) -> bytes:
        path = tmp_path / folder / name
        if path.suffix == ".png":
            write_png(path, clip[0])
        else:
            path.parent.mkdir()
            write(path, clip)
        return path.read_bytes()

    assert data("one", noise) == data("two", noise)
    assert data("three", 255 - noise) != data("four", noise)


def test_write_mp4_gives_h264_that_plays_while_it_loads(tmp_path):
    write_mp4(tmp_path / "clip.mp4", numbered_clip(12), fps=8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        assert stream.codec_context.colorspace == 1  # BT.709
        assert container.duration == 1_500_000  # microseconds
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # players start before the end has arrived


def test_writers_reject_odd_sizes_empty_clips_and_unwritable_paths(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got 65x96"):
        write_mp4(tmp_path / "odd.mp4", numbered_clip(2, height=65), fps=8)
    for fps, clip in [(0, numbered_clip(2)), (8, numbered_clip(0))]:
        for name in ("x.mp4", "x.gif"):
            with pytest.raises(ValueError, match="needs frames and an fps"):
                (write_mp4 if name == "x.mp4" else write_gif)(tmp_path / name, clip, fps)
    with pytest.raises(ValueError, match="50 fps"):
        write_gif(tmp_path / "fast.gif", numbered_clip(2), fps=60)
    (tmp_path / "file").touch()
    for name in ("x.mp4", "x.gif"):
        with pytest.raises(UserError, match="cannot be written"):
            write(tmp_path / "file" / name, numbered_clip(2))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_writers_at_the_path_of_a_folder_raise_with_the_path(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path / name}: cannot be written \(Is a directory\)$"):
        write(tmp_path / name, numbered_clip(2))


@pytest.mark.parametrize("static", [True, False])
def test_write_gif_keeps_every_frame_and_its_duration(tmp_path, static):
    clip = np.repeat(numbered_clip(1), 10, axis=0) if static else numbered_clip(10)
    write_gif(tmp_path / "clip.gif", clip, fps=30)
    durations = []
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.info["loop"] == 0
        assert getattr(gif, "n_frames", 1) == 10
        for i in range(10):
            gif.seek(i)
            durations.append(gif.info["duration"])
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), clip[i])
    assert sum(durations) == 330  # 333 ms, rounded to the hundredths of a second of a GIF
    assert set(durations) <= {30, 40}


def test_image_grid_wraps_after_eight_frames():
    gap = GRID_GAP
    poses, frames = (np.full((19, 10, 20, 3), v, np.uint8) for v in (0, 100))
    poses += np.arange(19, dtype=np.uint8)[:, None, None, None]
    frames += np.arange(19, dtype=np.uint8)[:, None, None, None]
    grid = image_grid([poses, frames])
    assert grid.shape == (6 * (10 + gap) - gap, 8 * (20 + gap) - gap, 3)
    cells = grid[5 :: 10 + gap, 10 :: 20 + gap, 0].tolist()
    grey = [GRID_GREY] * 5
    assert cells == [
        [*range(8)],
        [*range(100, 108)],
        [*range(8, 16)],
        [*range(108, 116)],
        [16, 17, 18, *grey],
        [116, 117, 118, *grey],
    ]
    assert (grid[10 : 10 + gap] == GRID_GREY).all()
    assert (grid[:, 20 : 20 + gap] == GRID_GREY).all()
    assert image_grid([poses[:3]]).shape == (10, 3 * (20 + gap) - gap, 3)
    for rows in ([], [poses, frames[:5]], [poses[:0]]):
        with pytest.raises(ValueError, match="must have one shape"):
            image_grid(rows)


def test_write_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    write_png(tmp_path / "new" / "grid.png", image)
    with Image.open(tmp_path / "new" / "grid.png") as read:
        np.testing.assert_array_equal(np.asarray(read), image)


def test_write_mp4_of_a_small_clip_is_the_same_40_times(tmp_path: Path):
    """With B-frames, x264 would give more than ten different files for this clip."""
    rng = np.random.default_rng(0)
    i, y, x, colour = np.ogrid[:8, :64, :64, :3]
    waves = 127 + 100 * np.sin((x + 7 * i) / 9 + colour) * np.cos((y - 5 * i) / 7)
    clip = (waves + rng.normal(0, 25, waves.shape)).clip(0, 255).astype(np.uint8)
    files = set()
    for _ in range(40):
        junk = [rng.standard_normal(size) for size in rng.integers(1, 20_000, 30)]  # used memory
        write_mp4(tmp_path / "clip.mp4", clip, 8)
        files.add((tmp_path / "clip.mp4").read_bytes())
        del junk
    assert len(files) == 1
