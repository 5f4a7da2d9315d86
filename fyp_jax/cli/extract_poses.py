"""Extract the poses of people from films: for each film a keypoint file and a skeleton video.

    python scripts/extract_poses.py dance.mp4 --out poses
    python scripts/extract_poses.py films/*.mp4 --out poses --people 1 --smooth --workers 4
    python scripts/extract_poses.py dance.mp4 --out poses --detector yolox.onnx --estimator rtmpose.onnx
    python scripts/extract_poses.py films/*.mp4 --out poses --runner DirectRunner --direct_num_workers 4

OUT/NAME.json and OUT/NAME.mp4 are poses for sample.py: --pose OUT/NAME.json. The people are found by
RTMPose with a YOLOX detector, or by RTMO (--one-stage), and are tracked over the frames, largest first. Needs
the extra [pose]: pip install -e '.[pose]'. rtmlib downloads the networks at their first use.
"""

import argparse
import collections
import functools
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from fyp_jax.cli.film_arguments import add_extraction_arguments, check_people
from fyp_jax.cli.runner_arguments import add_runner_argument, local_path, parse_runner
from fyp_jax.console import run_console
from fyp_jax.data.ingest.beam_runner import run_in_beam
from fyp_jax.data.worker_process import set_up_worker
from fyp_jax.errors import UserError
from fyp_jax.media.headers import read_header
from fyp_jax.pose.extraction import extract_poses, write_keypoints, write_skeleton_video
from fyp_jax.pose.networks import FindPeople, NetworkFiles, find_networks, load_networks

MAX_NAMES = 8  # shown in a message
POLL_SECONDS = 0.2


class Job(NamedTuple):
    """A film, the files to write, and how its people are chosen."""

    film: Path
    keypoints: Path
    skeletons: Path
    max_people: int | None
    smooth: bool


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("films", nargs="+", type=Path, metavar="FILM", help="videos in any format of FFmpeg")
    add("--out", type=local_path, required=True, metavar="DIR", help="folder of the poses")
    add_extraction_arguments(parser)
    add("--workers", type=int, default=1, metavar="N", help="films at a time, in processes (%(default)s)")
    add_runner_argument(parser)
    add("--overwrite", action="store_true", help="replace files that are in the folder")
    args = parse_runner(parser, argv, {"--workers": 1})
    check_people(args.people)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers} must be at least 1")
    return args


