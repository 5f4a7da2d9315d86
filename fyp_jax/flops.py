"""Floating-point operations that a function needs, counted from what it is made of.

Compilers count a loop's body once, and what they themselves add; this counts what the maths says.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


class Product(NamedTuple):
    """A matrix product or a convolution: the shapes of both operands and its FLOPs (2 per multiply-add)."""

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    strides: tuple[int, ...]
    flops: int


def count_products(function: Callable[..., Any], *args: Any) -> Counter[Product]:
    """How often each product runs when `function` is called; arguments may be shapes.

    The body of a `scan` (`lax.map` is one) counts as often as it runs. Raises ValueError for a loop whose
    length is not known.
    """
    products: Counter[Product] = Counter()
    _walk(jax.make_jaxpr(function)(*args).jaxpr, 1, products)
    return products


def total_flops(products: Mapping[Product, int]) -> int:
    """FLOPs of all matrix products and convolutions; all else is small beside them and not counted."""
    return sum(product.flops * times for product, times in products.items())


def _walk(jaxpr: Jaxpr, times: int, products: Counter[Product]) -> None:
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if kind in {"dot_general", "conv_general_dilated"}:
            left, right, out = (tuple(var.aval.shape) for var in (*eqn.invars[:2], eqn.outvars[0]))  # pyright: ignore
            if kind == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                depth, strides = math.prod(left[axis] for axis in contracted), ()
            else:
                out_axis = params["dimension_numbers"].rhs_spec[0]
                depth, strides = math.prod(right) // right[out_axis], tuple(params["window_strides"])
            products[Product(kind, left, right, strides, 2 * math.prod(out) * depth)] += times
        elif kind == "while":
            raise ValueError("a while loop: how often it runs is not known")
        inner = times * params["length"] if kind == "scan" else times
        for value in params.values():
            if isinstance(value, ClosedJaxpr):
                _walk(value.jaxpr, inner, products)
            elif isinstance(value, Jaxpr):
                _walk(value, inner, products)
