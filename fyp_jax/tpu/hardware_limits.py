"""What products cost a TPU's matrix unit, with padding, and what takes its transcendental unit.

A matrix unit is a square of 128 or 256 numbers. It holds a tile of one operand, and rows of the other stream
by. So both dimensions of the operand that stays are padded to the square, and the rows that stream come in
groups of 8. Which operand stays is the compiler's choice. The cheaper one is assumed, so the count is a lower
bound.
"""

import math
import re

from fyp_jax.tpu.hlo import Computation, Instruction, operand_results

MXU_SIZES = (128, 256)
ROWS = 8

TRANSCENDENTALS = {
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "tanh", "erf"),
    *("power", "rsqrt", "sqrt", "cbrt", "sine", "cosine", "tan", "atan2"),
}
"""Kinds of HLO instructions that take the transcendental unit; each counts once for each number."""

ATTENTION_KERNEL = re.compile(r"attention_(?P<kind>forward|backward)_\d+x(?P<dim>\d+)")
"""Name of a kernel of fyp_jax.models.attention_kernels, with the number of its heads and their width."""


def padded_product(rows: int, depth: int, columns: int, mxu: int) -> float:
    """FLOPs of a product with padding, divided by those without: [rows, depth] x [depth, columns]."""
    staying = min(
        _ceil(rows, ROWS) * _ceil(columns, mxu),
        _ceil(rows, mxu) * _ceil(columns, ROWS),
    )
    return _ceil(depth, mxu) / depth * staying / (rows * columns)


def product_padding(product: Instruction, computation: Computation, mxu: int) -> float:
    """The same factor for an HLO dot or convolution."""
    lhs, rhs = (operand_results(name, computation)[0].shape for name in product.operands[:2])
    out = product.results[0].shape
    if product.kind == "dot":
        contracted = _axes(product, "lhs_contracting_dims")
        batch = math.prod(lhs[axis] for axis in _axes(product, "lhs_batch_dims"))
        depth = math.prod(lhs[axis] for axis in contracted)
        rows = math.prod(lhs) // (depth * batch)
        return padded_product(rows, depth, math.prod(out) // (batch * rows), mxu)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None or "group_count" in product.attributes:
        return 1.0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    rows, depth = lhs[lhs_labels.index("b")], rhs[rhs_labels.index("i")]
    for axis in map(str, range(len(lhs_labels) - 2)):
        size, taps = out[out_labels.index(axis)], rhs[rhs_labels.index(axis)]
        if taps == 1 or taps != size:  # otherwise it may be a batch of products, of which each is padded
            rows, depth = rows * size, depth * taps
    return padded_product(rows, depth, rhs[rhs_labels.index("o")], mxu)


def kernel_padding(name: str, mxu: int) -> float:
    """The same factor for a Pallas kernel: an attention's, by its name; 1 for others, which are not known.

    Forward, one product contracts a head's width, and in the other it streams, with one row more for the sum
    of weights. Backward, two of five products contract it, and it streams in three.
    """
    match = ATTENTION_KERNEL.search(name)
    if match is None:
        return 1.0
    dim, backward = int(match["dim"]), match["kind"] == "backward"
    contracted = _ceil(dim, mxu) / dim
    streaming = _ceil(dim if backward else dim + 1, ROWS) / dim
    return (2 * contracted + 3 * streaming) / 5 if backward else (contracted + streaming) / 2


def _axes(product: Instruction, name: str) -> list[int]:
    match = re.search(rf"{name}=\{{([\d,]*)\}}", product.attributes)
    return [int(axis) for axis in match[1].split(",") if axis] if match else []


def _ceil(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
