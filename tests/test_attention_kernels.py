"""The attention implementations: parity with plain attention in float64, and the choice among them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P
from jax.sharding import SingleDeviceSharding

from cli_utils import SCRIPTS
from fyp_jax.errors import UserError
from fyp_jax.models.attention_functions import blockwise_attention, plain_attention
from fyp_jax.models.attention_kernels import gpu, tpu, tpu_spec
from fyp_jax.models.attention_kernels.choice import choose_attention
from fyp_jax.models.attention_kernels.tpu import PallasTpuAttention
from fyp_jax.models.attention_kernels.tpu_blocks import (
    CHIP_BLOCKS,
    LANES,
    Blocks,
    ChipBlocks,
    largest_divisor,
)
from fyp_jax.models.attention_kernels.tpu_few_tokens import few_token_attention, tpu_attention

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

KERNEL = PallasTpuAttention("TPU v5", min_scores=0, interpret=True)
SMALL = Blocks(LANES, LANES, LANES, 2)
SMALL_BLOCKS = PallasTpuAttention("TPU v5", ChipBlocks(SMALL, SMALL, 56), min_scores=0, interpret=True)
"""Blocks so small that an attention over 256 tokens has several of queries and of keys."""

TOLERANCE = 5e-6
"""Of float32, relative to the largest number of each array."""


def qkv(
    frames: int, tokens: int, heads: int, dim: int, dtype: Any = jnp.float32, clips: int = 1
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Queries, and keys and values in two parts: one for all frames, and one of each frame."""
    keys = jax.random.split(jax.random.key(tokens * heads + dim + frames), 5)

    def draw(key: jax.Array, frames: int) -> jax.Array:
        return jax.random.normal(key, (clips, frames, tokens, heads, dim)).astype(dtype)

    q, k_own, v_own = (draw(key, frames) for key in keys[:3])
    return q, [draw(keys[3], 1), k_own], [draw(keys[4], 1), v_own]


def value_and_gradients(attention: Callable[..., jax.Array], arguments: Any) -> list[jax.Array]:
    """The attention, and gradients of all its arguments for an output gradient that is not constant."""
    out, vjp = jax.vjp(attention, *arguments)
    d_out = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype)
    return jax.tree.leaves((out, vjp(d_out)))


def in_float64(arguments: Any) -> list[jax.Array]:
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), arguments)
        return value_and_gradients(plain_attention, wide)


def error(found: list[jax.Array], exact: list[jax.Array]) -> float:
    """The largest error of all arrays, each relative to its largest number."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, exact, strict=True)
    ]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def rms_error(found: list[jax.Array], exact: list[jax.Array]) -> float:
    """The largest root mean square error of all arrays, each relative to its numbers'."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(found, exact, strict=True)
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def kernel_error(attention: Callable[..., jax.Array], arguments: Any) -> float:
    found = jax.jit(lambda arguments: value_and_gradients(attention, arguments))(arguments)
    return error(found, in_float64(arguments))


def test_kernel_and_gradients_equal_plain_attention_in_float64():
    assert kernel_error(KERNEL, qkv(2, 100, 1, 40)) < TOLERANCE


FRAMES, TOKENS, HEADS, DIMS = (1, 2, 5, 8), (64, 100, 256, 1024), (1, 8, 20, 8), (40, 64, 80, 160)
LATIN_SQUARES = [
    (FRAMES[i], TOKENS[j], HEADS[i ^ j], DIMS[i ^ (2 * j % 4) ^ (3 * (j >> 1))])
    for i in range(4)
    for j in range(4)
]
"""Sizes in which each value of each list meets each value of every other list."""


def test_sizes_of_the_grid_have_every_pair_of_values():
    lists = [set(values) for values in zip(*LATIN_SQUARES, strict=True)]
    for a in range(4):
        for b in range(a):
            pairs = {(size[a], size[b]) for size in LATIN_SQUARES}
            assert len(pairs) == len(lists[a]) * len(lists[b]), (a, b)


LARGEST = {(5, 1024, 8, 160), (2, 1024, 20, 40)}
"""Sizes that take most of a minute each."""


@pytest.mark.parametrize(
    "size",
    [pytest.param(size, marks=[pytest.mark.release] * (size in LARGEST)) for size in LATIN_SQUARES],
    ids=str,
)
def test_kernel_of_each_size_equals_plain_attention_in_float64(size: tuple[int, int, int, int]):
    assert kernel_error(KERNEL, qkv(*size)) < TOLERANCE


