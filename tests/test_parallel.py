"""Eight simulated devices compute what one device computes, however the mesh divides the batch.

What compiles fast, a single transformer block, is tested on each mesh; the whole model in the slow tests.
"""

import functools
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import repeat
from flax.traverse_util import flatten_dict

import tiny_models
from conftest import slow
from fyp_jax import platforms
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.random_params import random_params
from fyp_jax.models.transformer import TransformerBlock
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import check_divisible, make_mesh, process_batch_range, shard_batch, shard_params
from fyp_jax.tpu.hlo import collectives
from fyp_jax.training.gradient import sharded_gradient
from fyp_jax.training.losses import LOSSES, Models, NoiseSample
from fyp_jax.training.stages import STAGES
from fyp_jax.training.state import TrainState, init_state, state_specs
from fyp_jax.types import Batch, Params

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "frame": MeshConfig(data=1, frame=8),
    "all": MeshConfig(data=2, fsdp=2, frame=2),
}
CLIPS, FRAMES, SIDE = 8, 8, 32
SIGNAL = 2
SMALLEST = 64
WIDTH = 16
"""Channels of the block."""
MODELS = ["block", slow("motion")]


@pytest.fixture(autouse=True)
def small_parameters_are_divided(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fyp_jax.parallel.mesh.MIN_SHARD_SIZE", SMALLEST)


def block_loss(models: Models, params: Params, batch: Batch, noise_sample: NoiseSample) -> jax.Array:
    """Mean square of what one transformer block makes of the noise; frames meet as they do in the UNet."""
    block = TransformerBlock(tiny_models.UNET, heads=2, width=WIDTH, execution=models.unet.execution)
    tokens = repeat(noise_sample.noise, "b f h w c -> b f (h w) (n c)", n=WIDTH // 4)
    text = jax.nn.one_hot(batch.input_ids % 8, tiny_models.UNET.cross_attention_dim)
    out = block.apply({"params": params["block"]}, tokens, text)
    return jnp.mean(jnp.square(out), axis=(1, 2, 3))  # pyright: ignore[reportArgumentType]


def block_state(mesh: jax.sharding.Mesh, optimizer: optax.GradientTransformation) -> TrainState:
    """The block's parameters; those of the motion stage are trained."""
    block = TransformerBlock(tiny_models.UNET, heads=2, width=WIDTH)
    tokens, text = jnp.zeros((1, 2, 16, WIDTH)), jnp.zeros((1, 7, tiny_models.UNET.cross_attention_dim))
    shapes = jax.eval_shape(block.init, jax.random.key(0), tokens, text)["params"]
    flat = flatten_dict({"block": random_params(shapes, seed=0)}, sep="/")
    trained = {path: bool(re.search("to_q|temp", path)) for path in flat}
    parts = [{path: x for path, x in flat.items() if trained[path] is k} for k in (True, False)]
    return init_state(*(shard_params(part, mesh) for part in parts), optimizer, use_ema=False, mesh=mesh)


def state_of(model: str, mesh: jax.sharding.Mesh, optimizer: optax.GradientTransformation) -> TrainState:
    if model == "block":
        return block_state(mesh, optimizer)
    return tiny_models.state(tiny_models.models(model, ExecutionConfig()), model, optimizer, mesh)


def gradient(mesh: jax.sharding.Mesh, model: str, grad_accumulation_steps: int = 1) -> tuple[Any, Any, Any]:
    """The compiled program, gradients and metrics; of a stage, or of a block."""
    stage = "motion" if model == "block" else model
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    models = tiny_models.models(stage, ExecutionConfig(frame_axis=frame_axis))
    state = state_of(model, mesh, optax.sgd(1.0))
    frames = FRAMES if stage == "motion" else 1
    batch = shard_batch(tiny_models.batch(stage, CLIPS, frames, SIDE), range(CLIPS), CLIPS, mesh)
    loss_fn = block_loss if model == "block" else LOSSES[STAGES[stage].loss]
    function = sharded_gradient(
        models, loss_fn, mesh, state_specs(state, mesh), CLIPS, grad_accumulation_steps
    )
    stop_signals = tiny_models.stop_signals(mesh).at[-1].set(SIGNAL)
    arguments = state.trainable, state.frozen, batch, jax.random.key(3), stop_signals
    program = jax.jit(function).lower(*arguments).compile()
    return program, *program(*arguments)


@functools.cache
def on_one_device(model: str) -> tuple[Any, Any]:
    return gradient(make_mesh(MeshConfig(), jax.devices()[:1]), model)[1:]


@functools.cache
def on_mesh(name: str, model: str) -> tuple[Any, Any, Any]:
    return gradient(make_mesh(MESHES[name]), model)


def assert_same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    """Gradients, relative to the largest number of them, and losses."""
    for name in ("loss", "timestep_bin_loss"):
        np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected[0]))
    for path, x in expected[0].items():
        error = np.abs(np.asarray(found[0][path]) - np.asarray(x)).max() / largest
        assert error < 1e-5, f"{path} differs by {error:.1e} of the largest"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", [slow("data"), slow("fsdp"), slow("frame"), "all"])
def test_gradient_on_a_mesh_equals_one_device(name: str, model: str):
    assert_same(on_mesh(name, model)[1:], on_one_device(model))


