"""Frames in and out of files: the right ones, the right way up, in the right colours, or a clear error."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fyp_jax.errors import UserError
from fyp_jax.media import video


def counted(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A clip whose frame i is grey of 10 i, with a red, a green and a blue corner."""
    clip = np.empty((frames, height, width, 3), np.uint8)
    clip[:] = 10 * np.arange(frames)[:, None, None, None]
    clip[:, :16, :16] = (255, 0, 0)
    clip[:, :16, -16:] = (0, 255, 0)
    clip[:, -16:, :16] = (0, 0, 255)
    return clip


def which(clip: np.ndarray) -> list[int]:
    """The numbers of the frames, read from the grey in their middle."""
    height, width = clip.shape[1:3]
    return [round(int(v) / 10) for v in clip[:, height // 2, width // 2, 0]]


def write(path: Path, clip: np.ndarray) -> Path:
    if path.suffix == ".gif":
        video.write_gif(path, clip, fps=10)
    else:
        video.write_mp4(path, clip, fps=10)
    return path


def encode(
    path: Path,
    clip: np.ndarray,
    codec: str,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
) -> Path:
    """Other containers, codecs, tags and times (in tenths of a second) than the library writes."""
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


def moving(frames: int) -> np.ndarray:
    """A clip of waves in which no frame is like another."""
    i, y, x, colour = np.ogrid[:frames, :64, :96, :3]
    return (127 + 100 * np.sin((x + 3 * i) / 9 + colour) * np.cos((y - 2 * i) / 7)).astype(np.uint8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_what_is_written_is_read_by_index(tmp_path, name):
    path = write(tmp_path / name, counted(24))
    assert which(video.read_frames(path, range(24))) == list(range(24))
    assert which(video.read_frames(path, video.frame_indices(frames=5, stride=4, start=3))) == [
        3,
        7,
        11,
        15,
        19,
    ]
    assert which(video.read_frames(path, [23])) == [23]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_colours_and_corners_survive(tmp_path, name):
    read = video.read_frames(write(tmp_path / name, counted(3)), range(3))
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read[:, 6, 6].astype(int), [[255, 0, 0]] * 3, atol=6)
    np.testing.assert_allclose(read[:, 6, -6].astype(int), [[0, 255, 0]] * 3, atol=6)
    np.testing.assert_allclose(read[:, -6, 6].astype(int), [[0, 0, 255]] * 3, atol=6)


@pytest.mark.parametrize(
    ("name", "codec"), [("c.mov", "mpeg4"), ("c.webm", "libvpx"), ("a:b %d.avi", "mpeg4")]
)
def test_other_containers_are_read(tmp_path, name, codec):
    path = encode(tmp_path / name, counted(12), codec)
    assert which(video.read_frames(path, range(1, 12, 5))) == [1, 6, 11]


def test_a_phone_clip_comes_upright(tmp_path):
    path = encode(
        tmp_path / "phone.mp4", counted(2), "libx264", rotation=90
    )  # to be shown a quarter turn left
    picture = video.read_frames(path, [0])[0].astype(int)
    assert picture.shape == (96, 64, 3)
    np.testing.assert_allclose(
        picture[6, 6], (0, 255, 0), atol=25
    )  # the right upper corner is the left one now
    np.testing.assert_allclose(picture[-6, 6], (255, 0, 0), atol=25)
    np.testing.assert_allclose(picture[-6, -6], (0, 0, 255), atol=25)


def test_decoding_stops_at_the_last_index(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    whole = write(tmp_path / "whole.mp4", noise)
    cut = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    np.testing.assert_array_equal(video.read_frames(cut, range(5)), video.read_frames(whole, range(5)))
    with pytest.raises(video.BrokenVideoError, match=r"cut.mp4: decoding fails after \d+ frames"):
        video.read_frames(cut, range(40))


B_FRAMES = {"g": "12", "bf": "3"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=4:scenecut=0:bframes=3"}
REFRESH = {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}  # its keyframes are not whole at once
UNEVEN = [2 * i + (i % 3 == 1) + 3 * (i > 7) for i in range(40)]


def windows_match(path: Path, has: int) -> None:
    whole, data = video.read_frames(path, range(has)), path.read_bytes()
    assert len(np.unique(whole.reshape(has, -1), axis=0)) == has  # or a wrong frame would not be seen
    for start in range(has):
        indices = [i for i in (start, start + 3, start + 6) if i < has]
        read = video.read_window(data, path.name, indices, has)
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
def test_windows_are_what_reading_from_the_start_gives(tmp_path, name, codec, more):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    windows_match(encode(tmp_path / name, moving(40), codec, **more), 40)


def test_windows_skip_what_an_edit_list_hides(tmp_path):
    encode(tmp_path / "whole.mp4", moving(40), "libx264", options=B_FRAMES)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        source = whole.streams.video[0]
        copy = cut.add_stream_from_template(source)
        hidden = 5 * (source.duration or 0) // 40
        for packet in whole.demux(source):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
                packet.stream = copy
                cut.mux(packet)
    windows_match(tmp_path / "cut.mp4", 35)
    with pytest.raises(video.ClipTooShort, match="has 35 frames"):
        video.read_frames(tmp_path / "cut.mp4", range(36))


def test_a_window_needs_nothing_before_its_keyframe(tmp_path):
    path = encode(tmp_path / "clip.mp4", moving(40), "libx264", options=B_FRAMES)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    key = [i for i, packet in enumerate(packets) if packet.is_keyframe][2]
    for packet in packets[:key]:
        assert packet.pos is not None
        data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)
    late = range(key, key + 9, 4)
    np.testing.assert_array_equal(
        video.read_window(bytes(data), "damaged", late, 40), video.read_frames(path, late)
    )
    with pytest.raises(video.BrokenVideoError, match="damaged: "):
        video.read_window(bytes(data), "damaged", range(8), 40)


@pytest.mark.parametrize("has", [30, 41])
def test_a_wrong_count_gives_the_right_frames_or_an_error(tmp_path, has):
    path = encode(tmp_path / "clip.mp4", moving(40), "libx264", options=B_FRAMES)
    np.testing.assert_array_equal(
        video.read_window(path.read_bytes(), "clip", range(20, 30), has),
        video.read_frames(path, range(20, 30)),
    )
    if has > 40:
        with pytest.raises(video.BrokenVideoError, match="clip: frame 40 does not decode, though 41"):
            video.read_window(path.read_bytes(), "clip", [35, 40], has)
    with pytest.raises(video.ClipTooShort, match=f"clip: has {has} frames"):
        video.read_window(path.read_bytes(), "clip", [has], has)


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "n: "), (b"no video\n" * 99, "n: "), (b"WEBVTT\n\n00:01.000 --> 00:02.000\nx", "n: ")],
)
def test_bytes_that_are_no_video_are_named(data, says):
    with pytest.raises(video.NotAVideoError, match=says):
        video.read_window(data, "n", range(1), 1)


