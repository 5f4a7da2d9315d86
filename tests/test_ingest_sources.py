"""Ingest reads the forms of training data that people have, and says of others what they are."""

import hashlib
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fyp_jax.data.datasets import open_records
from fyp_jax.data.ingest import ingest as ingest_module
from fyp_jax.data.ingest.find import find_items
from fyp_jax.data.ingest.ingest import Report
from fyp_jax.data.ingest.items import ItemError
from fyp_jax.data.ingest.pose_npz import npz_keypoints
from fyp_jax.errors import UserError

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


def captions(out: Path) -> dict[str, str]:
    """Captions of all records by name, in their order."""
    return {
        record["name"]: record["caption"] if "caption" in record else record["captions"]["text"][0]
        for record in open_records(out)
    }


def test_tar_with_members_in_any_order_gives_samples_in_the_order_of_their_first_member(tmp_path):
    files = [
        (f"./{i}.{suffix}", gif(2 + i) if suffix == "gif" else f"clip {i}")
        for suffix in ("gif", "txt")
        for i in range(9)
    ]
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
    write_tar(tmp_path / "in" / "x.tar", shuffled)
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert report.rejected == []
    order = dict.fromkeys(name.split(".")[1].strip("/") for name, _ in shuffled)
    assert captions(tmp_path / "out") == {f"x.tar/./{i}.gif": f"clip {i}" for i in order}
    assert [record["frames"] for record in open_records(tmp_path / "out")] == [2 + int(i) for i in order]


def test_litter_of_other_systems_is_left_out_of_tars_and_folders(tmp_path):
    litter = {"._a.gif": b"\0\5\x16\7", "._a.txt": b"\xff", ".DS_Store": b"x", "__MACOSX/b.gif": b"x"}
    files = {"a.gif": gif(2), "a.txt": "a", **litter, "__MACOSX/b.txt": "b", "Thumbs.db": b"x"}
    write_tar(tmp_path / "tars" / "x.tar", files)
    write_files(tmp_path / "tars", {"._x.tar": b"\0\5\x16\7"})
    for source, name in (
        (tmp_path / "tars", "x.tar/a.gif"),
        (write_files(tmp_path / "plain", files), "a.gif"),
    ):
        report = ingest("videos", source, tmp_path / f"out of {source.name}")
        assert report.rejected == []
        assert captions(tmp_path / f"out of {source.name}") == {name: "a"}


def test_rejection_of_member_names_with_several_dots_tells_the_first_dot_rule(tmp_path):
    members = {"take 1.0.gif": gif(2), "take 1.0.txt": "x", "a.gif": gif(2), "a.txt": "a", "b.txt": "b"}
    write_tar(tmp_path / "in" / "x.tar", members)
    reasons = dict(ingest("videos", tmp_path / "in", tmp_path / "out").rejected)
    assert "cuts a name at its first dot, so the key of take 1.0.gif is take 1:" in reasons["x.tar/take 1"]
    assert "first dot" not in reasons["x.tar/b"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (b"\xef\xbb\xbfeine T\xc3\xa4nzerin\r\n", "eine Tänzerin"),
        ("un café, une danseuse".encode("cp1252"), "cp1252 reads it as 'un café, une danseuse'"),
        ("eine Tänzerin".encode("utf-16"), "utf-16 reads it as 'eine Tänzerin'"),
        ("eine Tänzerin".encode("utf-16-be"), "utf-16-be reads it as 'eine Tänzerin'"),
        ("一个舞者".encode("gb18030"), "gb18030 reads it as '一个舞者'"),
        ("踊っている人、一人".encode("shift_jis"), ""),
        ("девушка танцует".encode("cp1251"), "cp1251 reads it as 'девушка танцует'"),
    ],
)
def test_caption_files_are_utf_8_with_or_without_mark_and_others_are_named(tmp_path, caption, expected):
    write_tar(tmp_path / "tar" / "x.tar", {"a.gif": gif(2), "a.txt": caption, "b.gif": gif(2), "b.txt": "b"})
    write_files(tmp_path / "folder", {"a.gif": gif(2), "a.txt": caption, "b.gif": gif(2), "b.txt": "b"})
    for source, prefix in ((tmp_path / "tar", "x.tar/"), (tmp_path / "folder", "")):
        out = tmp_path / f"out of {source.name}"
        reasons = dict(ingest("videos", source, out).rejected)
        if caption.startswith(b"\xef"):
            assert captions(out) == {f"{prefix}a.gif": expected, f"{prefix}b.gif": "b"}
        else:
            assert reasons[f"{prefix}a.gif"].startswith("its caption is not UTF-8")
            assert expected in reasons[f"{prefix}a.gif"]


