"""Preparing takes what is whole, bit by bit and in order, names what is not, and survives being killed."""

import csv
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from fyp_jax.data import prepare as preparing
from fyp_jax.data.datasets import open_records
from fyp_jax.data.prepare import Report
from fyp_jax.errors import UserError
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4

ROOT = Path(__file__).parent.parent
STANDING = [[16 + i % 3, 4 + 2 * i, 1.0] for i in range(17)]  # a person in an image of 48x32


def moved(x: float, y: float) -> list[list[float]]:
    return (np.array(STANDING) + np.array([x, y, 0])).tolist()


def video(path: Path, frames: int = 5, seed: int = 0, side: int = 32, fps: float = 8) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, noise, fps)
    return path


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def image(form: str = "PNG", height: int = 48, width: int = 32, seed: int = 0, **options: Any) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, form, **options)
    return data.getvalue()


def write_csv(path: Path, *rows: tuple[Any, ...]) -> Path:
    with open(path, "w", newline="") as text:
        csv.writer(text).writerows(rows)
    return path


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def prepare(kind: str, source: Path, out: Path, **options: Any) -> Report:
    return preparing.prepare(
        {"videos": "captioned_videos", "images": "pose_images"}[kind], source, out, **options
    )


def refusals(report: Report) -> dict[str, str]:
    """As the list beside the records has them."""
    with open(report.folder / "refused.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert rows == [rejected._asdict() for rejected in report.rejected]
    assert len(rows) == len({row["name"] for row in rows}), "a name is listed twice"
    return {row["name"]: row["reason"] for row in rows}


def require_refused(report: Report, expected: dict[str, str]) -> None:
    found = refusals(report)
    assert list(found) == list(expected)  # in the order of the metadata
    for name, says in expected.items():
        assert re.search(says, found[name]), f"{name}: {found[name]!r}, not {says!r}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clips(folder: Path, count: int) -> Path:
    """Videos of different lengths and two broken ones, with captions."""
    folder.mkdir(exist_ok=True)
    rows = [("file_name", "text")]
    for i in range(count):
        video(folder / f"{i}.mp4", frames=2 + i, seed=i)
        rows.append((f"{i}.mp4", f"clip {i}"))
    (folder / "text.mp4").write_text("no video")
    rows[3:3] = [("text.mp4", "broken"), ("gone.mp4", "missing")]
    write_csv(folder / "metadata.csv", *rows)
    return folder


def test_videos_are_kept_bit_by_bit_and_counted(tmp_path):
    for i, fps in enumerate((8, 24, 29.97)):
        video(tmp_path / "in" / "sub" / f"{i}.mp4", frames=3 + i, seed=i, fps=fps)
    rows = [("file_name", "text"), *((f"sub/{i}.mp4", f"  clip {i}, “ü”\n") for i in (2, 0, 1))]
    write_csv(tmp_path / "in" / "metadata.csv", *rows)
    report = prepare("videos", tmp_path / "in", tmp_path / "out")
    assert (report.records, report.shards, report.rejected) == (3, 1, [])
    records = open_records(tmp_path / "out")
    assert [record["name"] for record in records] == [row[0] for row in rows[1:]]
    for record in records:
        path = tmp_path / "in" / record["name"]
        assert record["video"] == path.read_bytes()
        assert len(read_frames(path, range(record["frames"]))) == record["frames"] == 3 + int(path.stem)
        assert record["captions"]["text"] == [f"clip {path.stem}, “ü”"]
        assert record["captions"]["frame"].tolist() == [0]
    assert [round(record["fps"], 2) for record in records] == [29.97, 8, 24]


def test_broken_videos_are_refused_by_name_and_the_run_goes_on(tmp_path):
    source = tmp_path / "in"
    whole = video(source / "good.mp4", frames=20).read_bytes()
    video(source / "last.mp4")
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    sound(source / "sound.mp4")
    (source / "text.mp4").write_text("text\n" * 100)
    (source / "empty.mp4").touch()
    (source / "folder.mp4").mkdir()
    video(tmp_path / "outside.mp4")
    write_csv(
        source / "metadata.csv",
        ("file_name", "text"),
        ("good.mp4", "first"),
        ("cut.mp4", "a"),
        ("sound.mp4", "a"),
        ("text.mp4", "a"),
        ("empty.mp4", "a"),
        ("gone.mp4", "a"),
        ("../outside.mp4", "a"),
        (tmp_path / "outside.mp4", "a"),
        ("folder.mp4", "a"),
        ("silent.mp4", " "),
        ("./good.mp4", "again"),
        ("", "a"),
        ("last.mp4", "last"),
    )
    (source / "silent.mp4").write_bytes(whole)
    report = prepare("videos", source, tmp_path / "out")
    assert [record["name"] for record in open_records(tmp_path / "out")] == ["good.mp4", "last.mp4"]
    require_refused(
        report,
        {
            "cut.mp4": r"decoding fails after \d+ frames|cut off",
            "sound.mp4": "no video stream .*audio",
            "text.mp4": "not a video",
            "empty.mp4": "empty",
            "gone.mp4": "no such file",
            "../outside.mp4": "outside of the folder",
            str(tmp_path / "outside.mp4"): "outside of the folder",
            "folder.mp4": "is a folder",
            "silent.mp4": "has no caption",
            "good.mp4": "same name again",
            ".": "no file name",
        },
    )


def test_a_video_has_several_captions(tmp_path):
    for name in ("rows", "list", "twice", "late", "half", "word", "plain", "empty"):
        video(tmp_path / f"{name}.mp4", frames=10)
    listed = [{"frame": 8, "text": "b"}, {"start_frame": 2, "caption": "a"}]
    write_jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "rows.mp4", "text": "second", "start_frame": 5},
        {"file_name": "rows.mp4", "text": "first", "start_frame": 0},
        {"file_name": "list.mp4", "text": listed},
        {"file_name": "twice.mp4", "text": "x", "start_frame": 5},
        {"file_name": "twice.mp4", "text": "y", "start_frame": 5},
        {"file_name": "late.mp4", "text": "x", "start_frame": 10},
        {"file_name": "half.mp4", "text": "x", "start_frame": 1.5},
        {"file_name": "word.mp4", "text": 7},
        {"file_name": "plain.mp4", "text": ["x", "y"]},
        {"file_name": "empty.mp4", "text": []},
        {"file_name": "rows.mp4", "text": "third", "start_frame": 7},
    )
    report = prepare("videos", tmp_path, tmp_path / "out")
    captions = {record["name"]: record["captions"] for record in open_records(tmp_path / "out")}
    for name, frames, texts in (
        ("rows.mp4", [0, 5], ["first", "second"]),
        ("list.mp4", [2, 8], ["a", "b"]),
    ):
        assert captions[name]["frame"].tolist() == frames
        assert captions.pop(name)["text"] == texts
    assert not captions
    require_refused(
        report,
        {
            "twice.mp4": "two captions begin at frame 5",
            "late.mp4": "first caption begins at frame 10, but it has 10 frames",
            "half.mp4": "whole number",
            "word.mp4": "not text",
            "plain.mp4": "a list of captions needs frames",
            "empty.mp4": "has no caption",
            "rows.mp4": "same name again",
        },
    )


