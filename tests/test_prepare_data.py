"""Ingest keeps valid items byte for byte, rejects others with a reason, and resumes after it was killed."""

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

from fyp_jax.data.datasets import open_records
from fyp_jax.data.ingest import examples
from fyp_jax.data.ingest import ingest as ingest_module
from fyp_jax.data.ingest.ingest import Report
from fyp_jax.data.ingest.items import Rejection
from fyp_jax.errors import UserError
from fyp_jax.media.reading import read_frames
from fyp_jax.media.writing import write_mp4

ROOT = Path(__file__).parent.parent
PERSON = [[16 + i % 3, 4 + 2 * i, 1.0] for i in range(17)]  # keypoints in an image of height 48 and width 32


def shifted_person(x: float, y: float) -> list[list[float]]:
    return (np.array(PERSON) + np.array([x, y, 0])).tolist()


def write_video(path: Path, frames: int = 5, seed: int = 0, side: int = 32, fps: float = 8) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, noise, fps)
    return path


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def encode_image(
    form: str = "PNG", height: int = 48, width: int = 32, seed: int = 0, **options: Any
) -> bytes:
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


def ingest(kind: str, source: Path, out: Path, **options: Any) -> Report:
    return ingest_module.ingest(
        {"videos": "captioned_videos", "images": "pose_images"}[kind], source, out, **options
    )


def rejections(report: Report) -> dict[str, str]:
    """Reason by name, as the file beside the records lists them."""
    with open(report.folder / "refused.csv", newline="") as text:
        rows = list(csv.DictReader(text))
    assert rows == [rejection._asdict() for rejection in report.rejected]
    assert len(rows) == len({row["name"] for row in rows}), "a name is listed twice"
    return {row["name"]: row["reason"] for row in rows}


def assert_rejected(report: Report, expected: dict[str, str]) -> None:
    """Exactly these items are rejected, in this order, each with a reason that matches its pattern."""
    found = rejections(report)
    assert list(found) == list(expected)  # in the order of the metadata
    for name, pattern in expected.items():
        assert re.search(pattern, found[name]), f"{name}: {found[name]!r}, not {pattern!r}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_clips(folder: Path, count: int) -> Path:
    """Captioned videos of different lengths, with two broken ones among them."""
    folder.mkdir(exist_ok=True)
    rows = [("file_name", "text")]
    for i in range(count):
        write_video(folder / f"{i}.mp4", frames=2 + i, seed=i)
        rows.append((f"{i}.mp4", f"clip {i}"))
    (folder / "text.mp4").write_text("no video")
    rows[3:3] = [("text.mp4", "broken"), ("gone.mp4", "missing")]
    write_csv(folder / "metadata.csv", *rows)
    return folder


def test_ingest_keeps_video_bytes_and_counts_frames(tmp_path):
    for i, fps in enumerate((8, 24, 29.97)):
        write_video(tmp_path / "in" / "sub" / f"{i}.mp4", frames=3 + i, seed=i, fps=fps)
    rows = [("file_name", "text"), *((f"sub/{i}.mp4", f"  clip {i}, “ü”\n") for i in (2, 0, 1))]
    write_csv(tmp_path / "in" / "metadata.csv", *rows)
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
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


