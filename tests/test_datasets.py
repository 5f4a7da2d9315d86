"""Records written by TFDS itself are read as they were, or refused in one line; TensorFlow is not needed."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fyp_jax.data import datasets
from fyp_jax.data.datasets import RecordsError, open_records
from fyp_jax.errors import UserError

VIDEOS = [
    {
        "name": f"part_0/é {i}.mp4",
        "video": b"\0\xff" * i + bytes(i),  # zeros at the end are part of it
        "frames": 64 * i + 1,
        "fps": 29.5,
        "captions": {
            "frame": [64 * j for j in range(i + 1)],
            "text": [f"“{j}”, a\ntext" for j in range(i + 1)],
        },
    }
    for i in range(7)
]
IMAGES = [
    {"name": "a", "image": b"\x89PNG\0", "skeleton": b"s\0", "keypoints": np.zeros((0, 17, 3), np.float32)},
    {
        "name": "b",
        "image": b"\0",
        "skeleton": b"",
        "keypoints": np.arange(102, dtype=np.float32).reshape(2, 17, 3) / 3,
    },
]


def write(
    data_dir: Path, kind: str, examples: list[dict[str, Any]], name: str = "", fields: Any = None
) -> Path:
    """A dataset by TFDS's writer, three records a shard."""
    folder = data_dir / (name or kind) / "1.0.0"
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=name or kind, version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    features = fields or datasets.BUILDERS[kind].FEATURES
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=3, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()
    return folder


def test_videos_come_back_bit_by_bit(tmp_path):
    write(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    assert (records.kind, len(records)) == ("captioned_videos", len(VIDEOS))
    for record, video in zip(records, VIDEOS, strict=True):
        assert record["captions"]["frame"].dtype == np.int64
        captions = {"frame": record["captions"]["frame"].tolist(), "text": record["captions"]["text"]}
        assert {**record, "captions": captions} == video


def test_images_come_back_bit_by_bit(tmp_path):
    write(tmp_path, "pose_images", [{**image, "caption": "it"} for image in IMAGES])
    records = open_records(tmp_path / "pose_images")
    for record, image in zip(records, IMAGES, strict=True):
        assert record["keypoints"].dtype == np.float32
        np.testing.assert_array_equal(record.pop("keypoints"), image["keypoints"])
        assert record == {**{key: image[key] for key in ("name", "image", "skeleton")}, "caption": "it"}


def test_each_folder_above_the_records_opens_them(tmp_path):
    folder = write(tmp_path, "captioned_videos", VIDEOS)
    prints = {open_records(path).fingerprint for path in (folder, folder.parent, tmp_path, str(tmp_path))}
    assert len(prints) == 1


def test_records_go_to_other_processes_and_end(tmp_path):
    write(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    there = pickle.loads(pickle.dumps(records))
    assert repr(there) == repr(records)
    assert there[5]["video"] == VIDEOS[5]["video"]
    for index in (len(VIDEOS), -1):
        with pytest.raises(IndexError):
            records[index]


def test_the_fingerprint_is_of_the_records_not_of_their_place(tmp_path):
    def fingerprint(place: str, examples: list[dict[str, Any]]) -> str:
        return open_records(write(tmp_path / place, "captioned_videos", examples)).fingerprint

    first = fingerprint("a", VIDEOS)
    assert fingerprint("b", VIDEOS) == first
    assert len({first, fingerprint("c", VIDEOS[1:]), fingerprint("d", [*VIDEOS[:6], VIDEOS[5]])}) == 3


def no_folder(_: Path, path: Path) -> Path:
    return path / "nothing"


def a_file(_: Path, path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def an_empty_folder(_: Path, path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def not_finished(folder: Path, path: Path) -> Path:
    folder.rename(folder.with_name("1.0.0.incomplete"))
    return path


def two_datasets(_: Path, path: Path) -> Path:
    write(path, "pose_images", [{**image, "caption": "it"} for image in IMAGES])
    return path


def another_kind(_: Path, path: Path) -> Path:
    return write(path, "", [{"label": 1}], "digits", tfds.features.FeaturesDict({"label": np.int64}))


def other_fields(_: Path, path: Path) -> Path:
    fields = tfds.features.FeaturesDict({"video": tfds.features.Text()})
    return write(path, "", [{"video": "x"}], "pose_images", fields)


def another_format(folder: Path, path: Path) -> Path:
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return path


def broken_metadata(folder: Path, path: Path) -> Path:
    (folder / "dataset_info.json").write_text("{")
    return path


def a_shard_missing(folder: Path, path: Path) -> Path:
    sorted(folder.glob("*array_record*"))[1].unlink()
    return path


def a_shard_cut(folder: Path, path: Path) -> Path:
    shards = sorted(folder.glob("*array_record*"))
    sizes = [shard.stat().st_size for shard in shards]
    (folder / "metadata.json").write_text(json.dumps({"digest": "d", "shard_bytes": sizes}))
    assert len(open_records(path)) == len(VIDEOS)
    with open(shards[1], "r+b") as shard:
        shard.truncate(sizes[1] - 1)
    return path


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_folder, "nothing: no such folder"),
        (a_file, "file: is a file, not a folder"),
        (an_empty_folder, "empty: no dataset_info.json"),
        (not_finished, "its preparation was not finished"),
        (two_datasets, "holds 2 datasets, .*captioned_videos/1.0.0, pose_images/1.0.0"),
        (another_kind, "is a dataset digits, not pose_images or captioned_videos"),
        (other_fields, "its fields are not those of our pose_images"),
        (another_format, "its files are tfrecord, they must be array_record"),
        (broken_metadata, "its metadata cannot be read"),
        (a_shard_missing, "1 of 3 shards missing, captioned_videos-train.array_record-00001 the first"),
        (a_shard_cut, r"00001: has \d+ bytes of \d+: changed, or not copied whole"),
    ],
)
def test_what_is_no_dataset_of_ours_is_said_in_one_line(tmp_path, spoil, says):
    path = spoil(write(tmp_path, "captioned_videos", VIDEOS), tmp_path)
    with pytest.raises(RecordsError, match=says) as caught:
        open_records(path)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_bucket_is_to_be_mounted():
    with pytest.raises(RecordsError, match="^gs://bucket/records: .*mount"):
        open_records("gs://bucket/records")


def test_a_damaged_record_is_named(tmp_path):
    folder = write(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    shard = sorted(folder.glob("*array_record*"))[1]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert records[0]["name"] == VIDEOS[0]["name"]
    with pytest.raises(RecordsError, match="record 4 is not readable"):
        records[4]


def test_tensorflow_is_neither_needed_nor_imported(tmp_path):
    write(tmp_path, "captioned_videos", VIDEOS)
    program = """
import sys
from fyp_jax.data.datasets import open_records
assert "jax" not in sys.modules  # a decoding process has no use for it
records = open_records(sys.argv[1])
print(len(records), records[3]["video"])
import tensorflow_datasets as tfds
print(tfds.data_source("captioned_videos", data_dir=sys.argv[1], split="train")[3]["video"])
assert "tensorflow" not in sys.modules
"""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", program, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.split("\n")[:2] == [f"7 {VIDEOS[3]['video']!r}", f"{VIDEOS[3]['video']!r}"]