def test_indices_must_ascend_evenly(tmp_path):
    path = write(tmp_path / "clip.mp4", counted(5))
    for indices in ([3, 1], [1, 1], [0, 1, 4], [-1, 0]):
        with pytest.raises(ValueError, match="ascend evenly"):
            video.read_frames(path, indices)


def test_frame_indices():
    assert list(video.frame_indices(frames=4, stride=5, start=2)) == [2, 7, 12, 17]
    assert list(video.frame_indices(frames=1, stride=9, start=0)) == [0]
    for frames, stride, start, named in [
        (0, 1, 0, "frames is 0"),
        (1, 0, 0, "stride is 0"),
        (1, 1, -1, "start is -1"),
    ]:
        with pytest.raises(UserError, match=named):
            video.frame_indices(frames, stride, start)


def test_a_short_clip_says_what_fits(tmp_path):
    path = write(tmp_path / "short.mp4", counted(20))

    def ask(frames, stride, start):
        with pytest.raises(video.ClipTooShort) as caught:
            video.read_frames(path, video.frame_indices(frames, stride, start))
        assert isinstance(caught.value, UserError)
        return str(caught.value)

    message = ask(frames=8, stride=5, start=1)
    assert "short.mp4: has 20 frames" in message
    assert "need 37;" in message
    assert "stride 2 at most for 8 frames" in message
    assert "4 frames at most with stride 5 from frame 1" in message
    assert "a start below 20" in ask(frames=1, stride=1, start=20)
    no_stride = ask(frames=21, stride=1, start=0)
    assert "20 frames at most" in no_stride
    assert "for 21 frames" not in no_stride


