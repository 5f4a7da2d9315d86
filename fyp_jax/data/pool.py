"""Examples that are rendered once and kept: for accelerators that train faster than processes render.

The first pass over the pool is as quick as its worker processes; every later one costs a copy. What a run
trains on depends on the config and the seed, and not on the number of workers or on their speed.
"""

import multiprocessing
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from fyp_jax.data.decoding import Sample
from fyp_jax.data.example_source import Example, ExampleSource
from fyp_jax.data.worker_process import set_up_worker
from fyp_jax.errors import UserError

CAPTION_BYTES = 512
POLL_SECONDS = 0.002


class _Layout(NamedTuple):
    """The files of a pool: raw arrays that all of its processes map."""

    folder: Path
    size: int
    clip: tuple[int, ...]
    """Shape of a clip, [f h w 3]."""
    with_pose: bool

    def map(self, name: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
        file = self.folder / name
        return np.memmap(file, dtype, "r+" if file.exists() else "w+", shape=(self.size, *shape))


class _Arrays:
    """The mapped files of a pool, a row for each example."""

    def __init__(self, layout: _Layout):
        self.video = layout.map("video", layout.clip, "uint8")
        self.poses = layout.map("poses", layout.clip, "uint8") if layout.with_pose else None
        self.captions = layout.map("captions", (), f"S{CAPTION_BYTES}")
        self.whole = layout.map("whole", (), "uint8")
        """1 where a row is rendered."""
        self.mapped = layout.map("mapped", (), "uint8")
        """1 at the row of each worker that has mapped all files."""


class Pool(Iterator[Example]):
    """Examples `index_of(0)` to `index_of(size - 1)` of a source, in this order, then again and again in
    orders of chance.

    `first` is the position of the first example to give. Raises UserError where a worker process dies.
    """

    def __init__(self, source: ExampleSource, index_of: Callable[[int], int], first: int):
        config = source.config
        assert config.pool_size is not None
        self._seed, self._size, self._position = source.seed, config.pool_size, first
        self._epoch, self._order = 0, np.arange(self._size)
        self._workers: list[BaseProcess] = []
        clip = (config.num_frames, *config.clip_size, 3)
        folder = Path(tempfile.mkdtemp(prefix="fyp_jax-pool-"))
        try:
            layout = _Layout(folder, self._size, clip, source.with_pose)
            self._arrays = _Arrays(layout)
            workers = max(1, config.workers)
            context = multiprocessing.get_context("spawn")
            for worker in range(workers):
                args = (source, index_of, layout, worker, workers)
                self._workers.append(context.Process(target=_render, args=args, daemon=True))
                self._workers[-1].start()
            self._wait(lambda: bool(self._arrays.mapped[:workers].all()))
        except BaseException:
            self.close()
            raise
        finally:
            # The maps keep the files. Nothing is left to remove, however this process ends.
            shutil.rmtree(folder, ignore_errors=True)

    def __next__(self) -> Example:
        epoch, offset = divmod(self._position, self._size)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        row, arrays = self._order[offset], self._arrays
        self._wait(lambda: bool(arrays.whole[row]))
        self._position += 1
        poses = None if arrays.poses is None else arrays.poses[row]
        caption = bytes(arrays.captions[row]).decode()
        return Example(Sample(arrays.video[row], poses, caption), {})

    def close(self) -> None:
        """End the worker processes and give the memory back."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _order_of(self, epoch: int) -> Int[np.ndarray, "size"]:
        return np.random.default_rng([self._seed, epoch]).permutation(self._size)

    def _wait(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if any(worker.exitcode not in (None, 0) for worker in self._workers):
                raise UserError(
                    f"a process that renders the pool died, perhaps as memory or {tempfile.gettempdir()} is "
                    "full; data.pool_size is the number of clips that are kept"
                )
            time.sleep(POLL_SECONDS)


def _render(
    source: ExampleSource, index_of: Callable[[int], int], layout: _Layout, worker: int, workers: int
) -> None:
    """Render each row of the pool that is this worker's, those that are needed first before the others."""
    set_up_worker(signal.SIGINT, signal.SIGTERM)
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the trainer
    arrays = _Arrays(layout)
    arrays.mapped[worker] = 1
    for row in range(worker, layout.size, workers):
        sample = source[index_of(row)].sample
        assert isinstance(sample, Sample)  # no rendered scene is corrupt
        arrays.video[row] = sample.video
        if arrays.poses is not None:
            arrays.poses[row] = sample.pose_images
        caption = sample.caption.encode()
        assert len(caption) <= CAPTION_BYTES
        arrays.captions[row] = caption
        arrays.whole[row] = 1
