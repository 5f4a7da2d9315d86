"""Measures of all clips of a folder: processes decode them and find poses, and CLIP runs on the devices."""

import collections
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from fyp_jax.data.worker_process import set_up_worker
from fyp_jax.errors import UserError
from fyp_jax.evaluation.clip_measures import ClipMeasures, clip_scores, flicker, given_keypoints, pose_error
from fyp_jax.evaluation.clip_score import ClipModel
from fyp_jax.media.images import Frames
from fyp_jax.media.reading import inspect_video, read_window
from fyp_jax.pipeline.clip_store import StoredClip
from fyp_jax.pose.networks import FindPeople, NetworkFiles, load_networks
from fyp_jax.types import Params


class Measured(NamedTuple):
    """What came of a clip: its measures, or the error that stopped them."""

    clip: StoredClip
    outcome: ClipMeasures | UserError


def measure_clips(
    clips: Iterable[StoredClip],
    measures: Iterable[str],
    clip_model: tuple[ClipModel, Params] | None,
    networks: NetworkFiles | None,
    workers: int,
) -> Iterator[Measured]:
    """Measure clips, in their order. `measures` are of "clip" (which needs `clip_model`), "pose" (which needs
    `networks`) and "flicker".

    A clip that cannot be measured gives its error, and does not stop the others.
    """
    wanted = tuple(measures)
    for clip, found in _in_workers(clips, wanted, networks, workers):
        if isinstance(found, UserError):
            yield Measured(clip, found)
            continue
        frames, outcome = found
        if clip_model is not None and "clip" in wanted:
            model, params = clip_model
            scores = clip_scores(*model.embed(params, prompt_of(clip), frames))
            outcome = outcome._replace(text_alignment=scores[0], frame_consistency=scores[1])
        yield Measured(clip, outcome)


def prompt_of(clip: StoredClip) -> str:
    """The prompt of a clip's record. Raises UserError where it has none."""
    prompt = clip.record.get("prompt")
    if not isinstance(prompt, str):
        raise UserError(f"{clip.where}: its record has no prompt")
    return prompt


def read_stored(clip: StoredClip) -> Frames:
    """The frames of a clip."""
    data = clip.mp4.read()
    count = inspect_video(data, clip.where).num_frames
    return read_window(data, clip.where, range(count), count)


def _in_workers(
    clips: Iterable[StoredClip], wanted: tuple[str, ...], networks: NetworkFiles | None, workers: int
) -> Iterator[tuple[StoredClip, Any]]:
    if workers == 1:
        find_people = None if networks is None else load_networks(networks)
        for clip in clips:
            yield clip, _measure(clip, wanted, find_people)
        return
    context = multiprocessing.get_context("spawn")  # threads of ONNX Runtime do not survive a fork
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, context, _init_worker, (networks, threads)) as pool:
        # Few clips are ahead, since each one's frames wait in memory.
        remaining, ahead = iter(clips), collections.deque()
        for clip in itertools.islice(remaining, 2 * workers):
            ahead.append((clip, pool.submit(_measure_in_worker, clip, wanted)))
        while ahead:
            clip, future = ahead.popleft()
            try:
                found = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"{clip.where}: its process was killed, perhaps for want of memory"
                ) from error
            yield clip, found
            for following in itertools.islice(remaining, 1):
                ahead.append((following, pool.submit(_measure_in_worker, following, wanted)))


def _measure(
    clip: StoredClip, wanted: tuple[str, ...], find_people: FindPeople | None
) -> tuple[Frames, ClipMeasures] | UserError:
    """Frames, and the measures that need no CLIP."""
    try:
        prompt_of(clip)
        frames = read_stored(clip)
        measures = ClipMeasures(flicker=flicker(frames) if "flicker" in wanted else None)
        if "pose" in wanted and find_people is not None:
            target = given_keypoints(clip.record, frames)
            error = None if target is None else pose_error(frames, target, find_people)
            if error is not None:
                measures = measures._replace(pck=error[0], oks=error[1])
        return frames, measures
    except UserError as error:
        text = str(error)
        return UserError(text if text.startswith(clip.where) else f"{clip.where}: {text}")


_worker: dict[str, Any] = {}


def _init_worker(networks: NetworkFiles | None, threads: int) -> None:
    set_up_worker()
    _worker["find_people"] = None if networks is None else load_networks(networks, threads)


def _measure_in_worker(clip: StoredClip, wanted: tuple[str, ...]) -> Any:
    return _measure(clip, wanted, _worker["find_people"])