def test_member_that_occurs_twice_counts_as_its_last_and_is_told(tmp_path):
    members = [("a.gif", gif(2)), ("a.txt", "old"), ("b.gif", gif(3)), ("b.txt", "b"), ("a.txt", "new")]
    write_tar(tmp_path / "in" / "x.tar", members)
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"x.tar/a.gif": "new", "x.tar/b.gif": "b"}
    assert [name.split(" at")[0] for name, _ in report.rejected] == ["x.tar/a.txt"]
    assert "the last one counts" in report.rejected[0].reason


def test_tar_that_is_damaged_or_joined_by_cat_is_told_and_what_is_before_is_read(tmp_path):
    whole = write_tar(
        tmp_path / "w.tar", {"a.gif": gif(2), "a.txt": "a", "b.gif": gif(3), "b.txt": "b"}
    ).read_bytes()
    header = bytearray(whole)
    header[header.index(b"b.gif")] ^= 1  # its checksum is wrong now
    other = write_tar(tmp_path / "o.tar", {"c.gif": gif(2), "c.txt": "c"}).read_bytes()
    tars = {"damaged.tar": bytes(header), "joined.tar": whole + other, "whole.tar": whole}
    report = ingest("videos", write_files(tmp_path / "in", tars), tmp_path / "out")
    assert list(captions(tmp_path / "out")) == [
        "damaged.tar/a.gif", "joined.tar/a.gif", "joined.tar/b.gif", "whole.tar/a.gif", "whole.tar/b.gif"
    ]  # fmt: skip
    reasons = dict(report.rejected)
    assert list(reasons) == ["damaged.tar", "joined.tar"]
    assert "is damaged, or cut off, at byte" in reasons["damaged.tar"]
    assert "more members behind its end" in reasons["joined.tar"]


def test_names_fit_files_over_unicode_forms_slashes_and_case(tmp_path):
    nfd, nfc = "danc\u0327e e\u0301.gif", "dan\u00e7e \u00e9.gif"
    files = {nfd: gif(2), "sub/Clip.GIF": gif(3), "a\\b.gif": gif(4), "a/b.gif": gif(5)}
    rows = f"{nfc},nfd\nSub\\clip.gif,case\n.\\sub\\clip.gif,again\na\\b.gif,literal\n"
    write_files(tmp_path / "in", {**files, "metadata.csv": f"file_name,text\n{rows}"})
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {nfd: "nfd", "sub/Clip.GIF": "case", "a\\b.gif": "literal"}
    assert report.rejected == [("sub/Clip.GIF", "has the same name as an earlier item")]


def test_name_that_fits_several_files_is_rejected_with_these(tmp_path):
    files = {f"{name}.gif": gif(2) for name in ("Clip", "CLIP", "a", "A")}
    write_files(tmp_path / "in", {**files, "metadata.csv": "file_name,text\nclip.gif,x\na.gif,exact\n"})
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"a.gif": "exact"}
    assert (
        "2 files differ from its name in case or Unicode form alone ('CLIP.gif', 'Clip.gif')"
        in report.rejected[0][1]
    )


@pytest.mark.parametrize("name", ["../x.gif", "..\\x.gif", "a\\..\\..\\x.gif", "/x.gif", "C:\\x.gif"])
def test_name_outside_of_the_source_is_rejected(tmp_path, name):
    write_files(tmp_path, {"x.gif": gif(2), "in/y.gif": gif(2)})
    write_files(tmp_path / "in", {"metadata.csv": f"file_name,text\n{name},x\ny.gif,y\n"})
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert [why for _, why in report.rejected] == ["its file is outside the source folder"]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("file_name,text\r\na.gif,x\nb.gif,café\n".encode("cp1252"), "line 3 is not UTF-8; cp1252 .*café"),
        ("file_name,text\na.gif,x\n".encode("utf-16"), "line 1 is not UTF-8; utf-16 .*'file_name,text'"),
        ("file_name,text\na.gif,x\n".encode("utf-16-le"), "line 1 is not UTF-8; utf-16-le reads it"),
        (b"file_name;text\r\na.gif;x, y\r\n", "line 1 is separated by semicolons"),
        (b"\xef\xbb\xbf\n\nfile_name\ttext\na.gif\tx\n", "line 3 is separated by tabs"),
        (b'"file_name";"text, long"\na.gif;x\n', "line 1 is separated by semicolons"),
        (b"file_name,text\na.gif,x\nb.gif;y\n", "line 3 is separated by semicolons, not by commas as line 1"),
        (b'file_name,text\na.gif,"x\ny"\nb.gif,"y\nc.gif,z\n', "from line 4 on .* a quote is opened there"),
        (b"file_name,text\na.gif,x\nb.gif,y, z\n", "line 3 has 3 fields for 2 columns"),
        (b",".join(b"c%d" % i for i in range(99)) + b"\n" + b"," * 98, "c7, and 91 more$"),
    ],
)  # fmt: skip
def test_csv_of_another_encoding_or_delimiter_is_named_with_its_line(tmp_path, text, pattern):
    write_files(tmp_path / "in", {"a.gif": gif(2), "metadata.csv": text})
    with pytest.raises(UserError, match=pattern) as caught:
        ingest("videos", tmp_path / "in", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path / 'in' / 'metadata.csv'}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["file_name", "video", "path", "file"])