@pytest.mark.parametrize("has", range(1, 12))
@pytest.mark.parametrize(("frames", "stride", "start"), [(4, 3, 0), (4, 3, 2), (1, 2, 3), (12, 1, 0)])
def test_the_advice_fits_and_is_the_most(has, frames, stride, start):
    def fits(n, by):
        return start + (n - 1) * by < has

    if fits(frames, stride):
        return video.require_frames("x", has, video.frame_indices(frames, stride, start))
    with pytest.raises(video.ClipTooShort) as caught:
        video.require_frames("x", has, video.frame_indices(frames, stride, start))
    strides = [by for by in range(1, 20) if fits(frames, by) and frames > 1]
    counts = [n for n in range(1, 20) if fits(n, stride)]
    message = str(caught.value)
    assert (f"stride {max(strides, default=0)} at most for" in message) == bool(strides)
    assert (f"{max(counts, default=0)} frames at most" in message) == bool(counts)
    return None


def test_the_header_is_not_believed(tmp_path):
    path = write(tmp_path / "liar.mp4", counted(9))
    data = path.read_bytes()
    sizes = data.index(b"stsz") + 12  # the table of samples: how many there are
    assert int.from_bytes(data[sizes : sizes + 4], "big") == 9
    path.write_bytes(data[:sizes] + (6).to_bytes(4, "big") + data[sizes + 4 :])
    with pytest.raises(video.ClipTooShort) as caught:
        video.read_frames(path, range(9))
    assert caught.value.has < 9
    assert which(video.read_frames(path, range(caught.value.has))) == list(range(caught.value.has))


def bad_text(folder: Path) -> Path:
    (folder / "text.mp4").write_text("not a video\n" * 50)
    return folder / "text.mp4"


def bad_letters(folder: Path) -> Path:
    (folder / "notes.txt").write_text("FFmpeg draws letters\n" * 50)
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
    path = write(folder / "none.mp4", counted(3))
    data = path.read_bytes()
    sizes = data.index(b"stsz") + 12
    path.write_bytes(data[:sizes] + bytes(4) + data[sizes + 4 :])
    return path