def test_ingest_rejects_broken_videos_with_a_reason_and_continues(tmp_path):
    source = tmp_path / "in"
    whole = write_video(source / "good.mp4", frames=20).read_bytes()
    write_video(source / "last.mp4")
    (source / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_audio(source / "sound.mp4")
    (source / "text.mp4").write_text("text\n" * 100)
    (source / "empty.mp4").touch()
    (source / "folder.mp4").mkdir()
    write_video(tmp_path / "outside.mp4")
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
    report = ingest("videos", source, tmp_path / "out")
    assert [record["name"] for record in open_records(tmp_path / "out")] == ["good.mp4", "last.mp4"]
    assert_rejected(
        report,
        {
            "cut.mp4": r"(damaged|fails) after \d+ frames|cut off",
            "sound.mp4": "no video stream .*audio",
            "text.mp4": "not a video",
            "empty.mp4": "empty",
            "gone.mp4": "no such file",
            "../outside.mp4": "outside the source folder",
            str(tmp_path / "outside.mp4"): "outside the source folder",
            "folder.mp4": "is a folder",
            "silent.mp4": "has no caption",
            "good.mp4": "same name as an earlier item",
            ".": "no file name",
        },
    )


def test_ingest_reads_several_captions_of_a_video_and_rejects_wrong_ones(tmp_path):
    for name in ("rows", "list", "twice", "late", "half", "word", "plain", "empty"):
        write_video(tmp_path / f"{name}.mp4", frames=10)
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
    report = ingest("videos", tmp_path, tmp_path / "out")
    captions = {record["name"]: record["captions"] for record in open_records(tmp_path / "out")}
    for name, frames, texts in (
        ("rows.mp4", [0, 5], ["first", "second"]),
        ("list.mp4", [2, 8], ["a", "b"]),
    ):
        assert captions[name]["frame"].tolist() == frames
        assert captions.pop(name)["text"] == texts
    assert not captions
    assert_rejected(
        report,
        {
            "twice.mp4": "two captions start at frame 5",
            "late.mp4": "first caption starts at frame 10, but it has 10 frames",
            "half.mp4": "whole number",
            "word.mp4": "not text",
            "plain.mp4": "each caption of a list needs a frame",
            "empty.mp4": "has no caption",
            "rows.mp4": "same name as an earlier item",
        },
    )


def test_ingest_reads_images_with_skeletons_or_keypoints(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP"), ("s.png", "PNG")):
        (source / name).write_bytes(encode_image(form))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored sideways, to be shown upright
    (source / "phone.jpg").write_bytes(encode_image("JPEG", 32, 48, exif=exif))
    (source / "two.json").write_text(json.dumps([PERSON, shifted_person(3, 2)]))
    flat = json.dumps(np.array(PERSON).reshape(51).tolist())
    write_csv(
        source / "metadata.csv",
        ("file_name", "caption", "skeleton", "keypoints"),
        ("a.png", "one", "s.png", ""),
        ("b.jpg", "two", "", "two.json"),
        ("c.webp", "three", "", flat),
        ("phone.jpg", "four", "s.png", ""),
    )
    report = ingest("images", source, tmp_path / "out")
    assert report.rejected == []
    records = open_records(tmp_path / "out")
    assert [record["caption"] for record in records] == ["one", "two", "three", "four"]
    for record in records:
        assert record["image"] == (source / record["name"]).read_bytes()
    assert records[0]["skeleton"] == records[3]["skeleton"] == encode_image()
    assert records[0]["keypoints"].shape == (0, 17, 3)
    assert records[1]["skeleton"] == b""
    np.testing.assert_array_equal(records[1]["keypoints"][0], np.float32(PERSON))
    np.testing.assert_array_equal(records[1]["keypoints"][1], np.float32(shifted_person(3, 2)))
    np.testing.assert_array_equal(records[2]["keypoints"], np.float32([PERSON]))


def test_ingest_rejects_broken_images_and_poses_with_a_reason(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "wide.png").write_bytes(encode_image(width=48))
    (source / "half.png").write_bytes(encode_image()[:1500])
    (source / "text.png").write_text("no image")
    (source / "old.bmp").write_bytes(encode_image("BMP"))
    (source / "none.png").touch()
    (source / "words.json").write_text("no JSON")
    keypoints = {
        "nobody": [],
        "ragged": [[1, 2], [3]],
        "shape": [[[1.0, 2.0, 3.0]]],
        "fractions": (np.array(PERSON) / (32, 48, 1)).tolist(),
        "elsewhere": shifted_person(500, 0),
        "unsure": (np.array(PERSON) * (1, 1, 0.2)).tolist(),
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
        (source / f"{name}.png").write_bytes(encode_image())
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
    report = ingest("images", source, tmp_path / "out")
    assert [record["name"] for record in open_records(tmp_path / "out")] == ["good.png"]
    assert_rejected(
        report,
        {
            "aspect.png": "its skeleton of 48x48 and its image of 32x48 differ in aspect ratio",
            "half.png": "its image cannot be decoded .*truncated",
            "text.png": "its image is not an image",
            "old.bmp": "its image is BMP, not JPEG, PNG or WebP",
            "none.png": "is empty",
            "poseless.png": "no skeleton and no keypoints",
            "gone_pose.png": "no such skeleton",
            "half_pose.png": "its skeleton cannot be decoded",
            "words.png": "keypoints are not JSON",
            "listed.png": "no such skeleton",
            "nobody.png": "no person",
            "ragged.png": "keypoints are not JSON of 17x3",
            "shape.png": r"person 0: needs 17x3 or 51 numbers, got the shape \(1, 3\)",
            "fractions.png": "fractions",
            "elsewhere.png": "no keypoint .* is inside the image of 32x48",
            "unsure.png": "no keypoint with a confidence of at least 0.3",
            "nan.png": "no keypoint with a confidence of at least 0.3",
        },
    )


def test_ingest_reads_webdataset_tars_of_videos(tmp_path):
    data = [write_video(tmp_path / f"{i}.mp4", frames=3 + i, seed=i).read_bytes() for i in range(4)]
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
    cut_off = write_tar(
        source / "00003.tar", {"a.mp4": data[0], "a.txt": b"fine", "b.txt": b"b", "b.mp4": data[3]}
    )
    cut_off.write_bytes(cut_off.read_bytes()[: 512 * 4 + len(data[0]) + 3000])
    report = ingest("videos", source, tmp_path / "out")
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
    assert_rejected(
        report,
        {
            "00000.tar/002.mp4": "has no caption",
            "00000.tar/003": r"has 0 videos among its members \(.txt\)",
            "00000.tar/004.mp4": "not a video|decoding fails",
            "00000.tar/005.mp4": "json is not JSON",
            "00000.tar/006.mp4": "its caption is not UTF-8; cp1252 reads it as",
            "00002.tar": "not an uncompressed tar",
            "00003.tar": "cut off",
        },
    )


def test_ingest_reads_a_webdataset_tar_of_images(tmp_path):
    skeleton, keypoints = encode_image(seed=1), json.dumps([PERSON]).encode()
    tar = write_tar(
        tmp_path / "laion.tar",
        {
            "0.jpg": encode_image("JPEG"),
            "0.skeleton.png": skeleton,
            "0.txt": b"zero",
            "1.webp": encode_image("WEBP"),
            "1.keypoints.json": keypoints,
            "1.json": b'{"text": "one"}',
            "2.png": encode_image(),
            "2.json": json.dumps({"text": "two", "keypoints": PERSON}).encode(),
            "3.png": encode_image(),
            "3.txt": b"three",
        },
    )
    report = ingest("images", tar, tmp_path / "out")
    records = list(open_records(tmp_path / "out"))
    assert [record["caption"] for record in records] == ["zero", "one", "two"]
    assert [record["skeleton"] for record in records] == [skeleton, b"", b""]
    assert [len(record["keypoints"]) for record in records] == [0, 1, 1]
    assert records[0]["image"] == encode_image("JPEG")
    assert_rejected(report, {"laion.tar/3.png": "no skeleton and no keypoints"})


def test_ingest_reads_the_published_hdvila_captions(tmp_path):
    folder = tmp_path / "hdvila"
    write_video(folder / "part_3" / "video_clips" / "abc.1.mp4", frames=130)
    write_video(folder / "07" / "def.mp4", frames=70)
    write_video(folder / "ghi.2.mp4", frames=200)
    write_video(tmp_path / "out.mp4")
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
    report = ingest("videos", folder, tmp_path / "records", captions=captions)
    found = {
        record["name"]: (record["captions"]["frame"].tolist(), record["captions"]["text"])
        for record in open_records(tmp_path / "records")
    }
    assert found == {
        "part_3/video_clips/abc.1.mp4": ([0, 64, 128], ["a man, at first", "then", "last"]),
        "07/def.mp4": ([0, 64], ["a", "b"]),
        "ghi.2.mp4": ([0, 64, 128], ["counted", "in captions", "not frames"]),
    }
    assert_rejected(
        report,
        {
            "2/gone.mp4": "no such file; also tried part_2",
            "../out": "outside the source folder",
            "part_3/video_clips/abc.1.mp4": "same name as an earlier item",
            "4/x.mp4": "'first' of a caption is not a number",
        },
    )


@pytest.mark.parametrize(
    ("name", "text", "pattern"),
    [
        (
            "metadata.csv",
            "name,text\na.mp4,x\n",
            "line 2 has no column file_name, .* its columns: name, text",
        ),
        (
            "metadata.csv",
            "file_name,words\na.mp4,x\n",
            "no column text, caption or prompt; its columns: file_name, words",
        ),
        ("metadata.csv", "file_name,text\na.mp4,x\na.mp4,x, y\n", "line 3 has 3 fields for 2 columns"),
        ("metadata.csv", 'file_name,text\na.mp4,"x\nb.mp4,y\n', "cannot be read as CSV from line"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        (
            "metadata.csv",
            "file_name,text\na.mp4,\xff\n".encode("latin-1"),
            "line 2 is not UTF-8; cp1252 reads it as",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.mp4", "text": "x"}\n{\n',
            "cannot be read as JSON lines from line 2",
        ),
        (
            "metadata.jsonl",
            '\n{"file_name": "a.mp4", "text": "x"}\n{"text": "x"}\n',
            "line 3 has no column file_name",
        ),
        ("metadata.jsonl", '["a.mp4", "x"]\n', "line 1 is not a JSON object"),
        ("notes.txt", "", "has no metadata.csv or metadata.jsonl and no .tar files, .* it has 2 entries"),
    ],
)
def test_ingest_of_invalid_metadata_raises_before_it_writes_anything(tmp_path, name, text, pattern):
    source = tmp_path / "in"
    write_video(source / "a.mp4")
    (source / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=pattern) as caught:
        ingest("videos", source, tmp_path / "out")
    assert str(caught.value).startswith(str(source))
    assert not (tmp_path / "out").exists()


def test_ingest_of_images_without_a_pose_column_raises(tmp_path):
    write_csv(tmp_path / "metadata.csv", ("file_name", "text"), ("a.png", "x"))
    with pytest.raises(UserError, match="no column skeleton or keypoints; its columns: file_name, text"):
        ingest("images", tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_ingest_with_any_number_of_workers_writes_the_same_files(tmp_path):
    source = write_clips(tmp_path / "in", 9)
    one = ingest("videos", source, tmp_path / "one", workers=1, shard_bytes=20_000)
    three = ingest("videos", source, tmp_path / "three", workers=3, shard_bytes=20_000)
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
from fyp_jax.data.ingest.ingest import ingest

source, out, workers, kill_step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
steps = 0

def hook(event, args):
    global steps
    if event in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir") and str(out) in str(args[0]):
        steps += 1
        if steps == kill_step:
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sys.addaudithook(hook)
    ingest("captioned_videos", source, out, workers=workers, shard_bytes=10_000)
    print(steps)
"""


def start_ingest(
    tmp_path: Path, source: Path, out: Path, workers: int, kill_step: int
) -> subprocess.Popen[str]:
    """Start an ingest that sends itself SIGKILL before its n-th file operation below `out`; 0 for never."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(source), str(out), str(workers), str(kill_step)]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=subprocess.DEVNULL)


def assert_resumes(tmp_path: Path, fractions: Sequence[float]) -> None:
    """A run that is killed after any of these fractions of its steps resumes to the files of a whole run."""
    source = write_clips(tmp_path / "in", 6)
    with start_ingest(tmp_path, source, tmp_path / "whole", 1, 0) as whole:
        steps = int(whole.communicate()[0])
    for fraction in fractions:
        out = tmp_path / f"killed at {fraction}"
        with start_ingest(tmp_path, source, out, 1, max(1, round(fraction * steps))) as killed:
            assert killed.wait() == -signal.SIGKILL
        report = ingest("videos", source, out, shard_bytes=10_000)
        assert files(out) == files(tmp_path / "whole"), f"killed at {fraction} of {steps} steps"
        assert [path.name for path in report.folder.parent.iterdir()] == ["1.0.0"]
        assert report.records == 6


@pytest.mark.slow
def test_ingest_killed_at_some_steps_resumes_to_the_same_files(tmp_path):
    assert_resumes(tmp_path, (0.3, 0.7, 0.9, 1))


@pytest.mark.release
def test_ingest_killed_at_any_step_resumes_to_the_same_files(tmp_path):
    assert_resumes(tmp_path, [i / 100 for i in range(1, 101)])


@pytest.mark.slow
def test_ingest_killed_with_its_workers_resumes_and_keeps_finished_shards(tmp_path):
    source, out = write_clips(tmp_path / "in", 24), tmp_path / "killed"
    log = out / "captioned_videos" / "1.0.0.progress.jsonl"
    with start_ingest(tmp_path, source, out, 2, 0) as process:
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") >= 4):
            time.sleep(0.002)  # one line for the fingerprint, then one per shard
        process.kill()
    with pytest.raises(UserError, match="did not finish"):
        open_records(out)
    with open(log, "ab") as file:
        file.write(b'{"items": 3, "rec')
    times = {shard.name: shard.stat().st_mtime_ns for shard in out.glob("*/*.incomplete/*array_record*")}
    report = ingest("videos", source, out, shard_bytes=10_000)
    ingest("videos", source, tmp_path / "whole", shard_bytes=10_000)
    assert files(out) == files(tmp_path / "whole")
    unchanged = [name for name, when in times.items() if (report.folder / name).stat().st_mtime_ns == when]
    assert len(unchanged) >= 3, "the second run started over"


def test_ingest_of_an_unchanged_source_leaves_the_dataset_untouched(tmp_path):
    source = write_clips(tmp_path / "in", 3)
    first = ingest("videos", source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert ingest("videos", source, tmp_path / "out") == first._replace(new=False)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_ingest_of_a_changed_source_replaces_the_dataset_only_with_overwrite(tmp_path):
    source = write_clips(tmp_path / "in", 3)
    first = ingest("videos", source, tmp_path / "out")
    fingerprint_before = open_records(tmp_path / "out").fingerprint
    write_video(source / "1.mp4", frames=9, seed=9)
    with pytest.raises(UserError, match="1.0.0: exists already, with other data .*--overwrite"):
        ingest("videos", source, tmp_path / "out")
    assert open_records(tmp_path / "out").fingerprint == fingerprint_before
    second = ingest("videos", source, tmp_path / "out", overwrite=True)
    assert (second.folder, second.new) == (first.folder, True)
    assert open_records(tmp_path / "out")[1]["frames"] == 9
    assert [path.name for path in first.folder.parent.iterdir()] == ["1.0.0"]


def test_ingest_does_not_resume_a_run_with_other_data(tmp_path):
    source = write_clips(tmp_path / "in", 3)
    work = tmp_path / "out" / "captioned_videos" / "1.0.0.incomplete"
    work.mkdir(parents=True)
    work.with_name("1.0.0.progress.jsonl").write_text('"another fingerprint"\n')
    (work / "captioned_videos-train.array_record-00007").write_bytes(b"another shard")
    with pytest.raises(UserError, match="an unfinished run with other data .*--overwrite"):
        ingest("videos", source, tmp_path / "out")
    report = ingest("videos", source, tmp_path / "out", overwrite=True)
    assert [path.name for path in report.folder.glob("*array_record*")] == [
        "captioned_videos-train.array_record-00000"
    ]


def test_ingest_raises_while_another_process_writes_the_dataset(tmp_path):
    source = write_clips(tmp_path / "in", 3)
    log = tmp_path / "out" / "captioned_videos" / "1.0.0.progress.jsonl"
    log.parent.mkdir(parents=True)
    with open(log, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is writing this dataset"):
            ingest("videos", source, tmp_path / "out")
    assert ingest("videos", source, tmp_path / "out").records == 3


def test_command_prints_a_summary_and_the_rejected_items(tmp_path):
    source = write_clips(tmp_path / "in", 2)
    ran = subprocess.run(command(source, tmp_path / "out", "--workers", "2"), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert re.fullmatch(r".*/captioned_videos/1.0.0: 2 videos, \d\.\d MB in 1 shard", lines[0])
    assert lines[1] == f"2 rejected, listed in {tmp_path}/out/captioned_videos/1.0.0/refused.csv:"
    assert re.fullmatch(r" +1  is not a video.*: text.mp4", lines[2])
    assert re.fullmatch(r" +1  no such file: gone.mp4", lines[3])
    assert "4/4" in ran.stderr  # the progress bar


def test_command_fails_with_one_line_when_all_items_are_rejected(tmp_path):
    source = write_clips(tmp_path / "in", 0)
    ran = subprocess.run(command(source, tmp_path / "out"), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    last = ran.stderr.splitlines()[-1]
    listed = tmp_path / "out" / "captioned_videos" / "refused.csv"
    assert last.startswith(
        f"error: {source}: all 2 items were rejected, see {listed}; the first is text.mp4: is"
    )
    assert len(listed.read_text().splitlines()) == 3
    assert "Traceback" not in ran.stderr
    write_video(source / "gone.mp4")
    assert (
        ingest("videos", source, tmp_path / "out").records == 1
    )  # once a file is valid, the same command works


def test_report_groups_reasons_that_differ_in_numbers_only(tmp_path):
    rejected = [
        Rejection("a", "decoding fails after 3 frames"),
        Rejection("b", "is empty"),
        Rejection("c", "decoding fails after 41 frames"),
    ]
    report = Report(tmp_path, 1, 1, 1, rejected, True)
    assert report.by_reason() == [("decoding fails after 3 frames", ["a", "c"]), ("is empty", ["b"])]


def test_ingest_raises_when_the_source_shrinks_during_the_run(tmp_path, monkeypatch):
    source = write_clips(tmp_path / "in", 3)
    original = ingest_module.list_source

    def then_remove_rows(*args: Any) -> Any:
        found = original(*args)
        write_csv(source / "metadata.csv", ("file_name", "text"), ("0.mp4", "the only one"))
        return found

    monkeypatch.setattr(ingest_module, "list_source", then_remove_rows)
    with pytest.raises(UserError, match="changed during the run: 1 items were read, it had 5"):
        ingest("videos", source, tmp_path / "out")


def test_ingest_rejects_one_item_for_an_unexpected_error(tmp_path, monkeypatch):
    source = write_clips(tmp_path / "in", 3)
    original = examples.inspect_video

    def fail_for_one(data: bytes, name: str) -> Any:
        if name == "1.mp4":
            raise ValueError("odd\nfile")
        return original(data, name)

    monkeypatch.setattr(examples, "inspect_video", fail_for_one)
    report = ingest("videos", source, tmp_path / "out")
    assert rejections(report)["1.mp4"] == "cannot be read (odd)"
    assert report.records == 2
