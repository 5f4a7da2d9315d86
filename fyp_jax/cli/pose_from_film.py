"""`sample.py --pose-from FILM`: the film's poses as a keypoint file, from which the clip is sampled."""

import argparse
import dataclasses
import hashlib
import json
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


def with_poses_of_film(config: SampleConfig, args: argparse.Namespace) -> SampleConfig:
    """The config with the poses of `args.pose_from`, in OUTPUT_DIR/poses/NAME-HASH.json.

    Only the frames that the clip needs are looked at, and the few after them that fill a gap. The hash is
    that of the film, the networks and the options, so that the same call finds its file again and no run's
    poses are ever replaced. Raises UserError as `find_networks` and `extract_poses` do, and where no frame of
    the clip has a person.
    """
    film: Path = args.pose_from
    if not film.is_file():
        raise MissingFileError(film, "no such film" if not film.exists() else "is a folder, not a film")
    networks = find_networks(args.detector, args.estimator, args.one_stage)
    indices = frame_indices(config.num_frames, config.pose.stride, config.pose.start)
    settings = {
        "max_people": args.people,
        "smooth": args.smooth,
        "num_frames": indices[-1] + 1 + MAX_GAP,
    }
    name = f"{film.stem}-{_fingerprint(film, networks, settings)}.json"
    file = Path(config.output_dir) / "poses" / name
    if not file.exists():
        with tqdm(total=settings["num_frames"], unit=" frames", desc=film.name[:32]) as bar:
            poses = extract_poses(film, load_networks(networks), **settings, on_frame=bar.update)
        write_keypoints(file, poses)
        print(f"{film}: {poses.summary()}")
    _check_people_in_clip(film, file, indices)
    return dataclasses.replace(config, pose=dataclasses.replace(config.pose, path=str(file)))


def _check_people_in_clip(film: Path, file: Path, indices: range) -> None:
    """Refuse a clip without a person, and tell which of its frames have none."""
    frames = load_keypoints(file).frames
    used = [index for index in indices if index < len(frames)]  # too few frames are told by `load_pose`
    empty = [index for index in used if not len(frames[index])]
    if used and len(empty) == len(used):
        raise MediaError(
            film, f"none of the frames {frame_ranges(used)} has a person; change pose.start or pose.stride"
        )
    if empty:
        print(f"{film}: no person in the frames {frame_ranges(empty)} of the clip, which get no skeleton")


def _fingerprint(film: Path, networks: NetworkFiles, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([__version__, settings]).encode())
    for file in (film, networks.estimator, networks.detector):
        if file is not None:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:12]