def main() -> None:
    """Run extract_poses.py on the arguments of this process.

    A film that fails does not stop the others. Raises UserError where one failed.
    """
    args = parse(sys.argv[1:])
    jobs = plan(args)
    networks = find_networks(args.detector, args.estimator, args.one_stage)
    total = sum(read_header(job.film).num_frames for job in jobs)
    failed: dict[Path, UserError] = {}
    with tqdm(total=total or None, unit=" frames", dynamic_ncols=True) as bar:
        outcomes = (
            run_jobs(jobs, networks, args.workers, bar)
            if args.beam_options is None
            else run_jobs_in_beam(jobs, networks, args.beam_options)
        )
        for job, outcome in outcomes:
            if isinstance(outcome, UserError):
                failed[job.film] = outcome
                if len(jobs) > 1:
                    bar.write(f"failed: {outcome}", file=sys.stderr)
            else:
                bar.write(f"{job.keypoints}: {outcome}")
    if len(jobs) == 1 and failed:
        raise next(iter(failed.values()))
    if failed:
        names = ", ".join(str(film) for film in list(failed)[:MAX_NAMES])
        more = f" and {len(failed) - MAX_NAMES} more" if len(failed) > MAX_NAMES else ""
        raise UserError(f"{len(failed)} of {len(jobs)} films failed, see above: {names}{more}")


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs of the films. Raises UserError where two would write the same file, or replace one."""
    jobs: dict[str, Job] = {}
    for film in args.films:
        files = [args.out / f"{film.stem}{suffix}" for suffix in (".json", ".mp4")]
        job = Job(film, files[0], files[1], args.people, args.smooth)
        if film.stem in jobs:
            other = jobs[film.stem].film
            raise UserError(f"{film} and {other} have the same name: give each its own --out")
        for file in files:
            if file.exists() and film.exists() and file.samefile(film):
                raise UserError(f"{file}: is the film itself and would be replaced: give another --out")
            if file.exists() and not args.overwrite:
                raise UserError(f"{file}: exists already; --overwrite replaces it")
        jobs[film.stem] = job
    return list(jobs.values())


def run_jobs(
    jobs: Sequence[Job], networks: NetworkFiles, workers: int, bar: Any
) -> Iterator[tuple[Job, str | UserError]]:
    """Run jobs and give what came of each as it ends: the film's summary, or its error."""
    workers = min(workers, len(jobs))
    if workers == 1:
        find_people = load_networks(networks)
        for job in jobs:
            yield job, run_job(job, find_people, bar.update)
        return
    context = multiprocessing.get_context("spawn")  # threads of ONNX Runtime do not survive a fork
    frames = context.Value("q", 0)
    todo, suspects = collections.deque(jobs), collections.deque[Job]()
    while todo or suspects:
        queue, width = (suspects, 1) if suspects else (todo, workers)
        threads = max(1, (os.cpu_count() or 1) // width)
        with ProcessPoolExecutor(width, context, _init_worker, (networks, threads, frames)) as pool:
            broken = yield from _run_in_pool(pool, queue, width, lambda: bar.update(frames.value - bar.n))
        if width == 1 and broken:
            job = broken.pop()
            yield job, UserError(f"{job.film}: its process was killed, perhaps for want of memory")
        suspects.extend(broken)  # one of these killed its process: each once more, with nothing beside it


def _run_in_pool(
    pool: ProcessPoolExecutor, queue: "collections.deque[Job]", width: int, on_wait: Callable[[], Any]
) -> Generator[tuple[Job, str | UserError], None, list[Job]]:
    """Run the jobs of a queue, `width` at a time. Returns those that ran when a process of the pool died;
    the others stay in the queue."""
    open_jobs: dict[Future[str | UserError], Job] = {}
    broken: list[Job] = []
    while open_jobs or (queue and not broken):
        while queue and not broken and len(open_jobs) < width:
            job = queue.popleft()
            try:
                open_jobs[pool.submit(_run_in_worker, job)] = job
            except BrokenProcessPool:
                broken.append(job)
        done, _ = wait(open_jobs, POLL_SECONDS, return_when="FIRST_COMPLETED")
        on_wait()
        for future in done:
            job = open_jobs.pop(future)
            try:
                yield job, future.result()
            except BrokenProcessPool:
                broken.append(job)
    return broken


def run_job(job: Job, find_people: FindPeople, on_frame: Any) -> str | UserError:
    """Extract the poses of a film and write both files; gives a summary, or the error that stopped it."""
    try:
        poses = extract_poses(
            job.film, find_people, max_people=job.max_people, smooth=job.smooth, on_frame=on_frame
        )
        write_keypoints(job.keypoints, poses)
        write_skeleton_video(job.skeletons, poses)
    except UserError as error:
        return error
    return poses.summary()


def run_jobs_in_beam(
    jobs: Sequence[Job], networks: NetworkFiles, options: Sequence[str]
) -> Iterator[tuple[Job, str | UserError]]:
    """Run jobs on workers of Apache Beam, and give what came of each, when all have ended."""
    elements = [(_absolute(job), networks) for job in jobs]
    again = "run the command again with the films whose files are not there"
    run_in_beam(_run_in_beam_worker, elements, options, again)
    for job in jobs:
        failed, text = json.loads(_outcome_file(job).read_text())
        _outcome_file(job).unlink()
        yield job, UserError(text) if failed else text


def _run_in_beam_worker(element: tuple[Job, NetworkFiles]) -> None:
    job, networks = element
    outcome = run_job(job, _networks_of_thread(networks, threading.get_ident()), lambda *_: None)
    job.keypoints.parent.mkdir(parents=True, exist_ok=True)
    _outcome_file(job).write_text(json.dumps([isinstance(outcome, UserError), str(outcome)]))


@functools.lru_cache(maxsize=64)
def _networks_of_thread(networks: NetworkFiles, thread: int) -> FindPeople:
    del thread  # each thread of a worker has networks of its own
    return load_networks(networks, threads=1)


def _absolute(job: Job) -> Job:
    """The job with paths for workers that have another current folder."""
    files = {name: getattr(job, name).absolute() for name in ("film", "keypoints", "skeletons")}
    return job._replace(**files)


def _outcome_file(job: Job) -> Path:
    return job.keypoints.with_suffix(".outcome")


_worker: dict[str, Any] = {}


def _init_worker(networks: NetworkFiles, threads: int, frames: Any) -> None:
    set_up_worker()
    _worker.update(find_people=load_networks(networks, threads), frames=frames)


def _run_in_worker(job: Job) -> str | UserError:
    outcome = run_job(job, _worker["find_people"], _count_frame)
    return UserError(str(outcome)) if isinstance(outcome, UserError) else outcome  # subclasses do not pickle


def _count_frame() -> None:
    with _worker["frames"].get_lock():
        _worker["frames"].value += 1


def console() -> None:
    """The command fyp-extract-poses, and scripts/extract_poses.py."""
    run_console(main)
