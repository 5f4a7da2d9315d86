"""Statistics of HLO: texts written by hand, and a program of this machine's compiler with known numbers."""

import jax
import jax.numpy as jnp
import pytest

from fyp_jax.tpu.hardware_limits import kernel_padding, padded_product
from fyp_jax.tpu.hlo import parse_hlo
from fyp_jax.tpu.hlo_stats import HloStats, Kernel, hlo_stats

LOOP = """HloModule jit_f, is_scheduled=true

%multiply (p.0: bf16[8,16], p.1: bf16[16,4]) -> bf16[8,4] {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,4]{1,0:T(8,128)(2,1)} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (b: (s32[], bf16[8,16], bf16[16,4])) -> (s32[], bf16[8,16], bf16[16,4]) {
  %b = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[16,4]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %w = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%b), index=2
  %f = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %w), kind=kOutput, calls=%multiply
  %r = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-reduce(%f), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[]{:T(128)}, bf16[8,16], bf16[16,4]) tuple(%i, %x, %w)
}

%condition (k: (s32[], bf16[8,16], bf16[16,4])) -> pred[] {
  %k = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %j = s32[]{:T(128)} get-tuple-element(%k), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %n), direction=LT
}

ENTRY %main (a: bf16[8,16], w: bf16[16,4]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  %s = (bf16[16,4]{1,0:T(8,128)(2,1)S(1)}, bf16[16,4]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w.1)
  %d = bf16[16,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  %zero = s32[]{:T(128)} constant(0)
  %in = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) tuple(%zero, %a, %d)
  %loop = (s32[]{:T(128)}, bf16[8,16]{1,0}, bf16[16,4]{1,0}) while(%in), condition=%condition, body=%body
  ROOT %out = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""
TILE = 8 * 128 * 2  # bytes of 8 rows of bfloat16, padded to 128 columns


def counts(stats: HloStats) -> dict[tuple[str, int], int]:
    """(kind, bytes) of each collective -> how often it runs."""
    return {(item.kind, item.bytes): times for item, times in stats.collectives.items()}


def test_the_body_of_a_loop_counts_once_per_iteration():
    found = hlo_stats(LOOP)
    assert found.flops == 5 * 2 * 8 * 4 * 16
    assert counts(found) == {("all-reduce", 64): 5}
    # Each iteration reads one tile; %w and the results are in VMEM, where the 16 rows of %w are copied first.
    assert found.hbm_bytes == 5 * TILE + 2 * TILE
    assert found.unknown_loops == 0


def test_the_trip_count_that_xla_notes_takes_precedence():
    known = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert hlo_stats(known).flops == 7 * 2 * 8 * 4 * 16


def test_a_loop_of_unknown_trip_count_counts_once_and_is_reported():
    unknown = LOOP.replace(
        "%n = s32[]{:T(128)} constant(5)", "%n = s32[]{:T(128)} get-tuple-element(%k), index=0"
    )
    found = hlo_stats(unknown)
    assert (found.flops, found.unknown_loops) == (2 * 8 * 4 * 16, 1)


def test_text_that_is_not_hlo_raises_value_error():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_hlo("nothing")


CONVOLUTION = """HloModule m