@pytest.mark.parametrize("text", ["text", "caption", "prompt"])
def test_columns_of_file_and_caption_have_the_names_that_people_use(tmp_path, name, text):
    write_files(tmp_path / "in", {"a.gif": gif(2), "metadata.csv": f"{name},{text}\na.gif,a dancer\n"})
    ingest("videos", tmp_path / "in", tmp_path / "out")
    assert captions(tmp_path / "out") == {"a.gif": "a dancer"}


def test_videos_with_captions_beside_them_are_read_without_metadata(tmp_path):
    files = {"b.gif": gif(2), "b.txt": "b\n", "sub/a 1.0.gif": gif(3), "sub/a 1.0.TXT": "a", "c.gif": gif(2)}
    files |= {"d.gif": gif(2), "d.ts": b"x", "d.txt": "d", "README.txt": "words", "list.csv": "x"}
    report = ingest("videos", write_files(tmp_path / "in", files), tmp_path / "out")
    assert captions(tmp_path / "out") == {"b.gif": "b", "sub/a 1.0.gif": "a"}
    assert dict(report.rejected) == {
        "README": "has 0 videos among its members (.txt)",
        "c.gif": "has no caption: there is no c.txt beside it",
        "d.gif": "has 2 videos among its members (.gif, .ts, .txt)",
    }


def test_images_with_captions_and_poses_beside_them_are_read_without_metadata(tmp_path):
    files = {f"{name}.png": png(i) for i, name in enumerate("abcde")} | {
        f"{name}.txt": name for name in "abcd"
    }
    files |= {
        "a.skeleton.png": png(9),
        "b.json": json.dumps([PERSON]),
        "c.keypoints.json": json.dumps(PERSON),
    }
    files |= {"e.json": json.dumps({"prompt": "e", "keypoints": PERSON})}
    report = ingest("images", write_files(tmp_path / "in", files), tmp_path / "out")
    assert captions(tmp_path / "out") == {f"{name}.png": name for name in "abce"}
    words = "has no skeleton and no keypoints; docs/inputs.md says how to give them"
    assert report.rejected == [("d.png", words)]
    assert [record["keypoints"].shape[0] for record in open_records(tmp_path / "out")] == [0, 1, 1, 1]


def test_folder_of_unknown_form_names_the_forms_and_eight_entries(tmp_path):
    write_files(tmp_path / "in", {f"{i:02d}.gif": gif(2) for i in range(12)})
    with pytest.raises(UserError, match=r"no NAME.mp4 with NAME.txt beside it.* 06.gif, 07.gif, and 4 more$"):
        ingest("videos", tmp_path / "in", tmp_path / "out")


def npz(people: Any, **options: Any) -> bytes:
    data = io.BytesIO()
    np.savez(data, people, **options)
    return data.getvalue()


def person(x: float = 0, **fields: Any) -> dict[str, Any]:
    """A person as mmpose gives it."""
    keypoints = np.float32(PERSON) + np.float32([x, 0, 0])
    return {"bbox": np.zeros(5), "keypoints": keypoints, "score": np.float32(0.9), **fields}


def write_humansd(folder: Path, poses: dict[str, bytes], prefix: str = "Laion/Human/") -> Path:
    mapping = {}
    for name, pose in poses.items():
        write_files(folder, {f"images/0/{name}.png": png(1), f"pose/0/{name}.npz": pose})
        paths = {"img_path": f"{prefix}images/0/{name}.png", "pose_path": f"{prefix}pose/0/{name}.npz"}
        mapping[f"0_{name}"] = {**paths, "prompt": f"number {name}"}
    return write_files(folder, {"mapping_file_training.json": json.dumps(mapping)})


