"""Batches depend on records, config, seed and step alone; corrupt records are named; workers always end."""

import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from conftest import slow
from fyp_jax.data.config import DataConfig
from fyp_jax.data.example_source import ExampleSource
from fyp_jax.data.loader import Loader, TooManyCorruptRecords
from fyp_jax.errors import UserError
from fyp_jax.types import Batch


class InMemoryRecords:
    """Records in memory that count their reads."""

    def __init__(self, kind: str, records: list[dict[str, Any]], fingerprint: str = "these"):
        self.kind, self.records, self.fingerprint, self.reads = kind, records, fingerprint, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        return self.records[index]


def tokenize(text: str) -> np.ndarray:
    return np.frombuffer(text.encode().ljust(12, b"\0"), np.uint8).astype(np.int32)


def captions(batch: Batch) -> list[str]:
    return [bytes(row.astype(np.uint8)).rstrip(b"\0").decode() for row in np.asarray(batch.input_ids)]


def encode_video(number: int, frames: int = 30) -> bytes:
    """A video whose frame i has grey level 8 i on the left and 20 x `number` on the right."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "10", "qmin": "1", "qmax": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = 32, 64
        for i in range(frames):
            image = np.full((32, 64, 3), 20 * number, np.uint8)
            image[:, :32] = 8 * i
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@cache
def videos(count: int = 7, broken: tuple[int, ...] = ()) -> InMemoryRecords:
    records = []
    for number in range(count):
        starts = np.arange(0, 30, 10)
        data = encode_video(number)
        records.append(
            {
                "name": f"clip{number}.mp4",
                "video": data[:200] if number in broken else data,
                "frames": np.int64(30),
                "fps": np.float32(10),
                "captions": {"frame": starts, "text": [f"clip{number} {start}" for start in starts]},
            }
        )
    return InMemoryRecords("captioned_videos", records)


def png(grey: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(out, "PNG")
    return out.getvalue()


def images(count: int, broken: tuple[int, ...] = ()) -> InMemoryRecords:
    records = [
        {
            "name": f"{number}.png",
            "image": b"" if number in broken else png(number % 256),
            "skeleton": png(0),
            "keypoints": np.zeros((0, 17, 3), np.float32),
            "caption": str(number),
        }
        for number in range(count)
    ]
    return InMemoryRecords("pose_images", records)


def config(**changes: Any) -> DataConfig:
    defaults = {
        "path": "here",
        "num_frames": 4,
        "stride": 3,
        "height": 16,
        "width": 32,
        "batch_size": 5,
        "workers": 0,
    }
    return DataConfig(**defaults | changes)


def image_config(**changes: Any) -> DataConfig:
    return config(**{"num_frames": 1, "height": 8, "width": 8} | changes)


def assert_same(one: Batch, other: Batch) -> None:
    np.testing.assert_array_equal(one.video, other.video)
    np.testing.assert_array_equal(one.input_ids, other.input_ids)
    assert (one.pose_images is None) == (other.pose_images is None)
    if one.pose_images is not None and other.pose_images is not None:
        np.testing.assert_array_equal(one.pose_images, other.pose_images)


def select_rows(batch: Batch, rows: range) -> Batch:
    return Batch(*(None if part is None else np.asarray(part)[rows] for part in batch))


VARIED = {"caption_dropout": 0.3, "max_corrupt_fraction": 0.3}


@cache
def reference(steps: int = 6) -> list[Batch]:
    """First batches of records of which one is corrupt, with caption dropout."""
    loader = Loader(videos(broken=(2,)), config(**VARIED), tokenize, 3, range(5))
    return [next(loader) for _ in range(steps)]


def test_reference_batches_cover_all_valid_records_captions_and_windows():
    seen = [caption for batch in reference() for caption in captions(batch)]
    assert 0 < seen.count("") < 20
    assert {caption[:5] for caption in seen if caption} == {f"clip{i}" for i in (0, 1, 3, 4, 5, 6)}
    assert len({caption[5:] for caption in seen if caption}) == 3
    videos_seen = np.concatenate([batch.video for batch in reference()])
    assert len(np.unique(videos_seen.reshape(30, -1), axis=0)) > 20  # windows differ


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.slow
def test_loader_with_any_number_of_workers_gives_the_same_batches(workers):
    with Loader(videos(broken=(2,)), config(workers=workers, **VARIED), tokenize, 3, range(5)) as loader:
        for batch in reference():
            assert_same(next(loader), batch)
        assert list(loader.rejected) == ["clip2.mp4"]


@pytest.mark.parametrize("rows", [range(2), range(2, 5), range(4, 5), range(1, 5, 2)])
def test_loader_of_some_rows_gives_these_rows_of_the_same_batches(rows):
    loader = Loader(videos(broken=(2,)), config(**VARIED), tokenize, 3, rows)
    for batch in reference():
        assert_same(next(loader), select_rows(batch, rows))


@pytest.mark.slow
def test_loader_raises_when_a_worker_is_killed_and_resumes_without_losing_a_batch():
    with Loader(videos(broken=(2,)), config(workers=2, **VARIED), tokenize, 3, range(5)) as loader:
        assert_same(next(loader), reference()[0])
        workers = multiprocessing.active_children()
        assert len(workers) == 2
        assert workers[0].pid is not None
        os.kill(workers[0].pid, signal.SIGKILL)
        received = [reference()[0]]
        with pytest.raises(UserError, match="here: a data worker process died, .* exit code -9"):
            received.extend(loader)  # examples that were decoded before still come
        assert not multiprocessing.active_children()
    for batch, expected in zip(received, reference(), strict=False):
        assert_same(batch, expected)
    resumed = Loader(videos(broken=(2,)), config(**VARIED), tokenize, 3, range(5))
    resumed.restore(loader.state())
    assert_same(next(resumed), reference()[len(received)])


def test_loader_gives_each_record_once_per_epoch_in_a_new_order():
    loader = Loader(images(7), image_config(batch_size=3), tokenize, 0, range(3))
    seen = [caption for _ in range(28) for caption in captions(next(loader))]
    epochs = [seen[i : i + 7] for i in range(0, 84, 7)]
    assert all(sorted(epoch) == [str(i) for i in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_loader_gives_batches_larger_than_the_dataset():
    batch = next(Loader(images(2), image_config(), tokenize, 0, range(5)))
    assert sorted(Counter(captions(batch)).values()) in ([2, 3], [2, 3])
    assert set(captions(next(Loader(images(1), image_config(), tokenize, 0, range(5))))) == {"0"}


def test_loader_with_another_seed_gives_other_batches():
    batches = [next(Loader(videos(), config(), tokenize, seed, range(5))) for seed in (0, 0, 1)]
    assert_same(batches[0], batches[1])
    assert not np.array_equal(batches[0].video, batches[2].video)


def test_batch_has_documented_shapes_dtypes_and_value_ranges():
    batch = next(Loader(videos(), config(stride=1), tokenize, 0, range(5)))
    assert (batch.video.dtype, batch.input_ids.dtype, batch.pose_images) == (np.float32, np.int32, None)
    assert batch.video.shape == (5, 4, 16, 32, 3)
    for clip, caption in zip(np.asarray(batch.video), captions(batch), strict=True):
        grey = (clip + 1) * 127.5
        np.testing.assert_allclose(grey[:, 4:12, 20:28], 20 * int(caption[4]), atol=4)
        shown = grey[:, 8, 4, 0] / 8
        np.testing.assert_allclose(np.diff(shown), 1, atol=0.4)
        assert 10 * round(shown.mean() / 10) == int(caption[6:]) or shown.mean() > 25

    records = images(256)
    for number, record in enumerate(records.records):
        record["skeleton"] = png(255 - number)
    batch = next(Loader(records, image_config(batch_size=256), tokenize, 0, range(256)))
    assert batch.pose_images is not None
    assert (batch.pose_images.dtype, batch.pose_images.shape) == (np.float32, (256, 1, 8, 8, 3))
    order = np.argsort([int(caption) for caption in captions(batch)])
    expected = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(np.asarray(batch.video)[order, 0, 5, 5, 1], expected)
    assert expected[[0, -1]].tolist() == [-1, 1]
    np.testing.assert_allclose(
        np.asarray(batch.pose_images)[order, 0, 5, 5, 1], np.arange(256)[::-1] / 255, atol=1e-6
    )


def test_caption_dropout_drops_the_given_fraction_and_changes_nothing_else():
    loaders = [
        Loader(images(50), image_config(batch_size=400, caption_dropout=dropout), tokenize, 0, range(400))
        for dropout in (0.0, 0.25, 1.0)
    ]
    batches = [next(loader) for loader in loaders]
    none, some, every = ([caption == "" for caption in captions(batch)] for batch in batches)
    assert not any(none)
    assert all(every)
    assert 70 <= sum(some) <= 130  # 100 expected, 3.5 standard deviations
    for batch in batches[1:]:
        np.testing.assert_array_equal(batch.video, batches[0].video)
    kept = ~np.array(some)
    input_ids = [np.asarray(batch.input_ids)[kept] for batch in batches]
    np.testing.assert_array_equal(input_ids[1], input_ids[0])


def test_loader_replaces_a_corrupt_record_and_logs_it_once(caplog):
    whole = Loader(images(20), image_config(batch_size=10), tokenize, 0, range(10))
    loader = Loader(
        images(20, (3, 8)), image_config(batch_size=10, max_corrupt_fraction=0.1), tokenize, 0, range(10)
    )
    with caplog.at_level(logging.WARNING):
        pairs = [
            pair for _ in range(8) for pair in zip(captions(next(whole)), captions(next(loader)), strict=True)
        ]
    replaced = [new for old, new in pairs if old in ("3", "8")]
    assert len(replaced) == 8
    assert not {"3", "8"} & set(replaced)
    assert len(set(replaced)) > 3  # the replacement is random
    assert all(old == new for old, new in pairs if old not in ("3", "8"))
    assert sorted(loader.rejected) == ["3.png", "8.png"]
    assert all(why.startswith("its image cannot be decoded") for why in loader.rejected.values())
    lines = sorted(record.getMessage() for record in caplog.records)
    assert [line.split(" (")[0] for line in lines] == [
        f"{number}.png: skipped, its image cannot be decoded" for number in (3, 8)
    ]


@pytest.mark.parametrize(("broken", "fraction"), [((4, 9, 11), 0.1), ((7,), 0.0), ((7,), 0.04)])
def test_loader_raises_for_more_corrupt_records_than_allowed(broken, fraction):
    loader = Loader(images(20, broken), image_config(max_corrupt_fraction=fraction), tokenize, 0, range(5))
    with pytest.raises(TooManyCorruptRecords) as caught:
        list(loader)
    assert len(loader.rejected) == len(broken)
    message = str(caught.value)
    assert message.startswith(f"here: {len(broken)} of 20 records are corrupt")
    assert f"max_corrupt_fraction={fraction} allows {len(broken) - 1}: " in message
    for number in broken:
        assert f"{number}.png: its image cannot be decoded" in message


@pytest.mark.parametrize(("count", "fraction"), [(3, 1.0), (1, 0.0), (50, 0.5), (1, 1.0)])
def test_loader_raises_when_all_records_are_corrupt(count, fraction):
    loader = Loader(
        images(count, tuple(range(count))), image_config(max_corrupt_fraction=fraction), tokenize, 0, range(5)
    )
    with pytest.raises(TooManyCorruptRecords, match="sampled in a row"):
        next(loader)


def test_loader_finds_the_only_valid_record():
    loader = Loader(
        images(40, tuple(range(39))), image_config(max_corrupt_fraction=1.0), tokenize, 0, range(5)
    )
    assert captions(next(loader)) == ["39"] * 5


def test_loader_raises_after_few_reads_when_many_records_are_corrupt():
    class Broken(InMemoryRecords):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(0) | {"name": str(index)}

    records = Broken("pose_images", images(1, (0,)).records)
    with pytest.raises(
        TooManyCorruptRecords, match=r"here: 8 of 100000 records are corrupt, 8 of them sampled in a row"
    ):
        next(Loader(records, image_config(), tokenize, 0, range(5)))
    assert records.reads == 8


@pytest.mark.slow
def test_restored_loader_resumes_and_decodes_no_earlier_batch():
    first = Loader(videos(broken=(2,)), config(**VARIED), tokenize, 3, range(5))
    assert_same(next(first), reference()[0])
    assert_same(next(first), reference()[1])
    state = json.loads(json.dumps(first.state()))
    assert_same(next(first), reference()[2])

    records = videos(broken=(2,))
    second = Loader(records, config(**VARIED), tokenize, 3, range(2, 5))
    next(second)
    second.restore(state)
    before = records.reads
    for batch in reference()[2:4]:
        assert_same(next(second), select_rows(batch, range(2, 5)))
    assert 6 <= records.reads - before <= 9  # some are read to replace the corrupt one
    assert second.state()["step"] == 4

    third = Loader(videos(broken=(2,)), config(workers=1, **VARIED), tokenize, 3, range(5), start_step=1)
    with third:
        assert_same(next(third), reference()[1])
        third.restore(state)
        for batch in reference()[2:]:
            assert_same(next(third), batch)


def test_restore_rejects_the_state_of_other_data():
    state = Loader(images(9), image_config(), tokenize, 0, range(5), start_step=3).state()
    others = InMemoryRecords("pose_images", images(9).records, "those")
    for loader, difference in [
        (Loader(others, image_config(), tokenize, 0, range(5)), "records was these, is those"),
        (Loader(images(9), image_config(), tokenize, 1, range(5)), "seed was 0, is 1"),
        (Loader(images(9), image_config(batch_size=6), tokenize, 0, range(5)), "batch_size was 5, is 6"),
    ]:
        with pytest.raises(UserError, match=f"here: cannot resume with other data: {difference}$"):
            loader.restore(state)
        assert loader.state()["step"] == 0
    with pytest.raises(UserError, match="seed was None"):
        Loader(images(9), image_config(), tokenize, 0, range(5)).restore({})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 0}, {"stride": 0}, {"height": 0}, {"width": -8}, {"batch_size": 0}, {"workers": -1},
        {"max_corrupt_fraction": -0.1}, {"max_corrupt_fraction": float("nan")}, {"caption_dropout": 1.1},
    ],
)  # fmt: skip
def test_config_rejects_values_out_of_range(changes):
    config().check()
    with pytest.raises(UserError, match=f"data.{next(iter(changes))}="):
        config(**changes).check()
    with pytest.raises(UserError, match=f"data.{next(iter(changes))}="):
        ExampleSource(videos(), config(**changes), 0)


def test_loader_rejects_records_and_rows_that_do_not_fit_the_config():
    with pytest.raises(UserError, match="data.num_frames=4, but here holds images: set data.num_frames=1"):
        Loader(images(3), image_config(num_frames=4), tokenize, 0, range(5))
    with pytest.raises(UserError, match="here: has no records"):
        Loader(images(0), image_config(), tokenize, 0, range(5))
    for rows in (range(0), range(3, 6)):
        with pytest.raises(ValueError, match="rows"):
            Loader(images(3), image_config(), tokenize, 0, rows)


SCRIPT = """
import io, os, sys
import numpy as np
from fyp_jax.data.config import DataConfig
from fyp_jax.data.loader import Loader
from fyp_jax.console import run_cli