def bad_cut(folder: Path) -> Path:
    path = encode(folder / "cut.mov", counted(9), "mpeg4")  # its index is at the end, which is gone
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def bad_codec(folder: Path) -> Path:
    path = encode(folder / "codec.avi", counted(3), "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    return path


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda folder: folder / "nothing.mp4", video.MissingFileError, "nothing.mp4: no such file"),
        (lambda folder: folder, video.NotAVideoError, "is a folder"),
        (bad_text, video.NotAVideoError, "text.mp4: is not a video"),
        (bad_letters, video.NotAVideoError, "notes.txt: is a text"),
        (bad_empty, video.NotAVideoError, "empty.mp4: is empty"),
        (bad_sound, video.NotAVideoError, "sound.mp4: has no video stream .*audio"),
        (bad_no_frames, video.NotAVideoError, "none.mp4: no frame"),
        (bad_cut, video.NotAVideoError, "cut.mov: is not a video, or is cut off"),
        (bad_codec, video.NotAVideoError, "codec.avi: is in a format that this FFmpeg does not decode"),
    ],
)
def test_bad_files_are_named(tmp_path, make, error, says):
    with pytest.raises(error, match=says) as caught:
        video.read_frames(make(tmp_path), range(1))
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_a_title_in_another_encoding_does_no_harm(tmp_path):
    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "QQQQ"
        stream = container.add_stream("mpeg4", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = 64, 96
        container.mux(stream.encode(av.VideoFrame.from_ndarray(counted(1)[0], format="rgb24")))
        container.mux(stream.encode())
    assert path.read_bytes().count(b"QQQQ") == 1
    path.write_bytes(path.read_bytes().replace(b"QQQQ", "déjà".encode("latin-1")))
    assert which(video.read_frames(path, range(1))) == [0]


@pytest.mark.parametrize(("name", "codec"), [("c.mp4", "libx264"), ("c.webm", "libvpx"), ("c.avi", "mpeg4")])
def test_inspecting_counts_what_decodes(tmp_path, name, codec):
    path = encode(tmp_path / name, counted(23), codec)
    footage = video.inspect_video(path.read_bytes(), name)
    assert footage == (23, 10)
    assert len(video.read_frames(path, range(footage.frames))) == 23


@pytest.mark.parametrize("name", ["c.mp4", "c.webm", "c.avi", "c.mkv"])
def test_inspecting_refuses_what_is_cut_off(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3)).astype(np.uint8)
    data = encode(tmp_path / name, noise, "libvpx" if name == "c.webm" else "mpeg4").read_bytes()
    assert video.inspect_video(data, name).frames == 40
    for share in range(1, 7):
        with pytest.raises(
            video.MediaError, match=rf"^{name}: (decoding fails|is not a video|is cut off|no f)"
        ):
            video.inspect_video(data[: len(data) * share // 10], name)


@pytest.mark.parametrize("make", [bad_text, bad_empty, bad_sound, bad_no_frames, bad_cut])
def test_inspecting_says_what_reading_says(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(video.NotAVideoError) as read:
        video.read_frames(path, range(1))
    with pytest.raises(video.NotAVideoError) as inspected:
        video.inspect_video(path.read_bytes(), str(path))
    assert str(inspected.value) == str(read.value)


def test_inspecting_refuses_frames_of_two_sizes(tmp_path):
    two = [encode(tmp_path / f"{side}.m2v", counted(5, side, side), "mpeg2video") for side in (64, 96)]
    joined = two[0].read_bytes() + two[1].read_bytes()
    with pytest.raises(video.BrokenVideoError, match="frame size changes"):
        video.inspect_video(joined, "joined.m2v")


def test_fit_keeps_the_centre_of_a_tall_frame():
    tall = np.zeros((1, 300, 100, 3), np.uint8)
    tall[:, 100:200] = 200  # the middle square
    np.testing.assert_array_equal(video.resize_center_crop(tall, 100, 100), 200)
    np.testing.assert_array_equal(
        video.resize_center_crop(tall, 50, 50)[:, 2:-2], 200
    )  # the filter sees over the edge
    low = video.resize_center_crop(tall, 32, 64)  # a wide target: the middle 50 rows
    assert low.shape == (1, 32, 64, 3)
    np.testing.assert_array_equal(low, 200)


def test_fit_keeps_the_centre_of_a_wide_frame_and_the_aspect():
    wide = np.zeros((2, 100, 400, 3), np.uint8)
    rows, columns = np.mgrid[:100, :400]
    wide[:, (rows - 49.5) ** 2 + (columns - 199.5) ** 2 < 30**2] = 255  # a disc in the middle
    small = video.resize_center_crop(wide, 64, 96)
    lit = small[0, ..., 0] > 127
    assert small.shape == (2, 64, 96, 3)
    assert abs(int(lit.any(0).sum()) - int(lit.any(1).sum())) <= 1  # still round
    np.testing.assert_allclose(np.argwhere(lit).mean(0), (31.5, 47.5), atol=0.1)
    assert abs(int(lit.any(1).sum()) - 60 * 0.64) <= 1.5


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (320, 64), (512, 448), (7, 13)])
def test_fit_covers_any_target(size):
    white = np.full((1, 135, 77, 3), 255, np.uint8)
    fitted = video.resize_center_crop(white, *size)
    assert fitted.shape == (1, *size, 3)
    assert (fitted == 255).all()  # no border came in


def test_fit_leaves_a_fitting_clip_alone():
    clip = counted(2)
    np.testing.assert_array_equal(video.resize_center_crop(clip, 64, 96), clip)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.png"])
def test_the_same_frames_give_the_same_bytes(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (6, 128, 128, 3)).astype(np.uint8)

    def data(folder: str, clip: np.ndarray) -> bytes:
        path = tmp_path / folder / name
        if path.suffix == ".png":
            video.write_png(path, clip[0])
        else:
            path.parent.mkdir()
            write(path, clip)
        return path.read_bytes()

    assert data("one", noise) == data("two", noise)
    assert data("three", 255 - noise) != data("four", noise)


def test_mp4_is_what_players_expect(tmp_path):
    video.write_mp4(tmp_path / "clip.mp4", counted(12), fps=8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8
        assert stream.codec_context.colorspace == 1  # BT.709, as it says
        assert container.duration == 1_500_000  # microseconds
    data = (tmp_path / "clip.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays while it loads


def test_writers_refuse_what_they_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="even height and width, got 65x96"):
        video.write_mp4(tmp_path / "odd.mp4", counted(2, height=65), fps=8)
    for fps, clip in [(0, counted(2)), (8, counted(0))]:
        for name in ("x.mp4", "x.gif"):
            with pytest.raises(ValueError, match="needs frames and an fps"):
                getattr(video, f"write_{name[2:]}")(tmp_path / name, clip, fps)
    with pytest.raises(ValueError, match="50 fps"):
        video.write_gif(tmp_path / "fast.gif", counted(2), fps=60)
    (tmp_path / "file").touch()
    for do in (lambda p: write(p / "x.mp4", counted(2)), lambda p: write(p / "x.gif", counted(2))):
        with pytest.raises(video.MediaError, match="cannot be written"):
            do(tmp_path / "file")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("static", [True, False])
def test_gif_keeps_every_frame_and_its_time(tmp_path, static):
    clip = np.repeat(counted(1), 10, axis=0) if static else counted(10)
    video.write_gif(tmp_path / "clip.gif", clip, fps=30)
    durations = []
    with Image.open(tmp_path / "clip.gif") as gif:
        assert gif.info["loop"] == 0
        assert getattr(gif, "n_frames", 1) == 10
        for i in range(10):
            gif.seek(i)
            durations.append(gif.info["duration"])
            np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), clip[i])
    assert sum(durations) == 330  # 333 ms, in the hundredths that a GIF knows
    assert set(durations) <= {30, 40}