@pytest.mark.parametrize("source", ["Laion", "Laion/Human"])
def test_laion_human_is_read_by_its_mapping(tmp_path, source):
    poses = {"2": npz([person(), person(3)]), "1": npz([person(1)]), "3": npz(np.float32([PERSON]))}
    poses["4"] = npz([person(keypoints=np.asfortranarray(np.array(PERSON, ">f8")))])
    write_humansd(tmp_path / "Laion" / "Human", poses)
    report = ingest("images", tmp_path / source, tmp_path / "out")
    assert report.rejected == []
    records = list(open_records(tmp_path / "out"))
    assert [record["caption"] for record in records] == ["number 2", "number 1", "number 3", "number 4"]
    assert {(tmp_path / source / record["name"]).is_file() for record in records} == {True}
    shifts = [[0, 3], [1], [0], [0]]
    for record, people in zip(records, shifts, strict=True):
        expected = [np.float32(PERSON) + np.float32([x, 0, 0]) for x in people]
        np.testing.assert_array_equal(record["keypoints"], expected)


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.file}'",)


def test_pickles_of_poses_are_read_without_running_them(tmp_path):
    mark = tmp_path / "mark"
    poses = {
        "good": npz([person()]),
        "command": npz([person(score=Harmful(mark))]),
        "other": npz([person(score=Path("x"))]),
        "shape": npz([person(keypoints=np.zeros((18, 3)))]),
        "object": npz([person(keypoints=np.full((17, 3), None))]),
        "nobody": npz(np.array([], object)),
        "empty": npz([{}]),
        "text": b"PK\3\4 no zip",
        "tuple": npz(np.array(PERSON[0])),
    }
    report = ingest("images", write_humansd(tmp_path / "in", poses, "x/"), tmp_path / "out")
    reasons = {Path(name).stem: why for name, why in report.rejected}
    assert not mark.exists()
    assert list(captions(tmp_path / "out").values()) == ["number good"]
    assert set(reasons) == set(poses) - {"good"}
    assert "holds posix.system, which is not run" in reasons["command"]
    assert "holds pathlib" in reasons["other"]
    assert reasons["shape"] == "its pose file has a person without 17x3 keypoints"


def test_mapping_entries_that_are_wrong_are_rejected_with_a_reason(tmp_path):
    source = write_humansd(tmp_path / "in", {"1": npz([person()])})
    file = source / "mapping_file_training.json"
    mapping = json.loads(file.read_text())
    entry = mapping["0_1"]
    mapping["list"] = []
    mapping["keys"] = {f"k{i}": i for i in range(20)}
    mapping["gone"] = {**entry, "img_path": "images/0/2.png"}
    mapping["out"] = {**entry, "img_path": "../in/images/0/1.png"}
    file.write_text(json.dumps(mapping))
    report = ingest("images", source, tmp_path / "out")
    reasons = dict(report.rejected)
    assert report.records == 1
    assert reasons["list"].endswith("it is no JSON object")
    assert reasons["keys"].endswith("it has k0, k1, k2, k3, k4, k5, k6, k7, and 12 more")
    assert reasons["images/0/2.png"] == "no such image"
    assert reasons["../in/images/0/1.png"] == "its image is outside the source folder"
    with pytest.raises(UserError, match="LAION-Human, which is for images, not for videos"):
        ingest("videos", source, tmp_path / "out")


@pytest.mark.parametrize("form", ["tar", "sidecar", "mapping"])
def test_ingest_of_each_form_resumes_to_the_same_files_after_a_stop(tmp_path, form, monkeypatch):
    files: dict[str, bytes | str] = {f"{i}.png": png(i) for i in range(8)} | {
        f"{i}.txt": f"{i}" for i in range(7)
    }
    files |= {f"{i}.keypoints.json": json.dumps(PERSON) for i in range(8)}
    source = tmp_path / "in"
    if form == "tar":
        write_tar(source / "x.tar", files)
    elif form == "sidecar":
        write_files(source, files)
    else:
        write_humansd(source, {str(i): npz([person()]) if i < 7 else b"" for i in range(8)})
    ingest("images", source, tmp_path / "whole", shard_bytes=3000)
    log_shard, done = ingest_module.log_shard, []

    def stop_at_second(log: Any, shard: Any) -> None:
        log_shard(log, shard)
        done.append(shard)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(ingest_module, "log_shard", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        ingest("images", source, tmp_path / "out", shard_bytes=3000)
    monkeypatch.undo()
    ingest("images", source, tmp_path / "out", shard_bytes=3000)
    written = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (tmp_path / "out", tmp_path / "whole")
    ]
    assert written[0] == written[1]
    assert len(written[0]) > 5


