"""What a compile check found, to be read: a table, JSON, what limits a step, and what may make it fit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fyp_jax.config import SampleConfig
from fyp_jax.tpu.check import Column
from fyp_jax.tpu.chips import Chip
from fyp_jax.tpu.measure import GIB, OverMemory, ProgramStats
from fyp_jax.training.config import TrainConfig


def roofline(programs: Sequence[ProgramStats], chip: Chip) -> dict[str, float]:
    """Seconds for which each part of a chip is busy at its published speed; all take at least the longest.

    Matrix products alone count as compute, in bfloat16, as which a TPU also multiplies float32 by default.
    """
    return {
        "compute": sum(item.runs * item.flops for item in programs) / chip.flops,
        "HBM": sum(item.runs * item.hbm_bytes for item in programs) / chip.bandwidth,
        "links": sum(item.runs * item.sent for item in programs) / chip.links,
    }


def table(columns: Mapping[str, Column], chip: Chip | None) -> Iterator[str]:
    """A line for each figure, a column for each way of writing the programs (ours, plain)."""
    found = {name: dict(_column(column, chip)) for name, column in columns.items()}
    labels = list(next(iter(found.values())))
    labels += [label for figures in found.values() for label in figures if label not in labels]
    rows = [["", *columns]] + [[label, *(found[name].get(label, "") for name in columns)] for label in labels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        right = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *right]).rstrip()


def _column(column: Column, chip: Chip | None) -> Iterator[tuple[str, str]]:
    if column.refused is None:
        yield from _figures(column.programs, chip)
        return
    if not column.programs:
        yield "HBM a chip, GiB", f"over {column.refused.used / GIB:.1f}: does not fit"
        return
    figures = dict(_figures(column.programs, None))
    figures["HBM a chip, GiB"] += f": does not fit, measured on {column.topology}"
    yield from figures.items()


def _figures(programs: Sequence[ProgramStats], chip: Chip | None) -> Iterator[tuple[str, str]]:
    peak = max(programs, key=lambda item: item.memory)
    of = f" of {chip.memory:g}" if chip else ""
    yield "HBM a chip, GiB", f"{peak.memory / GIB:.3f}{of}"
    if len(programs) > 1:
        yield "  at its peak in", peak.name
    yield "  arguments", f"{peak.arguments / GIB:.3f}"
    yield "  outputs", f"{peak.outputs / GIB:.3f}"
    yield "  of them aliased", f"{peak.aliased / GIB:.3f}"
    yield "  temporaries", f"{peak.temporaries / GIB:.3f}"
    yield "  code", f"{peak.code / GIB:.3f}"
    if peak.beside:
        yield "  held beside", f"{peak.beside / GIB:.3f}"
    flops, padding, needed, moved = (
        sum(item.runs * getattr(item, name) for item in programs)
        for name in ("flops", "padding", "needed", "hbm_bytes")
    )
    yield "TFLOP a chip", f"{flops / 1e12:.4g}"
    yield "  padding of heads", f"{padding / 1e12:.4g}"
    yield "  the maths needs", f"{needed / 1e12:.4g}"
    yield "  share needed, padding aside", f"{100 * needed / max(1, flops - padding):.1f}%"
    if unknown := sum(item.runs * item.unknown_kernels for item in programs):
        yield "  kernels that declare none", str(unknown)
    if unknown := sum(item.runs * item.unknown_loops for item in programs):
        yield "  loops of unknown length", str(unknown)
    yield "HBM moved, GiB", f"{moved / GIB:.4g}"
    for kind in sorted({kind for item in programs for kind in item.messages}):
        found = [(item.runs, *item.messages.get(kind, (0, 0))) for item in programs]
        count, size = sum(runs * n for runs, n, _ in found), sum(runs * size for runs, _, size in found)
        yield f"{kind}, MiB (messages)", f"{size / 2**20:.4g} ({count})"
    if chip:
        terms = roofline(programs, chip)
        for name, seconds in terms.items():
            yield f"{name} at its best, ms", f"{1000 * seconds:.4g}"
        longest = max(terms, key=lambda name: terms[name])
        yield "so at least, ms", f"{1000 * terms[longest]:.4g} ({longest})"
    yield "compiled in, s", f"{sum(item.seconds for item in programs):.1f}"


def as_json(columns: Mapping[str, Column], chip: Chip | None) -> dict[str, Any]:
    """The same figures for machines; sizes in bytes, times in seconds."""
    found = {
        name: {
            "fits": column.refused is None,
            "refused": column.refused and {"used": column.refused.used, "has": column.refused.has},
            **_sums(column.programs, chip if column.refused is None else None),
        }
        for name, column in columns.items()
    }
    return {"chip": dataclasses.asdict(chip) if chip else None, **found}


def _sums(programs: Sequence[ProgramStats], chip: Chip | None) -> dict[str, Any]:
    if not programs:
        return {}
    return {
        "programs": [item._asdict() | {"memory": item.memory} for item in programs],
        "memory": max(item.memory for item in programs),
        **{
            name: sum(item.runs * getattr(item, name) for item in programs)
            for name in ("flops", "padding", "needed", "hbm_bytes")
        },
        "compile_seconds": sum(item.seconds for item in programs),
        "roofline": roofline(programs, chip) if chip else None,
    }


def over_memory(error: OverMemory, config: TrainConfig | SampleConfig) -> str:
    """By how much a program does not fit, and which knobs are left. Nothing was compiled for these."""
    excess = error.used - error.has
    tries = "; ".join(_knobs(config)) or "fewer frames or pixels are what is left"
    return (
        f"{error.program} does not fit: {error.used / GIB:.2f} GiB of {error.has / GIB:.2f}, "
        f"{excess / GIB:.2f} too much ({error}). Try, not compiled: {tries}"
    )


def _knobs(config: TrainConfig | SampleConfig) -> Iterator[str]:
    """What a config does not yet do to save memory, the cheapest first."""
    if config.dtype != "bfloat16":
        yield "dtype=bfloat16"
    if isinstance(config, SampleConfig):
        if config.decode_chunk_size > 1:
            yield f"decode_chunk_size={max(1, config.decode_chunk_size // 2)}"
        if config.pose.frames > 1:
            yield f"pose.frames={config.pose.frames // 2}"
        return
    if config.frozen_dtype != "bfloat16":
        yield "frozen_dtype=bfloat16"
    if config.remat != "all":
        yield "remat=transformers" if config.remat == "none" else "remat=all"
    if config.mesh.fsdp == 1:
        yield "mesh.fsdp=4 (parameters and moments shared out)"
    shares = config.optimizer.accumulate
    yield f"optimizer.accumulate={2 * shares} or a smaller data.batch_size, if a chip has several clips"
    if config.data.num_frames > 1:
        yield f"mesh.frame={2 * max(1, config.mesh.frame)} (frames of a clip over several chips)"
        yield f"data.num_frames={config.data.num_frames // 2}"
