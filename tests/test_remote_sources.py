"""Data from buckets: a source that is a URL gives the records of the same files in a folder."""

import csv
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_ingest_sources import (
    gif,
    make_golden_source,
    npz,
    person,
    write_files,
    write_humansd,
    write_tar,
)

from cli_utils import ROOT, assert_mistake, run_script
from fyp_jax.data.ingest.examples import make_example
from fyp_jax.data.ingest.find import find_items
from fyp_jax.data.ingest.ingest import Report, ingest
from fyp_jax.data.ingest.items import Blob, Caption, Item
from fyp_jax.data.ingest.remote import SourceError, read_remote, source_path
from fyp_jax.errors import UserError

KINDS = {"videos": "captioned_videos", "images": "pose_images"}
PREPARE_DATA = ROOT / "scripts" / "prepare_data.py"


@pytest.fixture
def bucket() -> Iterator[str]:
    """A place in fsspec's memory, which stands for a bucket."""
    pytest.importorskip("upath", reason="universal-pathlib (the extra [buckets]) is not installed")
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    if remote(url).fs.exists(remote(url).path):
        remote(url).fs.rm(remote(url).path, recursive=True)


def remote(url: str) -> Any:
    return source_path(url)


def upload(path: Path, url: str) -> str:
    """Copy a file or a folder to a URL, in no order of names."""
    files = [path] if path.is_file() else sorted((x for x in path.rglob("*") if x.is_file()), reverse=True)
    for file in files:
        place = remote(url if path.is_file() else f"{url}/{file.relative_to(path)}")
        place.fs.pipe_file(place.path, file.read_bytes())
    return url


def shards(report: Report) -> dict[str, bytes]:
    """Contents of the records and of refused.csv."""
    files = [*report.folder.glob("*array_record*"), report.folder / "refused.csv"]
    return {file.name: file.read_bytes() for file in files}


def rejected(report: Report) -> dict[str, str]:
    with open(report.folder / "refused.csv", newline="") as text:
        return {row["name"]: row["reason"] for row in csv.DictReader(text)}


@pytest.mark.parametrize(
    "name",
    [
        "metadata of videos",
        "tars of videos",
        "a tar of images",
        "captions of HDVILA",
        "videos",
        pytest.param("metadata of images", marks=pytest.mark.slow),
        pytest.param("mapping", marks=pytest.mark.slow),
    ],
)
def test_each_form_of_source_in_a_bucket_gives_the_files_of_a_folder(tmp_path: Path, bucket: str, name: str):
    options: dict[str, Any] = {}
    if name == "mapping":
        kind, source = "images", tmp_path / "in"
        write_humansd(source, {str(i): npz([person()]) if i < 3 else b"" for i in range(4)})
    elif name == "videos":
        kind, source = "videos", tmp_path / "in"
        odd = {"a b%20.gif": gif(3), "a b%20.txt": "one", "sub/ü#1?.gif": gif(4), "sub/ü#1?.txt": "two"}
        write_files(source, {**odd, "sub/silent.gif": gif(2), "bad.gif": b"no film", "bad.txt": "three"})
    else:
        kind, source, options = make_golden_source(name, tmp_path / "in")
    url = upload(source, f"{bucket}/{source.name}")
    there = {key: source_path(upload(path, f"{bucket}/{key}.csv")) for key, path in options.items()}
    ours = ingest(KINDS[kind], source_path(url), tmp_path / "remote", shard_bytes=5000, **there)
    theirs = ingest(KINDS[kind], source, tmp_path / "local", shard_bytes=5000, **options)
    assert ours.records > 0
    assert shards(ours) == shards(theirs)


def test_names_fit_remote_files_but_for_case_and_slashes(tmp_path: Path, bucket: str):
    metadata = "file_name,text\nSUB\\a.GIF,one\n../b.gif,out\nsub,folder\ngone.gif,gone\n"
    upload(write_files(tmp_path / "in", {"Sub/A.gif": gif(3), "metadata.csv": metadata}), bucket)
    report = ingest("captioned_videos", source_path(bucket), tmp_path / "out")
    assert report.records == 1
    assert rejected(report) == {
        "../b.gif": "its file is outside the source folder",
        "sub": "no such file",
        "gone.gif": "no such file",
    }