@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_pose_gradient_on_a_mesh_equals_one_device(name: str):
    assert_same(on_mesh(name, "pose")[1:], on_one_device("pose"))


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_autoencoder_and_image_gradient_on_fsdp_equals_one_device(stage: str):
    assert_same(on_mesh("fsdp", stage)[1:], on_one_device(stage))


def test_gradient_without_accumulation_has_no_scan():
    """On a CPU, XLA runs a convolution in a loop twenty times as slowly, even where it unrolls the loop."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    models = tiny_models.models("image", ExecutionConfig())
    state = block_state(mesh, optax.sgd(1.0))
    batch = tiny_models.batch("image", CLIPS, 1, SIDE)

    def loops(grad_accumulation_steps: int) -> int:
        gradient = sharded_gradient(
            models, block_loss, mesh, state_specs(state, mesh), CLIPS, grad_accumulation_steps
        )
        arguments = (state.trainable, state.frozen, batch, jax.random.key(0), tiny_models.stop_signals(mesh))
        return str(jax.make_jaxpr(gradient)(*arguments)).count("scan[")

    assert loops(1) == loops(2) - 1


@pytest.mark.parametrize("model", MODELS)
def test_data_parallel_gradient_communicates_trainable_gradients_alone(model: str):
    program, gradients, _ = on_mesh("data", model)
    moved = collectives(program.as_text())
    trainable = sum(x.nbytes for x in gradients.values())
    assert {item.kind for item in moved} == {"all-reduce"}
    assert trainable <= sum(item.bytes for item in moved) <= trainable + 100


@pytest.mark.parametrize("model", MODELS)
def test_frame_parallel_gradient_never_gathers_a_whole_clip(model: str):
    """No device gets more in a message than its own part of the widest activations."""
    program, _, _ = on_mesh("frame", model)
    moved = collectives(program.as_text())
    kinds = {item.kind for item in moved}
    assert kinds == {"all-reduce", "all-to-all", "collective-permute"}, "no all-gather, and each way is used"
    pixels = (SIDE // 8) ** 2
    width = WIDTH if model == "block" else max(tiny_models.UNET.block_out_channels)
    local_activations = CLIPS * FRAMES // 8 * pixels * width
    largest = max(math.prod(shape) for item in moved for shape in item.shapes)
    parameters = max(math.prod(x.shape) for x in on_one_device(model)[0].values())
    assert largest <= max(local_activations, parameters)
    # Nor does the program hold a whole clip of latents or wider anywhere else.
    size = rf"({SIDE // 8},{SIDE // 8}|{pixels})"
    whole = re.compile(rf"\[({CLIPS},{FRAMES}|{CLIPS * FRAMES}),{size},\d+\]")
    assert not whole.findall(program.as_text())


@pytest.mark.parametrize(("model", "least"), [("block", 30), slow("motion", 200)])
def test_fsdp_divides_large_parameters_gradients_and_optimizer_state(model: str, least: int):
    """Each device holds an eighth of the bytes of each large array, and all of each small one."""
    state = state_of(model, make_mesh(MESHES["fsdp"]), optax.adamw(1.0))
    optimizer_state = state.opt_state[0]
    _, gradients, _ = on_mesh("fsdp", model)
    large = 0
    for arrays in (state.trainable, state.frozen, gradients, optimizer_state.mu, optimizer_state.nu):
        for path, x in arrays.items():
            divides = x.size >= SMALLEST and any(length % 8 == 0 for length in x.shape)
            held = {shard.data.nbytes for shard in x.addressable_shards}
            assert held == {x.nbytes // 8 if divides else x.nbytes}, path
            assert len(x.addressable_shards) == 8, path
            large += divides
    assert large > least


@pytest.mark.parametrize("model", MODELS)
def test_accumulated_gradient_equals_gradient_of_whole_batch(model: str):
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    assert_same(gradient(mesh, model, grad_accumulation_steps=4)[1:], on_one_device(model))


@pytest.mark.parametrize("name", MESHES)
def test_stop_signal_of_one_device_reaches_all(name: str):
    assert on_mesh(name, "block")[2]["stop_signal"] == SIGNAL


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
    """The metadata server of a TPU VM whose slice has four hosts."""

    def do_GET(self):
        known = self.path.endswith("/attributes/worker-network-endpoints") and self.headers["Metadata-Flavor"]
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"a:8470:10.0.0.1,b:8470:10.0.0.2,c:8470:10.0.0.3,d:8470:10.0.0.4")

    def log_message(self, *_: object):
        pass


def test_initialize_on_a_tpu_pod_connects_without_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    connected = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: connected.append(args))
    monkeypatch.setattr(platforms, "DEVICES", tmp_path)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        initialize(MeshConfig())  # no chip, so the server is not asked
        assert connected == []
        (tmp_path / "vfio").mkdir()
        (tmp_path / "vfio" / "vfio").touch()  # machines without a TPU have this one too
        initialize(MeshConfig())
        assert connected == []
        (tmp_path / "vfio" / "0").touch()
        initialize(MeshConfig())
        assert connected == [()]
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")  # GKE, one host
        initialize(MeshConfig())
        assert connected == [()]
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
        initialize(MeshConfig())
        assert connected == [(), ()]
        server.shutdown()
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES")
    initialize(MeshConfig())  # chips, but no server answers
    assert connected == [(), ()]


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