def mutate(data: bytes, random: np.random.Generator, words: list[bytes]) -> bytes:
    """Replace, remove, repeat or insert some bytes of a file."""
    for _ in range(random.integers(1, 5)):
        at, length = int(random.integers(len(data) + 1)), int(random.integers(1, 40))
        word = words[random.integers(len(words))] if random.random() < 0.6 else random.bytes(length)
        inserted = (word, b"", data[at : at + length] * 2)[random.integers(3)]
        data = data[:at] + inserted + data[at + (len(inserted) if random.random() < 0.5 else 0) :]
    return data


TAR_WORDS = [b"../../evil.gif", b"/evil.gif", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"77777777777\0"]
TAR_WORDS += [b"L", b"x", b"K", b"S", b"\0" * 512]
CSV_WORDS = [
    b"../evil.gif",
    b"/etc/passwd",
    b"..\\..\\evil.gif",
    b'"',
    b";",
    b"\t",
    b"\0",
    b"\xff\xfe",
    b"\r",
]
CSV_WORDS += [b"\n,,,\n", b"\xed\xa0\x80", "\u0301\ufeff".encode(), b"a" * 5000, b"file_name", b"inf"]
VIDEO_CSV = '\ufefffile_name,text,start_frame\r\na.gif,“one”,0\r\na.gif,"two, 2",1\r\né.gif,x,\r\n'
VIDEO_JSONL = """{"file_name": "a.gif", "text": [{"frame": 0, "text": "x"}]}
{"file_name": "b", "text": "y", "start_frame": 2}
"""


@pytest.mark.parametrize(("form", "cases"), [("x.tar", 500), ("metadata.csv", 400), ("metadata.jsonl", 100)])
def test_mutated_tars_and_metadata_are_read_or_refused_without_another_error(tmp_path, form, cases):
    source = write_files(tmp_path / "in", {"a.gif": gif(2), "é.gif": gif(3)})
    whole = {"metadata.csv": VIDEO_CSV.encode(), "metadata.jsonl": VIDEO_JSONL.encode()}
    if form == "x.tar":
        small = {
            "a.gif": b"GIF",
            "a.txt": "a",
            "b.json": '{"text": "b"}',
            "b.gif": b"GIF",
            "n" * 150: "long name",
        }
        whole[form] = write_tar(tmp_path / "whole.tar", small).read_bytes()[:5120]
    before = sorted(tmp_path.rglob("*"))
    random, refused, problems = np.random.default_rng(1), 0, 0
    for _ in range(cases):
        data = mutate(whole[form], random, TAR_WORDS if form == "x.tar" else CSV_WORDS)
        (source / form).write_bytes(data)
        try:
            items = list(find_items("captioned_videos", source))
        except UserError:
            refused += 1
            continue
        assert len(items) < 100
        problems += any(item.problem for item in items)
        for item in items:
            assert item.problem or (item.media and Path(item.media.path).is_relative_to(source))
            json.dumps(item)
    (source / form).unlink()
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    assert refused + problems > cases / 4


def test_mutated_pose_files_are_read_or_rejected_without_another_error():
    whole, random = npz([person(), person(2)]), np.random.default_rng(2)
    start = whole.index(b"numpy")
    rejected = 0
    for _ in range(200):
        pickled = whole[whole.index(b"\x80\x04") :]
        array = whole[whole.index(b"\x93NUMPY") : whole.index(b"\x80\x04")]
        words = [
            b"csystem\n",
            b"\x93",
            b"R",
            b"b",
            b"\x96" + b"\xff" * 8,
            b"r\xff\xff\xff\x7f",
            b"\x82\1",
            b"2",
            b"(",
            b"u",
        ]
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("arr_0.npy", array + mutate(pickled[: 2 * start], random, words))
        try:
            people = np.array(json.loads(npz_keypoints(data.getvalue())))
        except ItemError:
            rejected += 1
        else:
            assert people.shape[1:] == (17, 3)
    assert rejected > 50


