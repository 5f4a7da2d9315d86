"""Counting against numbers that can be worked out by hand, and against the compiler where it has no loops."""

import jax
import jax.numpy as jnp
import pytest

from fyp_jax.tpu.flops import count_products, gradient_flops, total_flops, valid_taps

X = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)


def test_matrix_product():
    a, b = jax.ShapeDtypeStruct((5, 3, 7), jnp.float32), jax.ShapeDtypeStruct((7, 11), jnp.float32)
    assert total_flops(count_products(lambda a, b: a @ b, a, b)) == 2 * 5 * 3 * 7 * 11


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution(stride: int):
    w = jax.ShapeDtypeStruct((3, 3, 4, 6), jnp.float32)

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), [(1, 1)] * 2, dimension_numbers=dims)

    valid_taps = {1: 3 * 8 - 2, 2: 3 * 4 - 1}[stride]  # along an axis, without those with the padding
    assert total_flops(count_products(conv, X, w)) == 2 * 2 * valid_taps**2 * 6 * 4
    (product,) = count_products(conv, X, w)
    assert product.strides == (stride, stride)


def test_a_loop_counts_as_often_as_it_runs():
    a = jax.ShapeDtypeStruct((3, 3), jnp.float32)

    @jax.jit
    def loop(a: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jax.lax.map(lambda row: a @ row, c), None), a, length=10)[0]

    assert total_flops(count_products(loop, a)) == 10 * 3 * 2 * 3 * 3


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="while"):
        count_products(
            lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), jnp.ones((2, 2))
        )


def test_of_a_choice_the_cheaper_one_counts():
    a = jax.ShapeDtypeStruct((4, 4), jnp.float32)

    def choose(a: jax.Array) -> jax.Array:
        return jax.lax.cond(a[0, 0] > 0, lambda a: a @ a, lambda a: a @ a @ a, a)

    assert total_flops(count_products(choose, a)) == 2 * 4**3


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [-1, 0, 2])
def test_taps_are_those_that_meet_an_input(dilation: int, stride: int, pad: int):
    left, right, out = 7, 4, 5
    inputs = {pad + dilation * i for i in range(left)}
    found = sum(stride * i + tap in inputs for i in range(out) for tap in range(right))
    assert (
        valid_taps(left, right, out, stride=stride, pad=pad, left_dilation=dilation, right_dilation=1)
        == found
    )


def layers(learned: dict[str, jax.Array], frozen: jax.Array, x: jax.Array) -> jax.Array:
    """Convolution, frozen product, learned product in a loop, kept or computed again."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, frozen, (1, 1), [(1, 1)] * 2, dimension_numbers=dims)
    x = jax.lax.conv_general_dilated(x, learned["k"], (2, 2), [(1, 1)] * 2, dimension_numbers=dims)

    def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.tanh(x @ learned["w"]) @ learned["w"].T, None

    return jax.lax.scan(step, x, length=3)[0].sum()


def test_a_gradient_needs_a_product_for_each_operand_that_learns():
    a, b = jax.ShapeDtypeStruct((5, 3), jnp.float32), jax.ShapeDtypeStruct((3, 7), jnp.float32)
    one = 2 * 5 * 3 * 7
    assert gradient_flops(lambda b, a: (a @ b).sum(), b, a) == 2 * one
    assert gradient_flops(lambda b, a: (a @ b @ b.T @ b).sum(), b, a) == (2 + 3 + 3) * one


@pytest.mark.parametrize("again", [False, True])
def test_a_gradient_is_what_jax_makes_of_it_whatever_is_computed_again(again: bool):
    learned = {
        "k": jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32),
        "w": jax.ShapeDtypeStruct((4, 6), jnp.float32),
    }
    frozen = jax.ShapeDtypeStruct((3, 3, 4, 4), jnp.float32)
    loss = jax.checkpoint(layers) if again else layers
    counted = gradient_flops(loss, learned, frozen, X)
    assert counted == total_flops(count_products(jax.value_and_grad(layers), learned, frozen, X))
    assert (counted < total_flops(count_products(jax.value_and_grad(loss), learned, frozen, X))) == again
