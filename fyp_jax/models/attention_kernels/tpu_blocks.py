"""Block sizes of the TPU attention kernel for each chip, and what they become for an attention's size."""

import dataclasses
from typing import NamedTuple

LANES = 128
"""Numbers in one row of a vector register; blocks of tokens are multiples of it."""


WIDTH = 384
"""Channels that the blocks of CHIP_BLOCKS are for: as many lanes as 320 channels take, SD's first level."""


class Blocks(NamedTuple):
    """How much of an attention one grid step of a kernel computes."""

    queries: int
    """Tokens of queries that a grid step has in VMEM."""
    keys: int
    """Tokens, of WIDTH channels, of each part of the keys that a grid step has in VMEM."""
    keys_at_once: int
    """Tokens of keys in one iteration of the loop inside of a grid step."""
    heads_at_once: int
    """Heads in one iteration: one head's products run beside another's softmax."""

    def fitted(self, queries: int, keys: int, heads: int, width: int) -> "Blocks":
        """The same blocks, none larger than the attention, and each a divisor of what it divides.

        `queries` and `keys` are multiples of LANES. Blocks of keys get shorter where `width`, the number of
        channels, is above WIDTH.
        """
        block = largest_divisor(keys, self.keys * WIDTH // max(width, WIDTH))
        return Blocks(
            largest_divisor(queries, self.queries),
            block,
            largest_divisor(block, self.keys_at_once),
            min(self.heads_at_once, heads),
        )


@dataclasses.dataclass(frozen=True)
class ChipBlocks:
    """Blocks of the forward and the backward kernel, and the VMEM in MiB that they may use."""

    forward: Blocks
    backward: Blocks
    vmem_mib: int


# `scripts/benchmark.py attention_tpu --search` compares candidates; docs/tpu.md has its results.
CHIP_BLOCKS = {
    "TPU v4": ChipBlocks(Blocks(256, 512, 256, 2), Blocks(256, 256, 256, 1), 14),
    "TPU v5": ChipBlocks(Blocks(512, 4096, 256, 2), Blocks(256, 1024, 256, 2), 56),
    "TPU v5 lite": ChipBlocks(Blocks(512, 4096, 256, 2), Blocks(256, 1024, 256, 2), 100),
    "TPU v6 lite": ChipBlocks(Blocks(512, 4096, 256, 2), Blocks(256, 1024, 256, 2), 100),
    "TPU7x": ChipBlocks(Blocks(512, 4096, 256, 2), Blocks(256, 1024, 256, 2), 56),
}
"""By JAX's `device_kind`. A core's VMEM is 16 MiB on v4, 64 on v5p and tpu7x, and 128 on v5e and v6e."""


def largest_divisor(size: int, most: int) -> int:
    """The largest multiple of LANES that divides `size` and is at most `most`, both multiples of LANES."""
    tiles = size // LANES
    return LANES * max(i for i in range(1, tiles + 1) if tiles % i == 0 and (i * LANES <= most or i == 1))


def padded(tokens: int) -> int:
    """The smallest multiple of LANES that holds so many tokens."""
    return -(-tokens // LANES) * LANES
