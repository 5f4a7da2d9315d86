"""Clips in folders and tars: a run that ends anywhere leaves whole clips, and the next one adds to them."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from fyp_jax.errors import UserError
from fyp_jax.media.reading import read_frames
from fyp_jax.pipeline.clip_store import SUFFIXES, ClipFolder, ClipTars, list_clips, open_store
from fyp_jax.pipeline.output import PipelineOutput


def output(seed: int) -> PipelineOutput:
    frames = np.random.default_rng(seed).integers(0, 256, (2, 32, 32, 3), np.uint8)
    return PipelineOutput(frames, np.zeros((2, 4, 4, 4), np.float32), None)


def write_tar(folder: Path, count: int) -> Path:
    """The tar of a run with so many clips, which has ended."""
    store = ClipTars(folder, 0, 1)
    for number in range(count):
        store.add(f"{number}", output(number), 8.0, {"number": number})
    store.close()
    return folder / "clips-00000.tar"


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_clips_are_listed_as_they_were_added(tmp_path: Path, form: str):
    for number in (1, 0):  # a run, and another one
        store = open_store(form, tmp_path, 0, 1)
        store.add(f"{number:05d}", output(number), 8.0, {"prompt": f"number {number}"})
        store.close()
    assert sorted(open_store(form, tmp_path, 0, 1).records()) == ["00000", "00001"]
    clips = list_clips(tmp_path)
    assert [(clip.name, clip.record["prompt"]) for clip in clips] == [
        ("00000", "number 0"),
        ("00001", "number 1"),
    ]
    (tmp_path / "copy.mp4").write_bytes(clips[0].mp4.read())
    assert np.abs(read_frames(tmp_path / "copy.mp4", range(2)).astype(int) - output(0).frames).mean() < 60


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_clip_of_the_same_name_replaces_the_first_one(tmp_path: Path, form: str):
    store = open_store(form, tmp_path, 0, 1)
    for number in range(2):
        store.add("00000", output(number), 8.0, {"number": number})
    store.close()
    assert [clip.record["number"] for clip in list_clips(tmp_path)] == [1]


def test_clip_without_all_of_its_files_is_no_clip(tmp_path: Path):
    store = ClipFolder(tmp_path)
    for number in range(6):
        store.add(f"{number}", output(number), 8.0, {})
    (tmp_path / "1.json").unlink()
    (tmp_path / "2.json").write_text((tmp_path / "2.json").read_text()[:-9])
    (tmp_path / "3.gif").unlink()
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:-1])
    (tmp_path / "5.mp4").write_bytes((tmp_path / "0.mp4").read_bytes())
    assert sorted(store.records()) == ["0"]


def test_tar_that_is_cut_off_anywhere_keeps_its_whole_clips_and_takes_more(tmp_path: Path):
    file = write_tar(tmp_path, 3)
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        ends = [x.offset_data + x.size for x in tar.getmembers() if x.name.endswith(".json")]
    places = {
        0,
        1,
        511,
        512,
        *(end + shift for end in ends for shift in (-1, 0, 1, 700)),
        len(whole) - 1,
        len(whole),
    }
    for place in sorted(places):
        file.write_bytes(whole[:place])
        kept = sum(end <= place for end in ends)
        assert len(list_clips(tmp_path)) == kept, place
        again = ClipTars(tmp_path, 0, 1)
        assert sorted(again.records()) == [str(number) for number in range(kept)], place
        again.add("new", output(9), 8.0, {})
        again.close()
        with tarfile.open(file) as tar:  # as any program reads it
            assert len(tar.getnames()) == (kept + 1) * (len(SUFFIXES) + 1), place
        assert [clip.name for clip in list_clips(tmp_path)] == [*map(str, range(kept)), "new"], place


def test_tar_that_is_damaged_in_the_middle_loses_no_clip(tmp_path: Path):
    """A killed run leaves one clip unfinished at most: more than that is not cut off, and not left out."""
    file = write_tar(tmp_path, 4)
    whole = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        headers = [x.offset for x in tar.getmembers() if x.name.endswith(".mp4")]
    for number, is_refused in ((0, True), (1, True), (2, True), (3, False)):
        damaged = whole.copy()
        damaged[headers[number] + 150] ^= 1  # in the checksum of the header
        file.write_bytes(damaged)
        if not is_refused:
            assert sorted(ClipTars(tmp_path, 0, 1).records()) == ["0", "1", "2"]
            continue
        for read in (list_clips, lambda folder: ClipTars(folder, 0, 1)):
            with pytest.raises(UserError, match=rf"is no tar|is damaged at byte \d+, and {4 - number} clips"):
                read(tmp_path)
        assert file.read_bytes() == damaged


def test_tar_without_whole_clips_is_told_in_warnings_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A tar of somebody else's, which can be read to its end, is not damaged."""
    store = ClipFolder(tmp_path / "run")
    for number in range(3):
        store.add(f"{number}", output(number), 8.0, {})
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        for path in sorted((tmp_path / "run").glob("*.json")):
            tar.add(path, path.name)
    assert list_clips(tmp_path / "mine.tar") == []
    assert caplog.text.count("is no whole clip") == 3


def test_tar_that_cannot_be_read_is_told(tmp_path: Path):
    (tmp_path / "clips-00000.tar").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="clips-00000.tar: cannot be read"):
        list_clips(tmp_path)


def test_tar_of_another_process_that_was_killed_is_closed_by_the_next_run(tmp_path: Path):
    for process in range(2):
        store = ClipTars(tmp_path, process, 2)
        store.add(f"{process}", output(process), 8.0, {})
        store.close()
    file = tmp_path / "clips-00001.tar"
    file.write_bytes(file.read_bytes() + b"half of an entry")
    assert sorted(ClipTars(tmp_path, 0, 1).records()) == ["0", "1"]
    assert file.stat().st_size % tarfile.RECORDSIZE == 0
    with tarfile.open(file) as tar:
        assert len(tar.getnames()) == 4


def test_second_run_into_a_tar_is_refused(tmp_path: Path):
    first, second = ClipTars(tmp_path, 0, 1), ClipTars(tmp_path, 0, 1)
    first.add("0", output(0), 8.0, {})
    with pytest.raises(UserError, match="another process writes clips into it"):
        second.add("0", output(0), 8.0, {})
    first.close()
    second.add("1", output(0), 8.0, {})
    second.close()
    assert len(list_clips(tmp_path)) == 2


def test_folder_keeps_one_form(tmp_path: Path):
    for form, other in (("folder", "tar"), ("tar", "folder")):
        store = open_store(form, tmp_path / form, 0, 1)
        store.add("0", output(0), 8.0, {})
        store.close()
        with pytest.raises(UserError, match=f"give --format {form}"):
            open_store(other, tmp_path / form, 0, 1)


def test_what_is_no_folder_or_tar_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder or tar"):
        list_clips(tmp_path / "nowhere")
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match="a.tar: is no tar"):
        list_clips(tmp_path / "a.tar")
