"""Counting against numbers that can be worked out by hand, and against the compiler where it has no loops."""

import jax
import jax.numpy as jnp
import pytest

from fyp_jax.flops import count_products, total_flops

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

    assert total_flops(count_products(conv, X, w)) == 2 * 2 * (8 // stride) ** 2 * 6 * 9 * 4
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
