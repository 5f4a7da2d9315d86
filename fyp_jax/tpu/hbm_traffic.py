"""HBM traffic: the bytes that one instruction of a compiled program reads from HBM and writes to it."""

from fyp_jax.tpu.hlo import (
    ASYNC_DONE,
    ASYNC_START,
    CALLED,
    COLLECTIVE_KINDS,
    Buffer,
    Computation,
    Instruction,
    operand_results,
)

NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("partition-id", "replica-id", "while", "conditional", "call", "opt-barrier"),
}
"""Kinds of instructions that move nothing themselves; those in the computations that they call do."""

SLICES = ("dynamic-slice", "slice", "gather")
"""Kinds of instructions that read a part of their first operand."""


def hbm_bytes(instruction: Instruction, computation: Computation, module: dict[str, Computation]) -> int:
    """Bytes of HBM that an instruction of `computation` reads and writes, unless it is part of a fusion."""
    kind = instruction.kind
    if kind in NO_TRAFFIC or kind.endswith("-done"):
        return 0
    if kind == "copy-start":  # results: destination, source, context
        return sum(buffer.bytes for buffer in instruction.results[:2] if buffer.in_hbm)
    if kind == "slice-start":  # results: (source), destination, context
        source, destination = instruction.results[:2]
        return destination.bytes * (source.in_hbm + destination.in_hbm)
    operands = [operand_results(name, computation) for name in instruction.operands]
    written = list(instruction.results)
    if kind.endswith("-start"):  # the results list the operands first
        written = written[len(operands) :]
    bytes_read = [sum(buffer.bytes for buffer in buffers if buffer.in_hbm) for buffers in operands]
    bytes_written = sum(buffer.bytes for buffer in written if buffer.in_hbm)
    called = CALLED.search(instruction.attributes) if kind == "fusion" else None
    if called is not None:
        fusion = module[called[1]]
        root = fusion.instructions[fusion.root].attributes
        if ASYNC_START in root:
            return bytes_written  # the results list the operands, too
        if ASYNC_DONE in root:
            return 0
        bytes_read = [_fusion_bytes_read(fusion, i, size) for i, size in enumerate(bytes_read)]
        return sum(bytes_read) + _fusion_bytes_written(fusion, written)
    if kind in SLICES:
        bytes_read[0] = min(bytes_read[0], sum(buffer.bytes for buffer in written))
    if kind == "dynamic-update-slice":  # in place: only the update is written
        update = sum(buffer.bytes for buffer in operands[1])
        return (bytes_read[1] + update) if bytes_written else bytes_read[1]
    return sum(bytes_read) + bytes_written


def _fusion_bytes_written(fusion: Computation, results: list[Buffer]) -> int:
    """Bytes that a fusion writes; of an array that it updates in place, the bytes of the updated slice."""
    root = fusion.instructions[fusion.root]
    names = root.operands if root.kind == "tuple" else (fusion.root,)
    total = 0
    for name, buffer in zip(names, results, strict=False):
        item = fusion.instructions[name]
        while item.kind == "bitcast":
            item = fusion.instructions[item.operands[0]]
        size = buffer.bytes if buffer.in_hbm and item.kind not in (*COLLECTIVE_KINDS, "parameter") else 0
        if item.kind == "dynamic-update-slice":
            size = min(size, sum(buffer.bytes for buffer in operand_results(item.operands[1], fusion)))
        total += size
    return total


def _fusion_bytes_read(fusion: Computation, index: int, size: int) -> int:
    """Bytes that a fusion reads of its operand `index`: all `size` of them, or the slices that it takes."""
    parameter = [
        name
        for name, item in fusion.instructions.items()
        if item.kind == "parameter" and f" parameter({index})" in item.line
    ]
    if not parameter or not size:
        return size
    bytes_read, users, names = 0, 0, [parameter[0]]
    while names:
        name = names.pop()
        for user_name, user in fusion.instructions.items():
            if name not in user.operands:
                continue
            users += 1
            if user.kind == "bitcast":
                names.append(user_name)
            elif user.kind in SLICES and user.operands[0] == name:
                bytes_read += sum(buffer.bytes for buffer in user.results)
            elif user.kind in (*COLLECTIVE_KINDS, "tuple"):  # a collective in pieces: it is passed on
                pass
            elif user.kind != "dynamic-update-slice" or user.operands[0] != name:
                return size
    return min(size, bytes_read) if users else size
