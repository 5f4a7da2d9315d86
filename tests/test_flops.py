"""Model FLOPs against numbers worked out by hand, against brute force, and against JAX's own gradients."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fyp_jax.tpu.flops import count_products, gradient_flops, total_flops, valid_taps

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def test_flops_of_a_matrix_product_are_2_per_multiply_add():
    a, b = jax.ShapeDtypeStruct((5, 3, 7), jnp.float32), jax.ShapeDtypeStruct((7, 11), jnp.float32)
    assert total_flops(count_products(lambda a, b: a @ b, a, b)) == 2 * 5 * 3 * 7 * 11


@pytest.mark.parametrize("stride", [1, 2])
def test_flops_of_a_convolution_leave_out_padding(stride: int):
    w = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(1, 1)] * 2, dimension_numbers=dims)

    taps = {1: 3 * 8 - 2, 2: 3 * 4 - 1}[stride]  # along one axis, without those in the padding
    assert total_flops(count_products(conv, X, w)) == 2 * 2 * taps**2 * 6 * 4
    (product,) = count_products(conv, X, w)
    assert product.strides == (stride, stride)


def test_the_body_of_a_scan_counts_once_per_iteration():
    a = jax.ShapeDtypeStruct((3, 3), jnp.float32)

    @jax.jit
    def loop(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jax.lax.map(lambda row: a @ row, c), None), a, length=10)[0]

    assert total_flops(count_products(loop, a)) == 10 * 3 * 2 * 3 * 3


def test_a_while_loop_raises_value_error():
    with pytest.raises(ValueError, match="while"):
        count_products(
            lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), jnp.ones((2, 2))
        )


def test_the_cheapest_branch_of_a_cond_counts():
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def choose(a: jax.Array) -> jax.Array:
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a @ a @ a, a)

    assert total_flops(count_products(choose, a)) == 2 * 4**3


def brute_force_taps(
    input_size: int,
    kernel_size: int,
    output_size: int,
    *,
    stride: int,
    pad_low: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """All (output, tap) pairs of a convolution, counted if the tap meets an element of the dilated input."""
    elements = {pad_low + lhs_dilation * j for j in range(input_size)}
    return sum(
        stride * i + rhs_dilation * k in elements for i in range(output_size) for k in range(kernel_size)
    )


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [-1, 0, 2])
def test_valid_taps_meet_an_input_element(dilation: int, stride: int, pad: int):
    options = {"stride": stride, "pad_low": pad, "lhs_dilation": dilation, "rhs_dilation": 1}
    assert valid_taps(7, 4, 5, **options) == brute_force_taps(7, 4, 5, **options)


@given(
    sizes=st.tuples(*[st.integers(1, 12)] * 3),
    stride=st.integers(1, 4),
    pad_low=st.integers(-6, 8),
    lhs_dilation=st.integers(1, 4),
    rhs_dilation=st.integers(1, 4),
)
def test_valid_taps_equal_a_brute_force_count(sizes: tuple[int, int, int], **options: int):
    assert valid_taps(*sizes, **options) == brute_force_taps(*sizes, **options)


def layers(trainable: dict[str, jax.Array], frozen: jax.Array, x: jax.Array) -> jax.Array:
    """A loss: a frozen convolution, a trainable one, and trainable products in a scan."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, frozen, (1, 1), [(1, 1)] * 2, dimension_numbers=dims)
    x = jax.lax.conv_general_dilated(x, trainable["k"], (2, 2), [(1, 1)] * 2, dimension_numbers=dims)

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ trainable["w"]) @ trainable["w"].T, None

    return jax.lax.scan(step, x, length=3)[0].sum()


def test_gradient_flops_add_a_product_for_each_dependent_operand():
    a, b = jax.ShapeDtypeStruct((5, 3), jnp.float32), jax.ShapeDtypeStruct((3, 7), jnp.float32)
    one = 2 * 5 * 3 * 7
    assert gradient_flops(lambda b, a: (a @ b).sum(), b, a) == 2 * one
    assert gradient_flops(lambda b, a: (a @ b @ b.T @ b).sum(), b, a) == (2 + 3 + 3) * one


@pytest.mark.parametrize("remat", [False, True])
def test_gradient_flops_are_those_of_jax_grad_without_rematerialisation(remat: bool):
    trainable = {
        "k": jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32),
        "w": jax.ShapeDtypeStruct((4, 6), jnp.float32),
    }
    frozen = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
    loss = jax.checkpoint(layers) if remat else layers
    counted = gradient_flops(loss, trainable, frozen, X)
    assert counted == total_flops(count_products(jax.value_and_grad(layers), trainable, frozen, X))
    assert (counted < total_flops(count_products(jax.value_and_grad(loss), trainable, frozen, X))) == remat
