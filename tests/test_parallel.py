"""Eight simulated devices, shared in every way, give what one device gives."""

import functools
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import tiny_models
from fyp_jax import platforms
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import check_divisible, make_mesh, process_batch_range, shard_batch
from fyp_jax.tpu.hlo import collectives
from fyp_jax.training.gradient import sharded_gradient
from fyp_jax.training.losses import LOSSES
from fyp_jax.training.stages import STAGES
from fyp_jax.training.state import state_specs

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "frame": MeshConfig(data=1, frame=8),
    "all": MeshConfig(data=2, fsdp=2, frame=2),
}
CLIPS, FRAMES, SIDE = 8, 8, 32
SIGNAL = 2


@pytest.fixture(autouse=True)
def small_parameters_are_divided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fyp_jax.parallel.mesh.MIN_SHARD_SIZE", 64)


def gradient(mesh: jax.sharding.Mesh, stage: str, grad_accumulation_steps: int = 1) -> tuple[Any, Any, Any]:
    """The compiled program, gradients and metrics."""
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    models = tiny_models.models(stage, ExecutionConfig(frame_axis=frame_axis))
    state = tiny_models.state(models, stage, optax.sgd(1.0), mesh)
    frames = FRAMES if stage == "motion" else 1
    batch = shard_batch(tiny_models.batch(stage, CLIPS, frames, SIDE), range(CLIPS), CLIPS, mesh)
    function = sharded_gradient(
        models, LOSSES[STAGES[stage].loss], mesh, state_specs(state, mesh), CLIPS, grad_accumulation_steps
    )
    arguments = (
        state.trainable,
        state.frozen,
        batch,
        jax.random.key(3),
        tiny_models.stop_signals(mesh).at[-1].set(SIGNAL),
    )
    program = jax.jit(function).lower(*arguments).compile()
    return program, *program(*arguments)


@functools.cache
def on_one_device(stage: str) -> tuple[Any, Any]:
    return gradient(make_mesh(MeshConfig(), jax.devices()[:1]), stage)[1:]


@functools.cache
def on_mesh(name: str, stage: str) -> tuple[Any, Any, Any]:
    return gradient(make_mesh(MESHES[name]), stage)


def assert_same(ours: Any, theirs: Any) -> None:
    largest = max(np.abs(x).max() for x in jax.tree.leaves(theirs))
    for path, x in theirs.items():
        error = np.abs(np.asarray(ours[path]) - np.asarray(x)).max() / largest
        assert error < 1e-5, f"{path} differs by {error:.1e} of the largest"


