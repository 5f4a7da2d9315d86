"""Forms of a convolution, beside XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fyp_jax.models.convolutions import cpu_convolution, cpu_upsampled_convolution, xla_convolution
from fyp_jax.models.layer_forms import choose_layer_forms

LAYOUT = ("NHWC", "HWIO", "NHWC")
SIZES = {  # images, side, channels, features, window, stride; and whether it is one product
    "large kernel": ((1, 4, 64, 96, 3, 1), True),
    "large kernel, stride 2": ((2, 4, 64, 96, 3, 2), True),
    "odd side, stride 2": ((1, 5, 96, 64, 3, 2), True),
    "one pixel": ((2, 16, 8, 16, 1, 1), True),
    "small kernel": ((2, 16, 8, 16, 3, 1), False),
}


@pytest.mark.parametrize(("size", "is_product"), SIZES.values(), ids=SIZES)
def test_convolution_on_cpus_equals_xlas_with_its_gradients(size: tuple[int, ...], is_product: bool):
    images, side, channels, features, window, stride = size
    rng = np.random.default_rng(0)
    x = rng.standard_normal((images, side, side, channels))
    kernel = rng.standard_normal((window, window, channels, features)) / window / channels**0.5
    options = {"window_strides": (stride,) * 2, "padding": [(window // 2,) * 2] * 2}
    options |= {"dimension_numbers": LAYOUT}
    with jax.enable_x64(True):
        expected, take_back = jax.vjp(lambda *args: xla_convolution(*args, **options), x, kernel)
        found, take_back_ours = jax.vjp(lambda *args: cpu_convolution(*args, **options), x, kernel)
        gradient = rng.standard_normal(expected.shape)
        pairs = zip((found, *take_back_ours(gradient)), (expected, *take_back(gradient)), strict=True)
        for ours, theirs in pairs:
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
    program = str(jax.make_jaxpr(lambda *args: cpu_convolution(*args, **options))(x, kernel))
    assert ("conv_general_dilated" not in program) is is_product


@pytest.mark.parametrize(("side", "channels"), [(4, 8), (3, 8), (2, 96)], ids=["phases", "odd", "large"])
def test_upsampled_convolution_equals_xlas_with_its_gradients(side: int, channels: int):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, side, side + 1, channels))
    kernel = rng.standard_normal((3, 3, channels, channels + 2)) / 3 / channels**0.5
    arguments = (1, 1), [(1, 1), (1, 1)]

    def doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return xla_convolution(x, kernel, *arguments, dimension_numbers=LAYOUT)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return cpu_upsampled_convolution(x, kernel, *arguments, dimension_numbers=LAYOUT)

    with jax.enable_x64(True):
        expected, take_back = jax.vjp(doubled, jnp.asarray(x), jnp.asarray(kernel))
        found, take_back_ours = jax.vjp(ours, jnp.asarray(x), jnp.asarray(kernel))
        gradient = rng.standard_normal(expected.shape)
        pairs = zip((found, *take_back_ours(gradient)), (expected, *take_back(gradient)), strict=True)
        for mine, theirs in pairs:
            assert mine.shape == theirs.shape
            np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_padding_may_be_named():
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape)) for shape in ((1, 5, 5, 64), (3, 3, 64, 96)))
    found, expected = (
        form(x, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
        for form in (cpu_convolution, xla_convolution)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("options", [{"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 2)}])
def test_dilated_convolution_on_cpus_is_xlas(options: dict[str, tuple[int, int]]):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(shape)) for shape in ((1, 6, 6, 64), (3, 3, 64, 64)))
    common = ((1, 1), [(2, 2), (2, 2)])
    found = cpu_convolution(x, kernel, *common, dimension_numbers=LAYOUT, **options)
    expected = xla_convolution(x, kernel, *common, dimension_numbers=LAYOUT, **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_have_xlas_convolution(platform: str):
    forms = choose_layer_forms("blockwise", "float32", platform, "a chip")
    assert forms[1:] == (xla_convolution, None)
    forms = choose_layer_forms("blockwise", "float32", "cpu", "cpu")
    assert forms[1:] == (cpu_convolution, cpu_upsampled_convolution)
