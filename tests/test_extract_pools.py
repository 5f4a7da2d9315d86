"""extract_poses.py --workers: a process that is killed fails its own film, and no other one."""

from pathlib import Path
from unittest import mock

import pytest

import faults
from fyp_jax.cli import extract_poses
from fyp_jax.errors import UserError
from fyp_jax.pose.networks import NetworkFiles


@pytest.mark.parametrize("fatal", [(0,), (4,), (1, 2)])
def test_a_killed_process_fails_its_own_film_alone(monkeypatch: pytest.MonkeyPatch, fatal: tuple[int, ...]):
    monkeypatch.setattr(extract_poses, "_init_worker", faults.without_networks)
    monkeypatch.setattr(extract_poses, "_run_in_worker", faults.work_that_kills_its_process)
    films = [Path(str(i)) / ("fatal.mp4" if i in fatal else "film.mp4") for i in range(5)]
    jobs = [extract_poses.Job(film, film, film, None, False) for film in films]
    networks = NetworkFiles(Path("pose.onnx"), None)
    found = dict(extract_poses.run_jobs(jobs, networks, 2, mock.Mock(n=0)))
    assert set(found) == set(jobs)
    failed = {i for i, job in enumerate(jobs) if isinstance(found[job], UserError)}
    assert failed == set(fatal)
    assert all("its process was killed" in str(found[jobs[i]]) for i in fatal)