@pytest.mark.parametrize("name", MESHES)
def test_motion_gradient_on_a_mesh_equals_one_device(name: str):
    gradients, metrics = on_one_device("motion")
    _, ours, our_metrics = on_mesh(name, "motion")
    np.testing.assert_allclose(our_metrics["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(our_metrics["timestep_bin_loss"], metrics["timestep_bin_loss"], rtol=1e-5)
    assert_same(ours, gradients)


@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_pose_gradient_on_a_mesh_equals_one_device(name: str):
    gradients, metrics = on_one_device("pose")
    _, ours, our_metrics = on_mesh(name, "pose")
    np.testing.assert_allclose(our_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_same(ours, gradients)


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_autoencoder_and_image_gradient_on_fsdp_equals_one_device(stage: str):
    gradients, metrics = on_one_device(stage)
    _, ours, our_metrics = on_mesh("fsdp", stage)
    np.testing.assert_allclose(our_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_same(ours, gradients)


def test_step_without_gradient_accumulation_has_no_scan():
    """On a CPU, XLA runs a convolution in a loop twenty times as slowly, even where it unrolls the loop."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    models = tiny_models.models("image", ExecutionConfig())
    state = tiny_models.state(models, "image", optax.sgd(1.0), mesh)
    batch = tiny_models.batch("image", CLIPS, 1, SIDE)

    def loops(grad_accumulation_steps: int) -> int:
        gradient = sharded_gradient(
            models, LOSSES["diffusion"], mesh, state_specs(state, mesh), CLIPS, grad_accumulation_steps
        )
        arguments = (state.trainable, state.frozen, batch, jax.random.key(0), tiny_models.stop_signals(mesh))
        return str(jax.make_jaxpr(gradient)(*arguments)).count("scan[")

    assert loops(1) == loops(2) - 1


def test_data_parallel_step_communicates_trainable_gradients_alone():
    program, gradients, _ = on_mesh("data", "motion")
    moved = collectives(program.as_text())
    trainable = sum(x.nbytes for x in gradients.values())
    assert {item.kind for item in moved} == {"all-reduce"}
    assert trainable <= sum(item.bytes for item in moved) <= trainable + 100


def test_frame_parallel_step_never_gathers_a_whole_clip():
    """No device gets more in a message than its own share of the widest activations."""
    program, _, _ = on_mesh("frame", "motion")
    moved = collectives(program.as_text())
    kinds = {item.kind for item in moved}
    assert kinds == {"all-reduce", "all-to-all", "collective-permute"}, "no all-gather, and each way is used"
    pixels = (SIDE // 8) ** 2
    share = CLIPS * FRAMES // 8 * pixels * max(tiny_models.UNET.block_out_channels)
    largest = max(math.prod(shape) for item in moved for shape in item.shapes)
    parameters = max(math.prod(x.shape) for x in on_one_device("motion")[0].values())
    assert largest <= max(share, parameters)
    # Nor does the program hold a whole clip of latents or wider anywhere else.
    size = f"{SIDE // 8},{SIDE // 8}"
    whole = re.compile(rf"\[({CLIPS},{FRAMES}|{CLIPS * FRAMES}),{size},\d+\]")
    assert not whole.findall(program.as_text())


def test_fsdp_divides_large_parameters_gradients_and_optimizer_state():
    """Each device holds an eighth of the bytes of each large array, and all of each small one."""
    mesh = make_mesh(MESHES["fsdp"])
    state = tiny_models.state(
        tiny_models.models("motion", ExecutionConfig()), "motion", optax.adamw(1.0), mesh
    )
    moments = state.opt_state[0]
    _, gradients, _ = on_mesh("fsdp", "motion")
    large = 0
    for arrays in (state.trainable, state.frozen, gradients, moments.mu, moments.nu):
        for path, x in arrays.items():
            divides = x.size >= 64 and any(length % 8 == 0 for length in x.shape)
            held = {shard.data.nbytes for shard in x.addressable_shards}
            assert held == {x.nbytes // 8 if divides else x.nbytes}, path
            assert len(x.addressable_shards) == 8, path
            large += divides
    assert large > 200


def test_accumulated_gradient_equals_gradient_of_whole_batch():
    gradients, metrics = on_one_device("motion")
    _, ours, our_metrics = gradient(
        make_mesh(MeshConfig(data=2), jax.devices()[:2]), "motion", grad_accumulation_steps=4
    )
    np.testing.assert_allclose(our_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_same(ours, gradients)


@pytest.mark.parametrize("name", MESHES)
def test_stop_signal_of_one_device_reaches_all(name: str):
    assert on_mesh(name, "motion")[2]["stop_signal"] == SIGNAL


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), "mesh.data=3 mesh.fsdp=1 mesh.frame=1 does not fit the 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "one of them may be -1"),
        (MeshConfig(data=0), "sizes are 1 or more"),
        (MeshConfig(fsdp=16), "does not fit the 8 devices"),
    ],
)
def test_mesh_that_does_not_fit_the_devices_is_refused(config: MeshConfig, message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        make_mesh(config)


def test_batch_that_does_not_divide_over_the_mesh_is_refused():
    mesh = make_mesh(MESHES["all"])
    assert process_batch_range(8, mesh) == range(8)
    with pytest.raises(UserError, match="data.batch_size=6 is not a multiple of 4"):
        check_divisible(6, 8, mesh)
    with pytest.raises(UserError, match="data.num_frames=5 is not a multiple of mesh.frame=2"):
        check_divisible(8, 5, mesh)


def test_coordinator_without_the_other_two_fields_is_refused():
    with pytest.raises(
        UserError, match="mesh.coordinator is given, but not mesh.num_processes and mesh.process_id"
    ):
        initialize(MeshConfig(coordinator="127.0.0.1:1"))


class Metadata(BaseHTTPRequestHandler):
    """What a TPU VM with four hosts in its slice is told."""

    def do_GET(self):
        known = self.path.endswith("/attributes/worker-network-endpoints") and self.headers["Metadata-Flavor"]
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"a:8470:10.0.0.1,b:8470:10.0.0.2,c:8470:10.0.0.3,d:8470:10.0.0.4")

    def log_message(self, *_: object):
        pass


def test_initialize_on_a_tpu_pod_connects_without_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: joined.append(given))
    monkeypatch.setattr(platforms, "DEVICES", tmp_path)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        initialize(MeshConfig())  # no chip, so nobody is asked
        assert joined == []
        (tmp_path / "vfio").mkdir()
        (tmp_path / "vfio" / "vfio").touch()  # there is one on machines without a TPU too
        initialize(MeshConfig())
        assert joined == []
        (tmp_path / "vfio" / "0").touch()
        initialize(MeshConfig())
        assert joined == [()]
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")  # GKE, one host
        initialize(MeshConfig())
        assert joined == [()]
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
        initialize(MeshConfig())
        assert joined == [(), ()]
        server.shutdown()
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    initialize(MeshConfig())  # chips, and nobody who answers
    assert joined == [(), ()]


def test_collectives_of_hlo_text_are_read():
    hlo = """
  %all-reduce.3 = (f32[2,3]{1,0}, s32[]) all-reduce(%a, %b), replica_groups={{0,1}}
  %x = bf16[4,8]{1,0} all-gather(%y), dimensions={0}
  %s = (f32[1]{0}, f32[1]{0}) collective-permute-start(%y)
  %d = f32[1]{0} collective-permute-done(%s)
  %f = f32[100]{0} fusion(%x), calls=%all-reduce.3
"""
    found = [(item.kind, item.bytes) for item in collectives(hlo)]
    assert found == [("all-reduce", 28), ("all-gather", 64), ("collective-permute", 4)]