from PIL import Image

class ProcessRecords:
    # a caption tells the process and the JAX backend in which its record was read
    kind, fingerprint = "pose_images", "x"

    def __len__(self):
        return 9

    def __getitem__(self, index):
        import jax
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "PNG")
        caption = f"{os.getpid()} {jax.default_backend()} {jax.config.jax_platforms}"
        return {"name": "x", "image": image.getvalue(), "skeleton": image.getvalue(), "caption": caption}

def print_caption(text):
    print(text, flush=True)
    return np.zeros(1, np.int32)

def main():
    config = DataConfig(num_frames=1, height=8, width=8, batch_size=4, workers=2)
    loader = Loader(ProcessRecords(), config, print_caption, 0, range(4))
    next(loader)
    while sys.stdin.readline():  # a line asks for the next batch
        next(loader)

if __name__ == "__main__":
    sys.exit(run_cli(main))
"""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="looks up processes in /proc")
@pytest.mark.parametrize("end", [slow("return"), "interrupt", slow("kill")])
def test_workers_use_the_cpu_and_end_with_the_program(tmp_path, end):
    (tmp_path / "program.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert program.stdin is not None and program.stdout is not None  # noqa: PT018
    lines = [program.stdout.readline().split() for _ in range(4)]
    workers = {int(pid) for pid, _, _ in lines}
    assert len(workers) == 2
    assert program.pid not in workers
    assert [line[1:] for line in lines] == [["cpu", "cpu"]] * 4
    if end == "interrupt":
        os.killpg(program.pid, signal.SIGINT)  # to the whole process group, as a terminal does
    elif end == "kill":
        for pid in workers:  # a preemption may send SIGTERM to all processes; the trainer decides when to end
            os.kill(pid, signal.SIGTERM)
        for line in range(60):  # far more than the workers had decoded before the signal
            if line % 4 == 0:
                program.stdin.write("\n")
                program.stdin.flush()
            assert int(program.stdout.readline().split()[0]) in workers
        program.kill()
    _, errors = program.communicate(timeout=120)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)]
    assert program.returncode == {"return": 0, "interrupt": 130, "kill": -signal.SIGKILL}[end]
    if end != "kill":
        assert errors == {"return": "", "interrupt": "interrupted\n"}[end]
