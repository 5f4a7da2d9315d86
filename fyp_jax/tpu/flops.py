"""Floating-point operations that a function needs, counted from what it is made of.

Compilers count a loop's body once, and what they themselves add; this counts what the maths says.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Product(NamedTuple):
    """A matrix product or a convolution: the shapes of both operands and its FLOPs (2 per multiply-add)."""

    kind: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    strides: tuple[int, ...]
    flops: int


def count_products(function: Callable[..., Any], *args: Any) -> Counter[Product]:
    """How often each product runs when `function` is called; arguments may be shapes.

    The body of a `scan` (`lax.map` is one) counts as often as it runs; of the branches of a choice, the one
    with the fewest; a convolution's multiply-adds with its padding are left out. Raises ValueError for a
    loop whose length is not known.
    """
    products: Counter[Product] = Counter()
    _walk(jax.make_jaxpr(function)(*args).jaxpr, 1, products)
    return products


def total_flops(products: Mapping[Product, int]) -> int:
    """FLOPs of all matrix products and convolutions; all else is small beside them and not counted."""
    return sum(product.flops * times for product, times in products.items())


def valid_taps(
    left: int, right: int, out: int, *, stride: int, pad: int, left_dilation: int, right_dilation: int
) -> int:
    """Multiply-adds of a convolution along one axis, without those with padding or holes between inputs.

    `left`, `right` and `out` are lengths of input, kernel and output; `pad` stands before the input.
    """
    last, found = (left - 1) * left_dilation, 0
    for tap in range(right):
        first = tap * right_dilation - pad  # the place, holes counted, that output 0 reads
        if left_dilation == 1:
            low, high = max(0, -(first // stride)), min(out - 1, (last - first) // stride)
            found += max(0, high - low + 1)
        else:
            places = (first + stride * i for i in range(out))
            found += sum(0 <= place <= last and place % left_dilation == 0 for place in places)
    return found


def gradient_flops(function: Callable[..., Any], learned: Any, *args: Any) -> int:
    """FLOPs of a scalar function and of its gradient with respect to `learned`, nothing computed twice.

    Each product runs once forward, and once more for each operand that depends on `learned`: that operand's
    gradient is a product of as many multiply-adds. So it does not matter what an implementation computes
    again to save memory.
    """
    jaxpr = jax.make_jaxpr(function)(learned, *args).jaxpr
    count = len(jax.tree.leaves(learned))
    flops, _ = _with_gradient(jaxpr, [i < count for i in range(len(jaxpr.invars))])
    return flops


def _with_gradient(jaxpr: Jaxpr, learned: list[bool]) -> tuple[int, list[bool]]:
    """FLOPs of a jaxpr and its gradient, and which results depend on what is learned."""
    depends = dict(zip(jaxpr.invars, learned, strict=True))

    def of(var: Any) -> bool:
        return not isinstance(var, Literal) and depends.get(var, False)

    flops = 0
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        ins = [of(var) for var in eqn.invars]
        outs = [any(ins)] * len(eqn.outvars)
        if product := _product(eqn):
            flops += product.flops * (1 + ins[0] + ins[1])
        elif kind == "scan":
            inner, consts, carries = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
            while True:  # until no further carry comes to depend
                body, outs = _with_gradient(inner, ins)
                before = ins[consts : consts + carries]
                after = [a or b for a, b in zip(before, outs[:carries], strict=True)]
                if after == before:
                    break
                ins[consts : consts + carries] = after
            flops += body * params["length"]
        elif kind == "while":
            raise ValueError("a while loop: how often it runs is not known")
        elif kind == "cond":
            branches = [_with_gradient(branch.jaxpr, ins[1:]) for branch in params["branches"]]
            flops += min(cost for cost, _ in branches)
            outs = [any(of_branch) for of_branch in zip(*(outs for _, outs in branches), strict=True)]
        else:
            for inner in _inner(params):
                same = len(inner.invars) == len(ins)
                body, found = _with_gradient(inner, ins if same else [any(ins)] * len(inner.invars))
                flops += body
                outs = found if len(found) == len(outs) else outs
        depends |= zip(eqn.outvars, outs, strict=True)
    return flops, [of(var) for var in jaxpr.outvars]


def _product(eqn: Any) -> Product | None:
    kind, params = eqn.primitive.name, eqn.params
    if kind not in {"dot_general", "conv_general_dilated"}:
        return None
    left, right, out = (tuple(var.aval.shape) for var in (*eqn.invars[:2], eqn.outvars[0]))
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(left[axis] for axis in contracted)
        return Product(kind, left, right, (), 2 * math.prod(out) * depth)
    (batch, _, *of_left), (out_axis, in_axis, *of_right), (_, _, *of_out) = params["dimension_numbers"]
    strides = tuple(params["window_strides"])
    pairs = math.prod(
        valid_taps(
            left[of_left[i]],
            right[of_right[i]],
            out[of_out[i]],
            stride=strides[i],
            pad=params["padding"][i][0],
            left_dilation=params["lhs_dilation"][i],
            right_dilation=params["rhs_dilation"][i],
        )
        for i in range(len(strides))
    )
    clips = left[batch] // params["batch_group_count"]
    return Product(kind, left, right, strides, 2 * pairs * clips * right[out_axis] * right[in_axis])


def _inner(params: Mapping[str, Any]) -> list[Jaxpr]:
    """The jaxprs that an equation runs, once each."""
    found = [value for value in params.values() if isinstance(value, (ClosedJaxpr, Jaxpr))]
    return [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in found]


def _walk(jaxpr: Jaxpr, times: int, products: Counter[Product]) -> None:
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if product := _product(eqn):
            products[product] += times
        elif kind == "while":
            raise ValueError("a while loop: how often it runs is not known")
        elif kind == "cond":
            branches: list[Counter[Product]] = []
            for branch in params["branches"]:
                branches.append(Counter())
                _walk(branch.jaxpr, times, branches[-1])
            products.update(min(branches, key=total_flops))
        else:
            for inner in _inner(params):
                _walk(inner, times * params["length"] if kind == "scan" else times, products)
