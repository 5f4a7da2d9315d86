"""Which devices sampling takes: numbers, -1, and what does not fit."""

import dataclasses
import logging

import jax
import pytest

import tiny_models
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import make_programs
from fyp_jax.pipeline.sampling_mesh import batch_devices, sampling_mesh


@pytest.mark.parametrize(
    ("data", "frame", "num_frames", "trained", "expected"),
    [
        (1, 1, 8, 8, None),
        (-1, 1, 8, 8, (2, 1)),
        (-1, 4, 8, 8, (2, 4)),
        (-1, 8, 8, 8, (1, 8)),
        (2, -1, 8, 8, (2, 4)),
        (1, -1, 8, 8, (1, 8)),
        (-1, 1, 24, 8, (8, 1)),
        (-1, 2, 24, 8, (4, 2)),
        (-1, 1, 24, 24, (2, 1)),  # one window of these weights
        (-1, 1, 8, 5, (8, 1)),  # two windows
    ],
)
def test_minus_1_takes_the_devices_that_are_left(
    data: int, frame: int, num_frames: int, trained: int, expected: tuple[int, int] | None
):
    config = SampleConfig(prompt=["x"], num_frames=num_frames, mesh=MeshConfig(data=data, frame=frame))
    config.check()
    mesh = sampling_mesh(config, jax.devices(), trained)
    assert (None if mesh is None else (mesh.shape["data"], mesh.shape["frame"])) == expected


def test_devices_that_a_short_clip_cannot_use_are_told(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        sampling_mesh(SampleConfig(prompt=["x"], mesh=MeshConfig(data=-1)), jax.devices(), 8)
    assert "mesh.data=-1: 2 of 8 devices make this clip" in caplog.text
    caplog.clear()
    sampling_mesh(SampleConfig(prompt=["x"], mesh=MeshConfig(data=-1, frame=4)), jax.devices(), 8)
    assert not caplog.text


def test_one_device_is_no_mesh_with_minus_1():
    for mesh in (MeshConfig(data=-1), MeshConfig(data=1, frame=-1)):
        assert sampling_mesh(SampleConfig(prompt=["x"], mesh=mesh), jax.devices()[:1], 8) is None


@pytest.mark.parametrize(("data", "frame"), [(-1, -1), (0, 1), (-2, 1), (1, 0), (3, 1)])
def test_mesh_that_no_clip_takes_is_refused(data: int, frame: int):
    with pytest.raises(UserError, match=f"mesh.data={data} mesh.fsdp=1 mesh.frame={frame}: sampling takes"):
        SampleConfig(prompt=["x"], mesh=MeshConfig(data=data, frame=frame)).check()


def test_an_edit_is_one_window_on_a_mesh():
    config = SampleConfig(mesh=MeshConfig(data=2, frame=3))
    models = tiny_models.models("motion", ExecutionConfig())
    mesh = sampling_mesh(config, jax.devices(), 8)
    programs = make_programs(config, models.encoders, models.schedule, tiny_models.UNET, mesh)
    clip = SamplingParams(num_frames=12, height=64, width=64)
    with pytest.raises(UserError, match="window=8 is not a multiple of mesh.frame=3"):
        programs.check(clip)
    programs.check(clip, whole=True)
    with pytest.raises(UserError, match="num_frames=16 is not a multiple of mesh.frame=3"):
        programs.check(dataclasses.replace(clip, num_frames=16), whole=True)


def test_edit_takes_no_minus_1():
    with pytest.raises(UserError, match="an edit takes no -1"):
        EditConfig(prompt=["x"], source="y", video="a.mp4", mesh=MeshConfig(data=-1)).check()


@pytest.mark.parametrize(("data", "processes", "count"), [(-1, 1, 8), (3, 1, 3), (-1, 2, 8), (8, 2, 4)])
def test_batch_takes_the_devices_of_its_process(
    monkeypatch: pytest.MonkeyPatch, data: int, processes: int, count: int
):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    assert batch_devices(MeshConfig(data=data)) == jax.local_devices()[:count]


def test_batch_that_does_not_divide_over_processes_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="mesh.data=1 is not a multiple of the 2 processes"):
        batch_devices(MeshConfig(data=1))