ENTRY %main (x: f32[2,8,8,4], w: f32[3,3,4,6]) -> f32[2,8,8,6] {{
  %x = f32[2,8,8,4]{{3,2,1,0}} parameter(0)
  %w = f32[{kernel}]{{3,2,1,0}} parameter(1)
  ROOT %c = f32[{out}]{{3,2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels=b01f_01io->b01f
}}
"""


@pytest.mark.parametrize(
    ("window", "kernel", "out", "taps"),
    [
        ("size=3x3 pad=1_1x1_1", "3,3,4,6", "2,8,8,6", 22 * 22),  # 3 x 8, 2 of them in the padding
        ("size=3x3 stride=2x2 pad=0_1x0_1", "3,3,4,6", "2,4,4,6", 11 * 11),
        ("size=3x3 pad=1_2x1_2 lhs_dilate=2x2", "3,3,4,6", "2,16,16,6", 23 * 23),
        ("size=1x1", "1,1,4,6", "2,8,8,6", 64),
    ],
)
def test_flops_of_a_convolution_leave_out_padding_and_dilation(window: str, kernel: str, out: str, taps: int):
    assert hlo_stats(CONVOLUTION.format(window=window, kernel=kernel, out=out)).flops == 2 * 2 * 4 * 6 * taps


def test_flops_of_a_batched_product_in_the_form_of_a_convolution():
    """The TPU compiler writes 8 products so: for each output, only one tap meets an input element."""
    text = """HloModule m

ENTRY %main (q: f32[8,64,128], k: f32[8,64,128]) -> f32[8,64,64] {
  %q = f32[8,64,128]{2,1,0} parameter(0)
  %k = f32[8,64,128]{2,1,0} parameter(1)
  ROOT %c = f32[8,64,64] convolution(%q, %k), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""
    assert hlo_stats(text).flops == 2 * 8 * 64 * 64 * 128


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "mxu", "padded"),
    [
        (4096, 320, 320, 128, 384 / 320),  # a projection: tokens stay, and its columns stream
        (136, 320, 320, 128, 384 / 320 * 384 / 320),
        (4096, 40, 4096, 128, 128 / 40),  # scores of a head of 40
        (4096, 4096, 40, 128, 1.0),  # what it reads: 40 rows stream
        (4096, 4096, 41, 256, 48 / 41),
        (128, 128, 8, 128, 1.0),
        (1, 1, 1, 128, 128 * 128 * 8),
    ],
)
def test_padding_of_a_product_is_that_of_the_operand_that_stays(
    rows: int, depth: int, columns: int, mxu: int, padded: float
):
    assert padded_product(rows, depth, columns, mxu) == pytest.approx(padded)
    assert padded_product(columns, depth, rows, mxu) == pytest.approx(padded)


def test_padded_flops_of_a_dot_a_convolution_and_products_in_the_form_of_one():
    dot = """HloModule m

ENTRY %main (q: f32[8,64,40], k: f32[8,64,40]) -> f32[8,64,64] {
  %q = f32[8,64,40]{2,1,0} parameter(0)
  %k = f32[8,64,40]{2,1,0} parameter(1)
  ROOT %d = f32[8,64,64]{2,1,0} KIND
}
"""
    kinds = (
        "dot(%q, %k), lhs_batch_dims={0}, lhs_contracting_dims={2}, "
        "rhs_batch_dims={0}, rhs_contracting_dims={2}",
        "convolution(%q, %k), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf",
    )
    for kind in kinds:
        stats = hlo_stats(dot.replace("KIND", kind))
        assert stats.padded_flops == {size: pytest.approx(2 * 8 * 64 * size * size) for size in (128, 256)}, (
            kind
        )
    window = "size=3x3 pad=1_1x1_1"
    stats = hlo_stats(CONVOLUTION.format(window=window, kernel="3,3,4,6", out="2,8,8,6"))
    # 9 taps of 4 channels are one contraction; of the 6 outputs, 8 rows stream past 128 positions.
    assert stats.padded_flops[128] == pytest.approx(stats.flops * 128 / 36 * 8 / 6)


def test_attention_kernels_are_padded_by_the_width_in_their_name():
    assert kernel_padding("attention_forward_8x128", 128) == pytest.approx((1 + 136 / 128) / 2)
    assert kernel_padding("attention_forward_8x40", 128) == pytest.approx((128 / 40 + 48 / 40) / 2)
    assert kernel_padding("transpose(jvp(attention_backward_8x40))", 128) == pytest.approx((2 * 3.2 + 3) / 5)
    assert kernel_padding("flash", 128) == 1


def test_transcendentals_of_a_fusion_count_once_for_each_number():
    text = """HloModule m

%fused (p: f32[4,100]) -> f32[4,100] {
  %p = f32[4,100]{1,0} parameter(0)
  %e = f32[4,100]{1,0} exponential(%p)
  ROOT %r = f32[4,100]{1,0} rsqrt(%e)
}

ENTRY %main (x: f32[4,100]) -> f32[4,100] {
  %x = f32[4,100]{1,0} parameter(0)
  ROOT %f = f32[4,100]{1,0} fusion(%x), kind=kLoop, calls=%fused
}
"""
    assert hlo_stats(text).transcendentals == 2 * 400


def test_a_kernel_counts_the_flops_that_its_cost_estimate_declares():
    call = """HloModule m

ENTRY %main (q: bf16[1,2,64,128]) -> bf16[1,2,64,128] {
  %q = bf16[1,2,64,128]{3,2,1,0} parameter(0)
  ROOT %k = bf16[1,2,64,128]{3,2,1,0} custom-call(%q, %q), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/flash"}, backend_config={"custom_call_config":{"body":"TUz)v{U","cost_estimate":\
{"flops":"1000","transcendentals":"70","bytes_accessed":"5"}}}
}
"""
    shape = (1, 2, 64, 128)
    assert hlo_stats(call).kernels == {Kernel("flash", 1000, (shape, shape), (shape,), 70, 5): 1}
    named = call.replace("jit(f)/flash", "jit(f)/pallas_call").replace("%k =", "%attention_forward_8x40.2 =")
    assert [kernel.name for kernel in hlo_stats(named).kernels] == ["attention_forward_8x40"]
    assert hlo_stats(call).flops == 1000
    assert hlo_stats(call).transcendentals == 70
    array = 2 * 2 * 64 * 128
    assert hlo_stats(call).hbm_bytes == 3 * array  # less than the operands is declared
    declared = hlo_stats(call.replace('"bytes_accessed":"5"', f'"bytes_accessed":"{10 * array}"'))
    assert declared.hbm_bytes == 10 * array
    assert hlo_stats(call.replace("cost_estimate", "other")).kernels == {
        Kernel("flash", None, (shape, shape), (shape,)): 1
    }


def test_a_fusion_that_slices_an_array_reads_only_the_slice():
    text = """HloModule m

%take (p: f32[100,8,128], i: s32[]) -> f32[1,8,128] {
  %p = f32[100,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %b = f32[100,8,128]{2,1,0} bitcast(%p)
  ROOT %s = f32[1,8,128]{2,1,0} dynamic-slice(%b, %i, %z, %z), dynamic_slice_sizes={1,8,128}
}

ENTRY %main (p: f32[100,8,128], i: s32[]) -> f32[1,8,128] {
  %p.1 = f32[100,8,128]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %f = f32[1,8,128]{2,1,0} fusion(%p.1, %i.1), kind=kLoop, calls=%take
}
"""
    assert hlo_stats(text).hbm_bytes == 2 * 4 * 8 * 128


def test_a_fusion_that_updates_a_slice_in_place_writes_only_the_slice():
    text = """HloModule m

%put (p: f32[100,8,128], u: f32[1,8,128], i: s32[]) -> f32[100,8,128] {
  %p = f32[100,8,128]{2,1,0} parameter(0)
  %u = f32[1,8,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  %s = f32[100,8,128]{2,1,0} dynamic-update-slice(%p, %u, %i, %z, %z)
  ROOT %b = f32[100,8,128]{2,1,0} bitcast(%s)
}

ENTRY %main (p: f32[100,8,128], u: f32[1,8,128], i: s32[]) -> f32[100,8,128] {
  %p.1 = f32[100,8,128]{2,1,0} parameter(0)
  %u.1 = f32[1,8,128]{2,1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %f = f32[100,8,128]{2,1,0} fusion(%p.1, %u.1, %i.1), kind=kLoop, calls=%put
}
"""
    assert hlo_stats(text).hbm_bytes == 2 * 4 * 8 * 128


def test_an_asynchronous_collective_in_pieces_counts_once():
    text = """HloModule m

%start (p: f32[8,128]) -> (f32[8,128], f32[32,128], u32[]) {
  %p = f32[8,128]{1,0} parameter(0)
  %g = f32[32,128]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  ROOT %s = (f32[8,128]{1,0}, f32[32,128]{1,0}, u32[]{:S(2)}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}

%beside (q: f32[8,128], w: f32[32,128], f: u32[], x: f32[8,16], y: f32[16,128]) -> (f32[8,128]) {
  %q = f32[8,128]{1,0} parameter(0)
  %w = f32[32,128]{1,0} parameter(1)
  %f = u32[]{:S(2)} parameter(2)
  %x = f32[8,16]{1,0} parameter(3)
  %y = f32[16,128]{1,0} parameter(4)
  %g.1 = f32[32,128]{1,0} all-gather(%q), channel_id=1, dimensions={0}
  %c = f32[8,128]{1,0} convolution(%x, %y), dim_labels=bf_io->bf
  ROOT %t = (f32[8,128]{1,0}, f32[8,128]{1,0}, f32[32,128]{1,0}, f32[32,128]{1,0}) tuple(%c, %q, %w, %g.1)
}

%end (r: f32[8,128], v: f32[32,128]) -> f32[32,128] {
  %r = f32[8,128]{1,0} parameter(0)
  %v = f32[32,128]{1,0} parameter(1)
  %g.2 = f32[32,128]{1,0} all-gather(%r), channel_id=1, dimensions={0}
  ROOT %e = f32[32,128]{1,0} custom-call(%r, %v, %g.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: f32[8,128], b: f32[8,16], c: f32[16,128]) -> f32[32,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %c.1 = f32[16,128]{1,0} parameter(2)
  %m = (f32[8,128]{1,0}, f32[32,128]{1,0}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %m.0 = f32[8,128]{1,0} get-tuple-element(%m), index=0
  %m.1 = f32[32,128]{1,0} get-tuple-element(%m), index=1
  %m.2 = u32[]{:S(2)} get-tuple-element(%m), index=2
  %n = (f32[8,128]{1,0}, f32[8,128]{1,0}, f32[32,128]{1,0}, f32[32,128]{1,0}) \
fusion(%m.0, %m.1, %m.2, %b, %c.1), kind=kOutput, calls=%beside
  %n.1 = f32[8,128]{1,0} get-tuple-element(%n), index=1
  %n.3 = f32[32,128]{1,0} get-tuple-element(%n), index=3
  ROOT %o = f32[32,128]{1,0} fusion(%n.1, %n.3), kind=kCustom, calls=%end
}
"""
    found = hlo_stats(text)
    assert counts(found) == {("all-gather", 4 * 32 * 128): 1}
    collective, product = 8 * 128 + 32 * 128, 8 * 16 + 16 * 128 + 8 * 128
    assert found.hbm_bytes == 4 * (collective + product)


def test_stats_of_a_compiled_scan_count_all_its_products():
    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    x, w = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((11, 32, 32), jnp.float32)
    found = hlo_stats(jax.jit(loop).lower(x, w).compile().as_text() or "")
    assert found.flops == 11 * 2 * 16 * 32 * 32
    assert found.unknown_loops == 0