def test_kernel_in_several_blocks_with_padding_equals_plain_attention():
    # 200 tokens fill two blocks, the second in part; two clips share no key.
    assert kernel_error(SMALL_BLOCKS, qkv(2, 200, 1, 40, clips=2)) < TOLERANCE


def test_kernel_of_queries_in_rows_that_share_a_text_equals_plain_attention(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tpu, "MAX_ROW", LANES)
    q, (text, _), (values, _) = qkv(1, 256, 1, 40, clips=2)
    assert kernel_error(KERNEL, (q, [text[:, :, :77]], [values[:, :, :77]])) < TOLERANCE


@pytest.mark.parametrize("dim", [40, 80, 160])
def test_kernel_in_bfloat16_is_no_further_off_than_blocks(dim: int):
    arguments = qkv(2, 256, 2, dim, jnp.bfloat16)
    exact = in_float64(arguments)
    of_blocks = rms_error(value_and_gradients(blockwise_attention, arguments), exact)
    of_kernel = rms_error(jax.jit(lambda x: value_and_gradients(KERNEL, x))(arguments), exact)
    assert of_kernel <= 1.01 * of_blocks, (of_kernel, of_blocks)


def test_kernel_under_remat_has_the_same_gradients():
    arguments = qkv(2, 64, 1, 40)
    assert kernel_error(jax.checkpoint(KERNEL), arguments) < TOLERANCE  # pyright: ignore


@pytest.mark.parametrize(("frames", "tokens"), [(1, 8), (3, 5)])
def test_few_token_attention_and_gradients_equal_plain_attention_in_float64(frames: int, tokens: int):
    assert kernel_error(few_token_attention, qkv(frames, tokens, 2, 40, clips=3)) < TOLERANCE


def test_few_token_attention_in_bfloat16_is_no_further_off_than_blocks():
    arguments = qkv(1, 8, 2, 40, jnp.bfloat16, clips=16)
    exact = in_float64(arguments)
    of_blocks, ours = (
        rms_error(value_and_gradients(function, arguments), exact)
        for function in (blockwise_attention, few_token_attention)
    )
    assert ours <= of_blocks