def test_changed_file_of_a_bucket_is_noticed(tmp_path: Path, bucket: str):
    upload(write_files(tmp_path / "in", {"a.gif": gif(3), "a.txt": "one"}), bucket)
    source = source_path(bucket)
    assert ingest("captioned_videos", source, tmp_path / "out").new
    assert not ingest("captioned_videos", source, tmp_path / "out").new
    time.sleep(0.01)
    upload(tmp_path / "in", bucket)
    with pytest.raises(UserError, match="exists already, with other data"):
        ingest("captioned_videos", source, tmp_path / "out")


def test_bucket_that_fails_ends_the_run_and_rejects_no_item(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
):
    files = {f"{i}{end}": data for i in range(3) for end, data in ((".gif", gif(3)), (".txt", "x"))}
    upload(write_files(tmp_path / "in", files), bucket)
    upload(write_tar(tmp_path / "x.tar", files), f"{bucket}/tar/x.tar")
    system, out = type(remote(bucket).fs), tmp_path / "out"

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError("HTTP 503")

    for folder, method in (
        ("", "info"),
        ("", "find"),
        ("", "cat_file"),
        ("/tar", "_open"),
        ("/tar", "cat_file"),
    ):
        source = source_path(bucket + folder)
        with monkeypatch.context() as patch:
            patch.setattr(system, method, fail)
            with pytest.raises(SourceError, match=r"cannot be read \(HTTP 503\); run the same command again"):
                ingest("captioned_videos", source, out, shard_bytes=1000, overwrite=True)
    report = ingest("captioned_videos", source_path(f"{bucket}/tar"), out, shard_bytes=1000)
    assert (report.records, report.rejected) == (3, [])


def test_file_of_a_bucket_that_is_gone_or_shorter_is_rejected(bucket: str):
    place = remote(f"{bucket}/a.gif")
    place.fs.pipe_file(place.path, gif(3)[:-20])
    for blob, why in (
        (Blob(f"{bucket}/b.gif", 0, 5, 0), "cannot be read (No such file or directory)"),
        (
            Blob(f"{bucket}/a.gif", 0, len(gif(3)), 0),
            f"is cut off: it has {len(gif(3)) - 20} of {len(gif(3))}",
        ),
        (Blob(f"{bucket}/a::b.gif", 0, 5, 0), "has ::"),
    ):
        result = make_example("captioned_videos", Item("x.gif", blob, (Caption(0, "x"),)))
        assert result.rejection is not None
        assert why in result.rejection.reason
    assert read_remote(f"{bucket}/a.gif", 2, 4) == gif(3)[2:6]


def test_file_url_is_a_path_of_this_machine(tmp_path: Path):
    source = write_files(tmp_path / "in", {"a.gif": gif(3), "a.txt": "one"})
    assert source_path(f"file://{source}") == source
    done = run_script(
        PREPARE_DATA, "videos", "--source", f"file://{source}", "--out", f"file://{tmp_path}/out"
    )
    assert done.status == 0, done.err
    assert (tmp_path / "out" / "captioned_videos").is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://clips", "names a machine; write file:///"),
        ("https://example.com/clips", "a web server lists no files"),
        ("simplecache::memory://clips", "has ::, which chains file systems"),
    ],
)
def test_url_that_cannot_be_a_source_is_refused(tmp_path: Path, url: str, message: str):
    run = run_script(PREPARE_DATA, "videos", "--source", url, "--out", tmp_path / "out")
    assert_mistake(run, message)
    assert os.listdir(tmp_path) == []


def test_kind_of_url_that_fsspec_lacks_or_that_has_nothing_is_refused(tmp_path: Path, bucket: str):
    for url, message in (
        ("nowhere://clips", "nowhere://clips: cannot be opened (Unsupported filesystem: 'nowhere')"),
        (f"{bucket}/clips", f"{bucket}/clips: no such folder"),
    ):
        done = run_script(PREPARE_DATA, "videos", "--source", url, "--out", tmp_path / "out")
        assert done.status == 2
        assert done.err.endswith(f"error: {message}\n")
    upload(write_files(tmp_path / "in", {"a.gif": gif(3)}), bucket)
    with pytest.raises(UserError, match=r"1 entries: a\.gif"):
        list(find_items("captioned_videos", source_path(bucket)))


def test_bucket_without_universal_pathlib_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(UserError, match=r"needs universal-pathlib: pip install 'fyp_jax\[buckets\]'"):
        source_path("gs://bucket/clips")


def test_only_the_source_may_be_a_url(tmp_path: Path):
    done = run_script(PREPARE_DATA, "videos", "--source", tmp_path, "--out", "memory://out")
    assert done.status == 2
    assert "memory://out is no path of this machine; mount the bucket first" in done.err