def test_contact_sheet_has_blocks_of_eight():
    gap = video.SHEET_GAP
    poses, frames = (np.full((19, 10, 20, 3), v, np.uint8) for v in (0, 100))
    poses += np.arange(19, dtype=np.uint8)[:, None, None, None]
    frames += np.arange(19, dtype=np.uint8)[:, None, None, None]
    sheet = video.image_grid([poses, frames])
    assert sheet.shape == (6 * (10 + gap) - gap, 8 * (20 + gap) - gap, 3)
    cells = sheet[5 :: 10 + gap, 10 :: 20 + gap, 0].tolist()
    grey = [video.SHEET_GREY] * 5
    assert cells == [
        [*range(8)],
        [*range(100, 108)],
        [*range(8, 16)],
        [*range(108, 116)],
        [16, 17, 18, *grey],
        [116, 117, 118, *grey],
    ]
    assert (sheet[10 : 10 + gap] == video.SHEET_GREY).all()
    assert (sheet[:, 20 : 20 + gap] == video.SHEET_GREY).all()
    assert video.image_grid([poses[:3]]).shape == (10, 3 * (20 + gap) - gap, 3)
    for rows in ([], [poses, frames[:5]], [poses[:0]]):
        with pytest.raises(ValueError, match="share one shape"):
            video.image_grid(rows)


def test_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    video.write_png(tmp_path / "new" / "sheet.png", image)
    with Image.open(tmp_path / "new" / "sheet.png") as read:
        np.testing.assert_array_equal(np.asarray(read), image)


def test_mp4_of_a_small_clip_is_the_same_40_times(tmp_path: Path):
    """With B-frames, x264 makes more than ten different files of this clip."""
    rng = np.random.default_rng(0)
    i, y, x, colour = np.ogrid[:8, :64, :64, :3]
    waves = 127 + 100 * np.sin((x + 7 * i) / 9 + colour) * np.cos((y - 5 * i) / 7)
    clip = (waves + rng.normal(0, 25, waves.shape)).clip(0, 255).astype(np.uint8)
    files = set()
    for _ in range(40):
        junk = [rng.standard_normal(size) for size in rng.integers(1, 20_000, 30)]  # memory is reused
        video.write_mp4(tmp_path / "clip.mp4", clip, 8)
        files.add((tmp_path / "clip.mp4").read_bytes())
        del junk
    assert len(files) == 1
