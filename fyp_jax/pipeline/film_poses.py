"""Poses of a film as a keypoint file, from which a clip is sampled: `sample.py --pose-from FILM`."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fyp_jax import __version__
from fyp_jax.media.errors import MediaError, MissingFileError
from fyp_jax.media.reading import frame_indices
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pose.extraction import extract_poses, frame_ranges, write_keypoints
from fyp_jax.pose.networks import NetworkFiles, find_networks, load_networks
from fyp_jax.pose.reading import load_keypoints
from fyp_jax.pose.smoothing import MAX_GAP


@dataclasses.dataclass(frozen=True)
class FilmOptions:
    """How people are found in a film, and which of them are taken."""

    people: int | None = None
    """The largest so many at a time; None: all."""
    smooth: bool = False
    detector: Path | None = None
    estimator: Path | None = None
    one_stage: bool = False


def with_poses_of_film(
    config: SampleConfig,
    film: Path,
    options: FilmOptions,
    on_frame: Callable[[], object] | None = None,
    tell: Callable[[str], object] = print,
) -> SampleConfig:
    """The config with the poses of a film, in OUTPUT_DIR/poses/NAME-HASH.json.

    Only the frames that the clip needs are looked at, and the few after them that fill a gap; `frames_needed`
    is their number. The hash is that of the film, the networks and the options, so that the same call finds
    its file again and no run's poses are ever replaced. `on_frame` is called after each frame; without it a
    bar is shown. Raises UserError as `find_networks` and `extract_poses` do, and where no frame of the clip
    has a person.
    """
    if not film.is_file():
        raise MissingFileError(film, "no such film" if not film.exists() else "is a folder, not a film")
    networks = find_networks(options.detector, options.estimator, options.one_stage)
    indices = frame_indices(config.num_frames, config.pose.stride, config.pose.start)
    settings = {
        "max_people": options.people,
        "smooth": options.smooth,
        "num_frames": frames_needed(config),
    }
    name = f"{film.stem}-{_fingerprint(film, networks, settings)}.json"
    file = Path(config.output_dir) / "poses" / name
    if not file.exists():
        total, hidden = settings["num_frames"], on_frame is not None
        with tqdm(total=total, unit=" frames", desc=film.name[:32], disable=hidden) as bar:
            poses = extract_poses(film, load_networks(networks), **settings, on_frame=on_frame or bar.update)
        write_keypoints(file, poses)
        tell(f"{film}: {poses.summary()}")
    _check_people_in_clip(film, file, indices, tell)
    return dataclasses.replace(config, pose=dataclasses.replace(config.pose, path=str(file)))


def frames_needed(config: SampleConfig) -> int:
    """The number of frames of a film that are looked at for the poses of a config's clip."""
    return frame_indices(config.num_frames, config.pose.stride, config.pose.start)[-1] + 1 + MAX_GAP


def _check_people_in_clip(film: Path, file: Path, indices: range, tell: Callable[[str], object]) -> None:
    """Refuse a clip without a person, and tell which of its frames have none."""
    frames = load_keypoints(file).frames
    used = [index for index in indices if index < len(frames)]  # too few frames are told by `load_pose`
    empty = [index for index in used if not len(frames[index])]
    if used and len(empty) == len(used):
        raise MediaError(
            film, f"none of the frames {frame_ranges(used)} has a person; change pose.start or pose.stride"
        )
    if empty:
        tell(f"{film}: no person in the frames {frame_ranges(empty)} of the clip, which get no skeleton")


def _fingerprint(film: Path, networks: NetworkFiles, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([__version__, settings]).encode())
    for file in (film, networks.estimator, networks.detector):
        if file is not None:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]