def test_parts_of_different_sizes_and_few_scores_go_to_blocks(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(tpu, "attention_forward", refuse)
    q, keys, values = qkv(2, 64, 1, 40)
    different = (q, [keys[0][:, :, :32], keys[1]], [values[0][:, :, :32], values[1]])
    for attention, arguments in ((KERNEL, different), (PallasTpuAttention("TPU v5"), (q, keys, values))):
        np.testing.assert_array_equal(attention(*arguments), blockwise_attention(*arguments))
    with pytest.raises(AssertionError, match="was called"):
        KERNEL(q, keys, values)


def test_declared_cost_is_that_of_the_loops():
    q, keys, values = qkv(4, 256, 2, 40)
    jaxpr = jax.make_jaxpr(lambda *arguments: value_and_gradients(SMALL_BLOCKS, arguments))(q, keys, values)
    calls = list(pallas_calls(jaxpr.jaxpr))
    assert len(calls) == 2
    for call in calls:
        flops, exponentials = loop_costs(call.params["jaxpr"])
        steps = int(np.prod(call.params["grid_mapping"].grid))
        declared = call.params["cost_estimate"]
        # The row of ones that adds up the weights is in the loops and not in the declared cost.
        assert declared.flops <= steps * flops <= 1.4 * declared.flops
        assert declared.transcendentals <= steps * exponentials <= 1.02 * declared.transcendentals


def test_bytes_of_a_block_count_each_change_of_its_index():
    array = jax.ShapeDtypeStruct((4, 256, 64), jnp.float32)
    block = 128 * 64 * 4
    for index_map, changes in (
        (lambda b, i, j: (b, i, 0), 8),  # stays over j, the last axis
        (lambda b, i, j: (b, j, 0), 24),
        (lambda b, i, j: (0, 0, 0), 1),
        (lambda b, i, j: (tpu_spec.part_row(b, 4), 0, 0), 1),
    ):
        spec = pl.BlockSpec((None, 128, 64), index_map)
        assert tpu_spec.block_bytes((4, 2, 3), [spec], [array]) == changes * block


@pytest.mark.parametrize("kind", CHIP_BLOCKS)
@pytest.mark.parametrize("tokens", [128, 640, 4608, 16384])
def test_fitted_blocks_divide_the_attention(kind: str, tokens: int):
    for blocks in (CHIP_BLOCKS[kind].forward, CHIP_BLOCKS[kind].backward):
        fitted = blocks.fitted(tokens, tokens, 8, 1280)
        assert tokens % fitted.queries == tokens % fitted.keys == fitted.keys % fitted.keys_at_once == 0
        assert all(size % LANES == 0 for size in fitted[:3])
        assert fitted.queries <= blocks.queries
        assert fitted.keys <= blocks.keys


def test_largest_divisor_is_what_a_search_finds():
    for tiles in range(1, 40):
        for most in range(1, 12):
            expected = max(i for i in range(1, most + 1) if tiles % i == 0)
            assert largest_divisor(tiles * LANES, most * LANES + 5) == expected * LANES


@pytest.mark.parametrize(
    ("dtype", "platform", "kind", "chosen"),
    [
        ("float32", "cpu", "cpu", blockwise_attention),
        ("bfloat16", "cpu", "cpu", blockwise_attention),
        ("bfloat16", "tpu", "TPU v5", PallasTpuAttention("TPU v5")),
        ("bfloat16", "tpu", "TPU7x", PallasTpuAttention("TPU7x")),
        ("float32", "tpu", "TPU v5", tpu_attention),
        ("bfloat16", "tpu", "TPU v4", tpu_attention),
        ("bfloat16", "tpu", "TPU v6 lite", tpu_attention),
        ("bfloat16", "tpu", "TPU v99", tpu_attention),
        ("bfloat16", "gpu", "NVIDIA H100", gpu.cudnn_attention),
        ("float32", "gpu", "NVIDIA H100", gpu.xla_attention),
    ],
)
def test_auto_chooses_by_platform_and_dtype_and_says_so(
    dtype: str, platform: str, kind: str, chosen: Any, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.INFO):
        assert choose_attention("auto", dtype, platform, kind) == chosen
    (line,) = caplog.messages
    assert line.startswith("attention_implementation=auto: ")
    assert kind in line


@pytest.mark.parametrize(
    ("name", "dtype", "platform"),
    [("pallas_tpu", "bfloat16", "cpu"), ("cudnn", "bfloat16", "cpu"), ("cudnn", "float32", "gpu")],
)
def test_implementation_that_the_platform_lacks_is_refused(name: str, dtype: str, platform: str):
    with pytest.raises(
        UserError, match=f"attention_implementation={name} needs .*set attention_implementation=auto"
    ):
        choose_attention(name, dtype, platform, "a device")


@pytest.mark.parametrize("frames_at_once", [1, 2, 3])
def test_xla_attention_equals_plain_attention_however_many_frames_at_once(
    frames_at_once: int, monkeypatch: pytest.MonkeyPatch
):
    arguments = qkv(3, 64, 2, 40)
    monkeypatch.setattr(gpu, "MAX_XLA_SCORES", frames_at_once * 2 * 64 * 128)
    attention = choose_attention("xla", "float32", "cpu", "cpu")
    np.testing.assert_allclose(attention(*arguments), plain_attention(*arguments), atol=2e-6)
    found, expected = (
        jax.grad(lambda *x, f=f: jnp.square(f(*x)).sum(), (0, 1, 2))(*arguments)
        for f in (attention, plain_attention)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    loops = str(jax.make_jaxpr(lambda *x: attention(*x))(*arguments)).count("scan[")
    assert loops == (frames_at_once < 3)


@pytest.mark.parametrize(
    ("tokens", "dim", "calls"),
    [(128, 64, 1), (128, 160, 0), (128, 36, 0), (8, 64, 0), (129, 64, 0)],  # an odd number has no gradient
    ids=str,
)
def test_cudnn_takes_the_shapes_it_can(tokens: int, dim: int, calls: int, monkeypatch: pytest.MonkeyPatch):
    implementations = []

    def dot_product_attention(q: jax.Array, *_: jax.Array, implementation: str | None = None) -> jax.Array:
        implementations.append(implementation)
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", dot_product_attention)
    choose_attention("cudnn", "bfloat16", "gpu", "NVIDIA H100")(*qkv(2, tokens, 1, dim, jnp.bfloat16))
    assert implementations.count("cudnn") == calls


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v5e:2x2", "v6e:2x2", "tpu7x:2x2x1"])
def test_kernel_and_gradient_compile_for_a_chip_in_a_checking_shard_map(topology: str):
    from fyp_jax.tpu.hlo_stats import hlo_stats
    from fyp_jax.tpu.topologies import topology_devices

    _, devices = topology_devices(topology)
    mesh = jax.make_mesh((len(devices),), ("frame",), devices=devices)
    attention = choose_attention("pallas_tpu", "bfloat16", devices[0].platform, devices[0].device_kind)

    def on_mesh(q: jax.Array, first: jax.Array, own: jax.Array) -> Any:
        loss = lambda *x: jnp.square(attention(x[0], x[1:], x[1:]).astype(jnp.float32)).sum()  # noqa: E731
        return jax.grad(loss, (0, 2))(q, first, own)

    by_frame = P(None, "frame")
    function = jax.shard_map(
        on_mesh, mesh=mesh, in_specs=(by_frame, P(), by_frame), out_specs=by_frame, check_vma=True
    )
    frames = [len(devices), 1, len(devices)]
    shapes = [
        jax.ShapeDtypeStruct(
            (1, n, 256, 3, 40), jnp.bfloat16, sharding=jax.NamedSharding(mesh, P() if n == 1 else by_frame)
        )
        for n in frames
    ]
    stats = hlo_stats(jax.jit(function).lower(*shapes).compile().as_text() or "")
    flops = 4 * 256 * 512 * 3 * 40  # of one frame, forward; the gradient takes 2.5 times as many
    assert (
        sum(times * (kernel.flops or 0) for kernel, times in stats.kernels.items()) == flops + 10 * flops // 4
    )


SCHEDULE = """
     0   :  { %p1 = nop }
   0x1 LB: > { %v2 = vadd }
   0x2   : > { %v3 = vmul }
   0x3 LB: >> { %v4 = vmatmul }
   0x4   : >> { %p5 = scmp.ge.s32.totalorder %s6, 8  /* loop exit test */ }
   0x5   : >> { (!%p5) = sbr.rel target bundleno = 3 }
   0x6   : > { %p7 = scmp.ge.s32.totalorder %s8, 34  /* loop exit test */ }
   0x7   : > { (!%p7) = sbr.rel target bundleno = 1 }
   0x8   :  { %v9 = nop }
"""


def test_cycles_of_a_schedule_count_each_bundle_as_often_as_its_loops_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from benchmarks.kernel_cycles import count_cycles  # pyright: ignore

    assert count_cycles(SCHEDULE) == 2 + 34 * (4 + 8 * 3)
    with pytest.raises(ValueError, match="not a constant"):
        count_cycles(SCHEDULE.replace("%s8, 34", "%s8, %s9"))


def pallas_calls(jaxpr: Any) -> Any:
    """All pallas_call equations of a jaxpr, those inside of other equations too."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            yield eqn
        else:
            for inner in jaxprs_in_params(eqn.params):
                yield from pallas_calls(inner)


def loop_costs(jaxpr: Any) -> tuple[int, int]:
    """FLOPs of products and number of exponentials of a kernel's grid step, loops times their trips."""
    flops = exponentials = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            depth = int(np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted]))
            flops += 2 * eqn.outvars[0].aval.size * depth
        elif eqn.primitive.name == "exp2":
            exponentials += eqn.outvars[0].aval.size
        for inner in jaxprs_in_params(eqn.params):
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            inner_flops, inner_exponentials = loop_costs(inner)
            flops, exponentials = flops + times * inner_flops, exponentials + times * inner_exponentials
    return flops, exponentials


@pytest.mark.tpu_compile
def test_attention_along_time_moves_no_padding_on_v5p():
    from fyp_jax.tpu.hlo_stats import hlo_stats
    from fyp_jax.tpu.topologies import topology_devices

    device = topology_devices("v5p:2x2x1")[1][0]
    attention = choose_attention("auto", "bfloat16", device.platform, device.device_kind)
    x = jax.ShapeDtypeStruct((1024, 1, 8, 8, 40), jnp.bfloat16, sharding=SingleDeviceSharding(device))

    def value_and_gradient(q: jax.Array, k: jax.Array, v: jax.Array, d_out: jax.Array) -> Any:
        out, vjp = jax.vjp(lambda q, k, v: attention(q, [k], [v]), q, k, v)
        return out, vjp(d_out)

    text = jax.jit(value_and_gradient).lower(x, x, x, x).compile().as_text() or ""
    # The four arrays and their four results are all that has to move.
    assert hlo_stats(text).hbm_bytes < 1.5 * 8 * 2 * math.prod(x.shape)