def test_images_come_with_skeletons_or_keypoints(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP"), ("s.png", "PNG")):
        (source / name).write_bytes(image(form))
    turned = Image.Exif()
    turned[0x0112] = 6  # held upright, stored lying
    (source / "phone.jpg").write_bytes(image("JPEG", 32, 48, exif=turned))
    (source / "two.json").write_text(json.dumps([STANDING, moved(3, 2)]))
    flat = json.dumps(np.array(STANDING).reshape(51).tolist())
    write_csv(
        source / "metadata.csv",
        ("file_name", "caption", "skeleton", "keypoints"),
        ("a.png", "one", "s.png", ""),
        ("b.jpg", "two", "", "two.json"),
        ("c.webp", "three", "", flat),
        ("phone.jpg", "four", "s.png", ""),
    )
    report = prepare("images", source, tmp_path / "out")
    assert report.rejected == []
    records = open_records(tmp_path / "out")
    assert [record["caption"] for record in records] == ["one", "two", "three", "four"]
    for record in records:
        assert record["image"] == (source / record["name"]).read_bytes()
    assert records[0]["skeleton"] == records[3]["skeleton"] == image()
    assert records[0]["keypoints"].shape == (0, 17, 3)
    assert records[1]["skeleton"] == b""
    np.testing.assert_array_equal(records[1]["keypoints"][0], np.float32(STANDING))
    np.testing.assert_array_equal(records[1]["keypoints"][1], np.float32(moved(3, 2)))
    np.testing.assert_array_equal(records[2]["keypoints"], np.float32([STANDING]))


def test_broken_images_and_poses_are_refused_by_name(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "wide.png").write_bytes(image(width=48))
    (source / "half.png").write_bytes(image()[:1500])
    (source / "text.png").write_text("no image")
    (source / "old.bmp").write_bytes(image("BMP"))
    (source / "none.png").touch()
    (source / "words.json").write_text("no JSON")
    keypoints = {
        "nobody": [],
        "ragged": [[1, 2], [3]],
        "shape": [[[1.0, 2.0, 3.0]]],
        "fractions": (np.array(STANDING) / (32, 48, 1)).tolist(),
        "elsewhere": moved(500, 0),
        "unsure": (np.array(STANDING) * (1, 1, 0.2)).tolist(),
        "nan": [[float("nan")] * 51],
    }
    for name in (
        "good",
        "aspect",
        "blind",
        "poseless",
        "gone_pose",
        "half_pose",
        "words",
        "listed",
        *keypoints,
    ):
        (source / f"{name}.png").write_bytes(image())
    write_jsonl(
        source / "metadata.jsonl",
        {"file_name": "aspect.png", "text": "a", "skeleton": "wide.png"},
        {"file_name": "half.png", "text": "a", "skeleton": "good.png"},
        {"file_name": "text.png", "text": "a", "skeleton": "good.png"},
        {"file_name": "old.bmp", "text": "a", "skeleton": "good.png"},
        {"file_name": "none.png", "text": "a", "skeleton": "good.png"},
        {"file_name": "poseless.png", "text": "a"},
        {"file_name": "gone_pose.png", "text": "a", "skeleton": "gone.png"},
        {"file_name": "half_pose.png", "text": "a", "skeleton": "half.png"},
        {"file_name": "words.png", "text": "a", "keypoints": "words.json"},
        {
            "file_name": "listed.png",
            "text": [{"frame": 0, "text": "a"}, {"frame": 1, "text": "b"}],
            "skeleton": "x",
        },
        *({"file_name": f"{name}.png", "text": "a", "keypoints": value} for name, value in keypoints.items()),
        {"file_name": "good.png", "text": "a", "skeleton": "good.png"},
    )
    report = prepare("images", source, tmp_path / "out")
    assert [record["name"] for record in open_records(tmp_path / "out")] == ["good.png"]
    require_refused(
        report,
        {
            "aspect.png": "its skeleton of 48x48 has not the aspect of its image of 32x48",
            "half.png": "its image does not open .*truncated",
            "text.png": "its image is not an image",
            "old.bmp": "its image is BMP, not JPEG, PNG or WebP",
            "none.png": "is empty",
            "poseless.png": "no skeleton and no keypoints",
            "gone_pose.png": "no such skeleton",
            "half_pose.png": "its skeleton does not open",
            "words.png": "keypoints are not JSON",
            "listed.png": "no such skeleton",
            "nobody.png": "no person",
            "ragged.png": "keypoints are not JSON of 17x3",
            "shape.png": r"shape \(1, 1, 3\)",
            "fractions.png": "fractions",
            "elsewhere.png": "no keypoint .* lies in the image of 32x48",
            "unsure.png": "no keypoint with a confidence of 0.3",
            "nan.png": "not finite",
        },
    )


def test_tars_of_videos(tmp_path):
    data = [video(tmp_path / f"{i}.mp4", frames=3 + i, seed=i).read_bytes() for i in range(4)]
    source = tmp_path / "tars"
    source.mkdir()
    write_tar(
        source / "00000.tar",
        {
            "000.mp4": data[0],
            "000.txt": b"the first\n",
            "sub.d/001.json": json.dumps(
                {"caption": [{"frame": 0, "text": "a"}, {"frame": 2, "text": "b"}]}
            ).encode(),
            "sub.d/001.MP4": data[1],
            "002.mp4": data[2],
            "003.txt": b"no video",
            "004.mp4": data[2][:500],
            "004.txt": b"cut",
            "005.mp4": data[2],
            "005.json": b"{",
            "006.mp4": data[2],
            "006.txt": b"\xff",
        },
    )
    write_tar(source / "00001.tar", {"000.mp4": data[3], "000.txt": b"the same key"})
    (source / "00002.tar").write_bytes(b"no tar" * 1000)
    torn = write_tar(
        source / "00003.tar", {"a.mp4": data[0], "a.txt": b"fine", "b.txt": b"b", "b.mp4": data[3]}
    )
    torn.write_bytes(torn.read_bytes()[: 512 * 4 + len(data[0]) + 3000])
    report = prepare("videos", source, tmp_path / "out")
    records = {record["name"]: record for record in open_records(tmp_path / "out")}
    assert [record["video"] for record in records.values()] == [data[0], data[1], data[3], data[0]]
    assert list(records) == [
        "00000.tar/000.mp4",
        "00000.tar/sub.d/001.mp4",
        "00001.tar/000.mp4",
        "00003.tar/a.mp4",
    ]
    assert records["00000.tar/000.mp4"]["captions"]["text"] == ["the first"]
    assert records["00000.tar/sub.d/001.mp4"]["captions"]["frame"].tolist() == [0, 2]
    require_refused(
        report,
        {
            "00000.tar/002.mp4": "has no caption",
            "00000.tar/003": r"has 0 videos among its members \(.txt\)",
            "00000.tar/004.mp4": "not a video|decoding fails",
            "00000.tar/005.mp4": "json is not JSON",
            "00000.tar/006.mp4": "utf-8",
            "00002.tar": "not a tar",
            "00003.tar": "cut off",
        },
    )


def test_tars_of_images(tmp_path):
    skeleton, keypoints = image(seed=1), json.dumps([STANDING]).encode()
    tar = write_tar(
        tmp_path / "laion.tar",
        {
            "0.jpg": image("JPEG"),
            "0.skeleton.png": skeleton,
            "0.txt": b"zero",
            "1.webp": image("WEBP"),
            "1.keypoints.json": keypoints,
            "1.json": b'{"text": "one"}',
            "2.png": image(),
            "2.json": json.dumps({"text": "two", "keypoints": STANDING}).encode(),
            "3.png": image(),
            "3.txt": b"three",
        },
    )
    report = prepare("images", tar, tmp_path / "out")
    records = list(open_records(tmp_path / "out"))
    assert [record["caption"] for record in records] == ["zero", "one", "two"]
    assert [record["skeleton"] for record in records] == [skeleton, b"", b""]
    assert [len(record["keypoints"]) for record in records] == [0, 1, 1]
    assert records[0]["image"] == image("JPEG")
    require_refused(report, {"laion.tar/3.png": "no skeleton and no keypoints"})


def test_hdvila_captions(tmp_path):
    folder = tmp_path / "hdvila"
    video(folder / "part_3" / "video_clips" / "abc.1.mp4", frames=130)
    video(folder / "07" / "def.mp4", frames=70)
    video(folder / "ghi.2.mp4", frames=200)
    video(tmp_path / "out.mp4")
    captions = write_csv(
        tmp_path / "caption_train.csv",
        ("part_id", "clip_id", "frame_id", "caption"),
        (3, "abc.1.mp4", 0, "a man, at first"),
        (3, "abc.1.mp4", 64, "then"),
        (3, "abc.1.mp4", 128, "last"),
        ("07", "def", 0, "a"),
        ("07", "def", 64.0, "b"),
        (2, "ghi.2", 0, "counted"),
        (2, "ghi.2", 1, "in captions"),
        (2, "ghi.2", 2, "not frames"),
        (2, "gone.mp4", 0, "a"),
        (0, "../../out", 0, "a"),
        (3, "abc.1.mp4", 192, "apart from the others"),
        (4, "x.mp4", "first", "a"),
    )
    report = prepare("videos", folder, tmp_path / "records", captions=captions)
    found = {
        record["name"]: (record["captions"]["frame"].tolist(), record["captions"]["text"])
        for record in open_records(tmp_path / "records")
    }
    assert found == {
        "part_3/video_clips/abc.1.mp4": ([0, 64, 128], ["a man, at first", "then", "last"]),
        "07/def.mp4": ([0, 64], ["a", "b"]),
        "ghi.2.mp4": ([0, 64, 128], ["counted", "in captions", "not frames"]),
    }
    require_refused(
        report,
        {
            "2/gone.mp4": "no such file, nor in part_2",
            "../out": "outside of the folder",
            "part_3/video_clips/abc.1.mp4": "same name again",
            "4/x.mp4": "'first' of a caption is not a number",
        },
    )


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("metadata.csv", "file,text\na.mp4,x\n", "line 2 has no column file_name; its columns: file, text"),
        (
            "metadata.csv",
            "file_name,words\na.mp4,x\n",
            "no column text or caption; its columns: file_name, words",
        ),
        ("metadata.csv", "file_name,text\na.mp4,x\na.mp4,x, y\n", "line 3 has 3 fields for 2 columns"),
        ("metadata.csv", 'file_name,text\na.mp4,"x\nb.mp4,y\n', "not readable as CSV from line"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.csv", "file_name,text\na.mp4,\xff\n".encode("latin-1"), "not readable as CSV .*utf-8"),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "x"}\n{\n',
            "not readable as JSON lines from line 2",
        ),
        (
            "metadata.jsonl",
            '\n{"file_name": "a.mp4", "text": "x"}\n{"text": "x"}\n',
            "line 3 has no column file_name",
        ),
        ("metadata.jsonl", '["a.mp4", "x"]\n', "line 1 is not an object"),
        ("notes.txt", "", "needs metadata.csv or metadata.jsonl, or .tar files, .* 2 entries are there"),
    ],
)
def test_metadata_that_is_not_understood_stops_before_anything_is_written(tmp_path, name, text, says):
    source = tmp_path / "in"
    video(source / "a.mp4")
    (source / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says) as caught:
        prepare("videos", source, tmp_path / "out")
    assert str(caught.value).startswith(str(source))
    assert not (tmp_path / "out").exists()


