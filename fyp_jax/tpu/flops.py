"""Model FLOPs: the floating-point operations that a function needs, counted on its jaxpr.

Model FLOPs are those of the mathematics: nothing is counted for rematerialisation, padding or dilation. They
are the numerator of model FLOPs utilisation (MFU; Chowdhery et al., PaLM, 2022, appendix B). Hardware FLOPs
are those that the compiled program executes (`hlo_stats`), as in hardware FLOPs utilisation (HFU).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


class Product(NamedTuple):
    """A matrix product or a convolution: the shapes of both operands and its FLOPs, 2 per multiply-add."""

    kind: str
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    strides: tuple[int, ...]
    """Window strides of a convolution; empty for a matrix product."""
    flops: int


def count_products(function: Callable[..., Any], *args: Any) -> Counter[Product]:
    """How often each product runs when `function` is called; `args` may be `jax.ShapeDtypeStruct`s.

    The body of a `scan` (so of `lax.map` too) counts once per iteration. Of the branches of a `cond`, the one
    with the fewest FLOPs counts. Raises ValueError for a `while` loop, whose trip count is unknown.
    """
    products: Counter[Product] = Counter()
    _count_products(jax.make_jaxpr(function)(*args).jaxpr, 1, products)
    return products


def total_flops(products: Mapping[Product, int]) -> int:
    """FLOPs of all matrix products and convolutions; other operations are not counted."""
    return sum(product.flops * times for product, times in products.items())


def valid_taps(
    input_size: int,
    kernel_size: int,
    output_size: int,
    *,
    stride: int,
    pad_low: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> int:
    """Number of (output, kernel tap) pairs of a convolution along one axis whose tap meets an input element.

    Output `i` reads with tap `k` the position p = stride i + rhs_dilation k - pad_low of the dilated input,
    in which input element `j` is at lhs_dilation j. Positions in the padding and between elements are not
    counted. The product over all spatial axes is the number of multiply-adds per input and output channel.
    """
    last, count = (input_size - 1) * lhs_dilation, 0
    for tap in range(kernel_size):
        first = tap * rhs_dilation - pad_low  # the position that output 0 reads
        if lhs_dilation == 1:
            low, high = max(0, -(first // stride)), min(output_size - 1, (last - first) // stride)
            count += max(0, high - low + 1)
        else:
            positions = (first + stride * i for i in range(output_size))
            count += sum(0 <= position <= last and position % lhs_dilation == 0 for position in positions)
    return count


def gradient_flops(function: Callable[..., Any], trainable: Any, *args: Any) -> int:
    """Model FLOPs of a scalar function and of its gradient with respect to `trainable`, its first argument.

    A product of operands a and b counts once for the forward pass, and once for each operand that depends on
    `trainable`: the gradient of an operand is a product of as many multiply-adds. Rematerialisation
    (`jax.checkpoint`) does not change the count. Raises ValueError for a `while` loop.
    """
    jaxpr = jax.make_jaxpr(function)(trainable, *args).jaxpr
    leaves = len(jax.tree.leaves(trainable))
    flops, _ = _gradient_flops(jaxpr, [i < leaves for i in range(len(jaxpr.invars))])
    return flops


def _gradient_flops(jaxpr: Jaxpr, requires_grad: list[bool]) -> tuple[int, list[bool]]:
    """FLOPs of a jaxpr and its gradient, and which of its results depend on a trainable input."""
    depends = dict(zip(jaxpr.invars, requires_grad, strict=True))

    def is_dependent(var: Any) -> bool:
        return not isinstance(var, Literal) and depends.get(var, False)

    flops = 0
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        ins = [is_dependent(var) for var in eqn.invars]
        outs = [any(ins)] * len(eqn.outvars)
        if product := _product(eqn):
            flops += product.flops * (1 + ins[0] + ins[1])
        elif kind == "scan":
            inner, consts, carries = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
            while True:  # until no further carry becomes dependent
                body, outs = _gradient_flops(inner, ins)
                before = ins[consts : consts + carries]
                after = [a or b for a, b in zip(before, outs[:carries], strict=True)]
                if after == before:
                    break
                ins[consts : consts + carries] = after
            flops += body * params["length"]
        elif kind == "while":
            raise ValueError("cannot count the FLOPs of a while loop: its trip count is unknown; use a scan")
        elif kind == "cond":
            branches = [_gradient_flops(branch.jaxpr, ins[1:]) for branch in params["branches"]]
            flops += min(branch_flops for branch_flops, _ in branches)
            outs = [any(results) for results in zip(*(outs for _, outs in branches), strict=True)]
        else:
            for inner in _inner_jaxprs(params):
                same = len(inner.invars) == len(ins)
                body, results = _gradient_flops(inner, ins if same else [any(ins)] * len(inner.invars))
                flops += body
                outs = results if len(results) == len(outs) else outs
        depends |= zip(eqn.outvars, outs, strict=True)
    return flops, [is_dependent(var) for var in jaxpr.outvars]


def _product(eqn: Any) -> Product | None:
    kind, params = eqn.primitive.name, eqn.params
    if kind not in {"dot_general", "conv_general_dilated"}:
        return None
    lhs, rhs, out = (tuple(var.aval.shape) for var in (*eqn.invars[:2], eqn.outvars[0]))
    if kind == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(lhs[axis] for axis in contracted)
        return Product(kind, lhs, rhs, (), 2 * math.prod(out) * depth)
    (batch, _, *lhs_axes), (out_axis, in_axis, *rhs_axes), (_, _, *out_axes) = params["dimension_numbers"]
    strides = tuple(params["window_strides"])
    taps = math.prod(
        valid_taps(
            lhs[lhs_axes[i]],
            rhs[rhs_axes[i]],
            out[out_axes[i]],
            stride=strides[i],
            pad_low=params["padding"][i][0],
            lhs_dilation=params["lhs_dilation"][i],
            rhs_dilation=params["rhs_dilation"][i],
        )
        for i in range(len(strides))
    )
    examples = lhs[batch] // params["batch_group_count"]
    return Product(kind, lhs, rhs, strides, 2 * taps * examples * rhs[out_axis] * rhs[in_axis])


def _inner_jaxprs(params: Mapping[str, Any]) -> list[Jaxpr]:
    """The jaxprs among an equation's parameters, each of which runs once."""
    found = [value for value in params.values() if isinstance(value, (ClosedJaxpr, Jaxpr))]
    return [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in found]


def _count_products(jaxpr: Jaxpr, times: int, products: Counter[Product]) -> None:
    for eqn in jaxpr.eqns:
        kind, params = eqn.primitive.name, eqn.params
        if product := _product(eqn):
            products[product] += times
        elif kind == "while":
            raise ValueError("cannot count the FLOPs of a while loop: its trip count is unknown; use a scan")
        elif kind == "cond":
            branches: list[Counter[Product]] = []
            for branch in params["branches"]:
                branches.append(Counter())
                _count_products(branch.jaxpr, times, branches[-1])
            products.update(min(branches, key=total_flops))
        else:
            for inner in _inner_jaxprs(params):
                _count_products(inner, times * params["length"] if kind == "scan" else times, products)