def test_captions_of_a_video_stay_together_where_only_a_later_one_has_a_frame(tmp_path):
    rows = [{"file_name": "a.gif", "text": "walks"}, {"file_name": "a.gif", "text": "sits", "start_frame": 2}]
    text = "\n".join(map(json.dumps, [*rows, {"file_name": "b.gif", "text": "x"}]))
    source = write_files(tmp_path / "in", {"a.gif": gif(3), "b.gif": gif(3), "metadata.jsonl": text})
    first, second = find_items("captioned_videos", source)
    assert [(caption.frame, caption.text) for caption in first.captions] == [(0, "walks"), (2, "sits")]
    assert [caption.text for caption in second.captions] == ["x"]


def test_hdvila_captions_of_json_lines_may_have_numbers_and_null(tmp_path):
    rows = [{"part_id": 3, "clip_id": 12, "frame_id": 0, "caption": "a"}]
    rows += [{"part_id": 3, "clip_id": None, "frame_id": 0, "caption": "b"}]
    text = "\n".join(map(json.dumps, rows))
    source = write_files(tmp_path / "in", {"3/12.mp4": b"x", "metadata.jsonl": text})
    found, missing = find_items("captioned_videos", source)
    assert (found.name, found.problem) == ("3/12.mp4", "")
    assert missing.problem == "has no clip_id"


def test_links_in_a_tar_are_told(tmp_path):
    source = tmp_path / "in"
    path = write_tar(source / "x.tar", {"a.gif": gif(2), "a.txt": "a", "b.gif": gif(3)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        tar.addfile(link)
    problems = {item.name: item.problem for item in find_items("captioned_videos", source)}
    assert problems["x.tar/a.gif"] == ""
    assert "is a link, not a file" in str(problems["x.tar/b.txt"])


def test_all_pictures_and_videos_that_are_read_are_taken_side_by_side(tmp_path):
    pose = {"IMG_1.txt": "a", "IMG_1.skeleton.png": png(1)}
    for name in ("IMG_1.HEIC", "IMG_1.heif", "IMG_1.avif"):
        source = write_files(tmp_path / name, {name: b"x", **pose})
        (item,) = find_items("pose_images", source)
        assert (item.name, item.problem) == (name, "")
    source = write_files(tmp_path / "video", {"a.webp": b"x", "a.txt": "a"})
    assert [item.name for item in find_items("captioned_videos", source)] == ["a.webp"]
    source = write_files(tmp_path / "video", {"a.mp4": b"x"})  # the other one is its thumbnail
    assert [(item.name, item.problem) for item in find_items("captioned_videos", source)] == [("a.mp4", "")]
    source = write_files(tmp_path / "both", {"IMG_1.jpg": b"x", "IMG_1.heic": b"x", **pose})
    assert [(item.name, item.problem) for item in find_items("pose_images", source)] == [("IMG_1.jpg", "")]


def test_tar_header_with_a_negative_size_ends_the_listing(tmp_path):
    data = bytearray(write_tar(tmp_path / "x.tar", {"a.gif": gif(2), "b.gif": gif(2)}).read_bytes())
    at = data.index(b"b.gif")
    data[at + 124 : at + 136] = (2**96 - 1024).to_bytes(12, "big")  # -1024 in GNU's base 256
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    (tmp_path / "x.tar").write_bytes(data)
    items = list(find_items("captioned_videos", tmp_path))
    assert [item.name for item in items][-1] == "x.tar"
    assert len(items) <= 2


def test_names_that_lead_out_of_a_tar_write_nothing_outside_of_the_dataset(tmp_path):
    members = {"../../evil.gif": gif(2), "../../evil.txt": "x", "/evil.gif": gif(2), "/evil.txt": "y"}
    write_tar(tmp_path / "in" / "x.tar", members)
    report = ingest("videos", tmp_path / "in", tmp_path / "out")
    assert report.records == 2
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / "in" / "x.tar"}
    assert all(path.is_relative_to(report.folder) for path in written)


def test_metadata_may_name_npz_files_as_keypoints(tmp_path):
    files = {"a.png": png(1), "a.npz": npz([person()]), "rows.csv": "image,prompt,keypoints\na.png,x,a.npz\n"}
    write_files(tmp_path / "in", files)
    ingest("images", tmp_path / "in", tmp_path / "out", captions=tmp_path / "in" / "rows.csv")
    (record,) = open_records(tmp_path / "out")
    np.testing.assert_array_equal(record["keypoints"], np.float32([PERSON]))