def test_images_need_a_column_of_poses(tmp_path):
    write_csv(tmp_path / "metadata.csv", ("file_name", "text"), ("a.png", "x"))
    with pytest.raises(UserError, match="no column skeleton or keypoints; its columns: file_name, text"):
        prepare("images", tmp_path, tmp_path / "out")


def test_the_result_is_the_same_on_any_number_of_workers(tmp_path):
    source = clips(tmp_path / "in", 9)
    one = prepare("videos", source, tmp_path / "one", workers=1, shard_bytes=20_000)
    three = prepare("videos", source, tmp_path / "three", workers=3, shard_bytes=20_000)
    assert one.shards > 2
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert one._replace(folder=three.folder) == three
    assert [record["name"] for record in open_records(tmp_path / "one")] == [f"{i}.mp4" for i in range(9)]


def command(source: Path, out: Path, *options: str) -> list[str]:
    script = str(ROOT / "scripts" / "prepare_data.py")
    return [sys.executable, script, "videos", "--source", str(source), "--out", str(out), *options]


PROGRAM = """
import os, signal, sys
from pathlib import Path
from fyp_jax.data.prepare import prepare

source, out, workers, moment = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
steps = 0

def hook(event, args):
    global steps
    if event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir") and str(out) in str(args[0]):
        steps += 1
        if steps == moment:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sys.addaudithook(hook)
    prepare("captioned_videos", source, out, workers=workers, shard_bytes=10_000)
    print(steps)
"""


