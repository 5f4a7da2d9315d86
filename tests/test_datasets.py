"""Records that TFDS wrote are read back unchanged, or give an error of one line, without TensorFlow."""

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
        "video": b"\0\xff" * i + bytes(i),  # the zeros at the end belong to the file
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


def write_dataset(
    data_dir: Path, kind: str, examples: list[dict[str, Any]], name: str = "", fields: Any = None
) -> Path:
    """Write a dataset with TFDS's own writer, three records per shard."""
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


def test_open_records_reads_videos_back_unchanged(tmp_path):
    write_dataset(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    assert (records.kind, len(records)) == ("captioned_videos", len(VIDEOS))
    for record, video in zip(records, VIDEOS, strict=True):
        assert record["captions"]["frame"].dtype == np.int64
        captions = {"frame": record["captions"]["frame"].tolist(), "text": record["captions"]["text"]}
        assert {**record, "captions": captions} == video


def test_open_records_reads_images_back_unchanged(tmp_path):
    write_dataset(tmp_path, "pose_images", [{**image, "caption": "it"} for image in IMAGES])
    records = open_records(tmp_path / "pose_images")
    for record, image in zip(records, IMAGES, strict=True):
        assert record["keypoints"].dtype == np.float32
        np.testing.assert_array_equal(record.pop("keypoints"), image["keypoints"])
        assert record == {**{key: image[key] for key in ("name", "image", "skeleton")}, "caption": "it"}


def test_open_records_accepts_each_folder_above_the_dataset(tmp_path):
    folder = write_dataset(tmp_path, "captioned_videos", VIDEOS)
    fingerprints = {
        open_records(path).fingerprint for path in (folder, folder.parent, tmp_path, str(tmp_path))
    }
    assert len(fingerprints) == 1


def test_records_can_be_pickled_and_raise_for_an_index_out_of_range(tmp_path):
    write_dataset(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    copy = pickle.loads(pickle.dumps(records))
    assert repr(copy) == repr(records)
    assert copy[5]["video"] == VIDEOS[5]["video"]
    for index in (len(VIDEOS), -1):
        with pytest.raises(IndexError):
            records[index]


def test_fingerprint_depends_on_the_records_and_not_on_their_path(tmp_path):
    def fingerprint(place: str, examples: list[dict[str, Any]]) -> str:
        return open_records(write_dataset(tmp_path / place, "captioned_videos", examples)).fingerprint

    first = fingerprint("a", VIDEOS)
    assert fingerprint("b", VIDEOS) == first
    assert len({first, fingerprint("c", VIDEOS[1:]), fingerprint("d", [*VIDEOS[:6], VIDEOS[5]])}) == 3


def missing_folder(_: Path, path: Path) -> Path:
    return path / "nothing"


def file_for_folder(_: Path, path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def empty_folder(_: Path, path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def unfinished(folder: Path, path: Path) -> Path:
    folder.rename(folder.with_name("1.0.0.incomplete"))
    return path


def two_datasets(_: Path, path: Path) -> Path:
    write_dataset(path, "pose_images", [{**image, "caption": "it"} for image in IMAGES])
    return path


def another_kind(_: Path, path: Path) -> Path:
    return write_dataset(path, "", [{"label": 1}], "digits", tfds.features.FeaturesDict({"label": np.int64}))


def other_fields(_: Path, path: Path) -> Path:
    fields = tfds.features.FeaturesDict({"video": tfds.features.Text()})
    return write_dataset(path, "", [{"video": "x"}], "pose_images", fields)


def another_format(folder: Path, path: Path) -> Path:
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    return path


def broken_metadata(folder: Path, path: Path) -> Path:
    (folder / "dataset_info.json").write_text("{")
    return path


def missing_shard(folder: Path, path: Path) -> Path:
    sorted(folder.glob("*array_record*"))[1].unlink()
    return path


def shard_cut_off(folder: Path, path: Path) -> Path:
    shards = sorted(folder.glob("*array_record*"))
    sizes = [shard.stat().st_size for shard in shards]
    (folder / "metadata.json").write_text(json.dumps({"digest": "d", "shard_bytes": sizes}))
    assert len(open_records(path)) == len(VIDEOS)
    with open(shards[1], "r+b") as shard:
        shard.truncate(sizes[1] - 1)
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_folder, "nothing: no such folder"),
        (file_for_folder, "file: is a file, not a folder"),
        (empty_folder, "empty: no dataset_info.json"),
        (unfinished, "did not finish, run the same command again"),
        (two_datasets, "holds 2 datasets, .*captioned_videos/1.0.0, pose_images/1.0.0"),
        (another_kind, "holds the dataset digits, not pose_images or captioned_videos"),
        (other_fields, "its features are not those of pose_images"),
        (another_format, "its file format is tfrecord, it must be array_record"),
        (broken_metadata, "its metadata cannot be read"),
        (missing_shard, "1 of 3 shards are missing, the first is captioned_videos-train.array_record-00001"),
        (shard_cut_off, r"00001: has \d+ bytes instead of \d+: changed, or not copied completely"),
    ],
)
def test_open_records_of_an_invalid_dataset_raises_one_line_with_the_path(tmp_path, damage, message):
    path = damage(write_dataset(tmp_path, "captioned_videos", VIDEOS), tmp_path)
    with pytest.raises(RecordsError, match=message) as caught:
        open_records(path)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_open_records_of_a_bucket_url_asks_to_mount_it():
    with pytest.raises(RecordsError, match="^gs://bucket/records: .*mount"):
        open_records("gs://bucket/records")


def test_reading_a_damaged_record_raises_its_index(tmp_path):
    folder = write_dataset(tmp_path, "captioned_videos", VIDEOS)
    records = open_records(tmp_path)
    shard = sorted(folder.glob("*array_record*"))[1]
    shard.write_bytes(b"\0" * shard.stat().st_size)
    assert records[0]["name"] == VIDEOS[0]["name"]
    with pytest.raises(RecordsError, match="record 4 cannot be read"):
        records[4]


def test_reading_records_imports_neither_jax_nor_tensorflow(tmp_path):
    write_dataset(tmp_path, "captioned_videos", VIDEOS)
    program = """
import sys
from fyp_jax.data.datasets import open_records
assert "jax" not in sys.modules  # reading records does not need it
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
