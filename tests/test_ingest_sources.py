"""Ingest reads the forms of training data that people have, and says of others what they are."""

import hashlib
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from fyp_jax.data.ingest import ingest as ingest_module
from fyp_jax.data.ingest.ingest import Report

PERSON = [[16 + i % 3, 4 + 2 * i, 1.0] for i in range(17)]  # keypoints in an image of height 48 and width 32


def png(shade: int, width: int = 32, height: int = 48) -> bytes:
    """A grey PNG, stored without compression: the same bytes with every zlib."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress((b"\0" + bytes([shade]) * width) * height, level=0)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    """A film of 8x8 pixels without compression: each pixel is a code of its own."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    out = screen
    for frame in range(frames):
        codes = []
        for pixel in range(64):
            codes += [4] if pixel % 2 == 0 else []  # clear, so that codes keep 3 bits
            codes.append((pixel + frame) % 2)
        bits = sum(code << 3 * i for i, code in enumerate([*codes, 5]))
        data = bits.to_bytes((3 * (len(codes) + 1) + 7) // 8, "little")
        out += b"\x21\xf9\x04\0\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 8, 8, 0)
        out += b"\x02" + bytes([len(data)]) + data + b"\0"
    return out + b"\x3b"


def write_files(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def write_tar(path: Path, members: dict[str, bytes | str] | list[tuple[str, bytes | str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def ingest(kind: str, source: Path, out: Path, **options: Any) -> Report:
    name = {"videos": "captioned_videos", "images": "pose_images"}[kind]
    return ingest_module.ingest(name, source, out, **options)


def digest(report: Report) -> str:
    """Digest over all records, and the names of what was rejected."""
    summary = json.loads((report.folder / "metadata.json").read_text())
    rejected = [name for name, _ in report.rejected]
    return hashlib.sha256(json.dumps([summary["digest"], rejected]).encode()).hexdigest()[:16]


GOLDEN_SOURCES: dict[str, tuple[str, dict[str, bytes | str]]] = {
    "metadata of images": (
        "images",
        {
            "a.png": png(1),
            "sub/b.png": png(2),
            "s.png": png(3),
            "two.json": json.dumps([PERSON, PERSON]),
            "metadata.csv": "\ufefffile_name, caption,skeleton,keypoints\r\n./a.png,one,s.png,\r\n"
            "sub/b.png,“two”,,two.json\r\n"
            f'a.png,again,,"{json.dumps(PERSON)}"\r\ngone.png,x,s.png,\r\nsub/b.png,,,\r\n',
        },
    ),
    "metadata of videos": (
        "videos",
        {
            "a.gif": gif(3),
            "b.gif": gif(5),
            "metadata.jsonl": '{"file_name": "b.gif", "text": [{"frame": 2, "text": "b"}, {"text": "a"}]}\n\n'
            '{"file_name": "a.gif", "text": null, "caption": " one "}\n{"file_name": "c.gif", "text": "c"}\n',
        },
    ),
}


def make_golden_source(name: str, folder: Path) -> tuple[str, Path, dict[str, Any]]:
    if name in GOLDEN_SOURCES:
        kind, files = GOLDEN_SOURCES[name]
        return kind, write_files(folder, files), {}
    if name == "tars of videos":
        members = {
            "./0.GIF": gif(3),
            "./0.txt": "zero\n",
            "d.d/1.json": '{"caption": "one"}',
            "d.d/1.gif": gif(4),
        }
        write_tar(folder / "0.tar", {**members, "2.txt": "no video", "README": "no sample"})
        cut = write_tar(folder / "1.tar", {"a.gif": gif(3), "a.txt": "a", "b.txt": "b", "b.gif": gif(30)})
        cut.write_bytes(cut.read_bytes()[:4500])
        return "videos", folder, {}
    if name == "a tar of images":
        return (
            "images",
            write_tar(
                folder / "x.tar",
                {
                    "0.png": png(0),
                    "0.skeleton.png": png(9),
                    "0.txt": "zero",
                    "1.png": png(1),
                    "1.keypoints.json": json.dumps(PERSON),
                    "1.json": '{"text": "one"}',
                    "2.png": png(2),
                    "2.json": json.dumps({"text": "two", "keypoints": PERSON}),
                    "3.png": png(3),
                    "3.json": '{"text": "no pose"}',
                },
            ),
            {},
        )
    assert name == "captions of HDVILA"
    rows = "part_id,clip_id,frame_id,caption\n3,x.1.gif,0,a\n3,x.1.gif,2,b\n2,gone,0,a\n"
    write_files(folder, {"part_3/video_clips/x.1.gif": gif(5)})
    return "videos", folder, {"captions": write_files(folder.with_name("c"), {"c.csv": rows}) / "c.csv"}


GOLDEN_DIGESTS = {
    "metadata of images": "3f3691eb3d497b2a",
    "metadata of videos": "354f7750359b37f2",
    "tars of videos": "e41bef563ec32c7b",
    "a tar of images": "3b1b7a5969a6255e",
    "captions of HDVILA": "7aec09860e226716",
}


@pytest.mark.parametrize("name", GOLDEN_DIGESTS)
def test_sources_that_were_read_before_give_the_same_records(tmp_path, name):
    kind, source, options = make_golden_source(name, tmp_path / "in")
    assert digest(ingest(kind, source, tmp_path / "out", **options)) == GOLDEN_DIGESTS[name]