def run_and_kill(tmp_path: Path, source: Path, out: Path, workers: int, moment: int) -> subprocess.Popen[str]:
    """A run that kills itself, -9, before a step of its on files below `out`; 0 for never."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(source), str(out), str(workers), str(moment)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=subprocess.DEVNULL)


def require_restart(tmp_path: Path, moments: Sequence[float]) -> None:
    """Killed at these shares of its way, each time anew, a run ends with the files of a run never killed."""
    source = clips(tmp_path / "in", 6)
    with run_and_kill(tmp_path, source, tmp_path / "whole", 1, 0) as whole:
        steps = int(whole.communicate()[0])
    for moment in moments:
        out = tmp_path / f"killed at {moment}"
        with run_and_kill(tmp_path, source, out, 1, max(1, round(moment * steps))) as killed:
            assert killed.wait() == -signal.SIGKILL
        report = prepare("videos", source, out, shard_bytes=10_000)
        assert files(out) == files(tmp_path / "whole"), f"killed at {moment} of {steps} steps"
        assert [path.name for path in report.folder.parent.iterdir()] == ["1.0.0"]
        assert report.records == 6


def test_killed_and_started_again_it_ends_with_the_same_files(tmp_path):
    require_restart(tmp_path, (0.3, 0.7, 0.9, 1))


@pytest.mark.slow
def test_it_can_be_killed_before_any_of_its_steps(tmp_path):
    require_restart(tmp_path, [i / 100 for i in range(1, 101)])


def test_killed_from_outside_it_goes_on_where_it_was(tmp_path):
    source, out = clips(tmp_path / "in", 24), tmp_path / "killed"
    log = out / "captioned_videos" / "1.0.0.progress.jsonl"
    with run_and_kill(tmp_path, source, out, 2, 0) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 4):
            time.sleep(0.002)  # one line for the plan, then one for each shard
        process.kill()
    with pytest.raises(UserError, match="preparation was not finished"):
        open_records(out)
    with open(log, "ab") as torn:
        torn.write(b'{"items": 3, "rec')
    times = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*/*.incomplete/*array_record*")}
    report = prepare("videos", source, out, shard_bytes=10_000)
    prepare("videos", source, tmp_path / "whole", shard_bytes=10_000)
    assert files(out) == files(tmp_path / "whole")
    kept = [name for name, when in times.items() if (report.folder / name).stat().st_mtime_ns == when]
    assert len(kept) >= 3, "it began anew"


def test_what_is_made_is_not_made_again(tmp_path):
    source = clips(tmp_path / "in", 3)
    first = prepare("videos", source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert prepare("videos", source, tmp_path / "out") == first._replace(new=False)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_other_content_is_replaced_when_asked_for(tmp_path):
    source = clips(tmp_path / "in", 3)
    first = prepare("videos", source, tmp_path / "out")
    print_before = open_records(tmp_path / "out").fingerprint
    video(source / "1.mp4", frames=9, seed=9)
    with pytest.raises(UserError, match="1.0.0: is there, of other data .*--overwrite"):
        prepare("videos", source, tmp_path / "out")
    assert open_records(tmp_path / "out").fingerprint == print_before
    second = prepare("videos", source, tmp_path / "out", overwrite=True)
    assert (second.folder, second.new) == (first.folder, True)
    assert open_records(tmp_path / "out")[1]["frames"] == 9
    assert [path.name for path in first.folder.parent.iterdir()] == ["1.0.0"]


def test_what_was_begun_with_other_data_is_not_gone_on_with(tmp_path):
    source = clips(tmp_path / "in", 3)
    work = tmp_path / "out" / "captioned_videos" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    work.with_name("1.0.0.progress.jsonl").write_text('"another plan"\n')
    (work / "captioned_videos-train.array_record-00007").write_bytes(b"another shard")
    with pytest.raises(UserError, match="begun with other data .*--overwrite"):
        prepare("videos", source, tmp_path / "out")
    report = prepare("videos", source, tmp_path / "out", overwrite=True)
    assert [path.name for path in report.folder.glob("*array_record*")] == [
        "captioned_videos-train.array_record-00000"
    ]


def test_one_run_at_a_time(tmp_path):
    source = clips(tmp_path / "in", 3)
    log = tmp_path / "out" / "captioned_videos" / "1.0.0.progress.jsonl"
    log.parent.mkdir(parents=True)
    with open(log, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another run is making it"):
            prepare("videos", source, tmp_path / "out")
    assert prepare("videos", source, tmp_path / "out").records == 3


def test_the_command_line(tmp_path):
    source = clips(tmp_path / "in", 2)
    ran = subprocess.run(command(source, tmp_path / "out", "--workers", "2"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert re.fullmatch(r".*/captioned_videos/1.0.0: 2 videos, \d\.\d MB in 1 shard", lines[0])
    assert lines[1] == f"refused 2, listed in {tmp_path}/out/captioned_videos/1.0.0/refused.csv:"
    assert re.fullmatch(r" +1  is not a video.*: text.mp4", lines[2])
    assert re.fullmatch(r" +1  no such file: gone.mp4", lines[3])
    assert "4/4" in ran.stderr  # the bar


def test_nothing_to_take_is_one_line(tmp_path):
    source = clips(tmp_path / "in", 0)
    ran = subprocess.run(command(source, tmp_path / "out"), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    last = ran.stderr.splitlines()[-1]
    listed = tmp_path / "out" / "captioned_videos" / "refused.csv"
    assert last.startswith(
        f"error: {source}: none of 2 items could be taken, {listed} says why; first text.mp4: is"
    )
    assert len(listed.read_text().splitlines()) == 3
    assert "Traceback" not in ran.stderr
    video(source / "gone.mp4")
    assert prepare("videos", source, tmp_path / "out").records == 1  # mended, it runs without more ado


def test_reasons_that_differ_by_numbers_are_one(tmp_path):
    rejected = [
        preparing.Rejected("a", "decoding fails after 3 frames"),
        preparing.Rejected("b", "is empty"),
        preparing.Rejected("c", "decoding fails after 41 frames"),
    ]
    report = Report(tmp_path, 1, 1, 1, rejected, True)
    assert report.by_reason() == [("decoding fails after 3 frames", ["a", "c"]), ("is empty", ["b"])]


def test_a_source_that_shrinks_meanwhile_stops_the_run(tmp_path, monkeypatch):
    source = clips(tmp_path / "in", 3)
    survey = preparing._survey

    def then_shrink(*args: Any) -> tuple[int, str]:
        found = survey(*args)
        write_csv(source / "metadata.csv", ("file_name", "text"), ("0.mp4", "the only one"))
        return found

    monkeypatch.setattr(preparing, "_survey", then_shrink)
    with pytest.raises(UserError, match="has changed meanwhile: 1 items are left of 5"):
        prepare("videos", source, tmp_path / "out")


def test_an_error_that_nobody_foresaw_refuses_one_file(tmp_path, monkeypatch):
    source = clips(tmp_path / "in", 3)
    inspect = preparing.inspect_video

    def odd(data: bytes, name: str) -> Any:
        if name == "1.mp4":
            raise ValueError("odd\nfile")
        return inspect(data, name)

    monkeypatch.setattr(preparing, "inspect_video", odd)
    report = prepare("videos", source, tmp_path / "out")
    assert refusals(report)["1.mp4"] == "cannot be read (odd)"
    assert report.records == 2
