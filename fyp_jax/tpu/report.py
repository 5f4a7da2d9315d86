"""Reports of a compile check: a table, JSON, the roofline, and what to change when a config does not fit."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.tpu.compile_check import CompileCheck, Variant
from fyp_jax.tpu.program_stats import GIB, OutOfMemory, ProgramStats
from fyp_jax.tpu.topologies import Chip
from fyp_jax.training.config import TrainConfig

TOTALS = ("hardware_flops", "padding_flops", "model_flops", "hbm_bytes")
"""Fields of ProgramStats that are summed over all runs of all programs."""


def roofline(programs: Sequence[ProgramStats], chip: Chip) -> dict[str, float]:
    """Seconds that compute, transcendentals, HBM and ICI each need at their peak.

    The longest of them is a lower bound of the run time (Williams et al., "Roofline", 2009). Compute counts
    the hardware FLOPs with the padding to the matrix unit, at the bfloat16 peak, since a TPU by default
    multiplies float32 as bfloat16 too.
    """
    return {
        "compute": sum(item.runs * item.padded_flops[chip.mxu] for item in programs) / chip.peak_flops,
        "transcendentals": sum(item.runs * item.transcendentals for item in programs)
        / chip.peak_transcendentals,
        "HBM": sum(item.runs * item.hbm_bytes for item in programs) / chip.hbm_bandwidth,
        "ICI": sum(item.runs * item.ici_bytes for item in programs) / chip.ici_bandwidth,
    }


def table(variants: Mapping[str, Variant], chip: Chip | None) -> Iterator[str]:
    """Lines of a text table: one row per figure, one column per variant."""
    figures = {name: dict(_figures(variant, chip)) for name, variant in variants.items()}
    labels = list(dict.fromkeys(label for column in figures.values() for label in column))
    rows = [["", *variants]]
    rows += [[label, *(figures[name].get(label, "") for name in variants)] for label in labels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()


def _figures(variant: Variant, chip: Chip | None) -> Iterator[tuple[str, str]]:
    if variant.out_of_memory is None:
        yield from _program_figures(variant.programs, chip)
        return
    if not variant.programs:
        yield "HBM per chip, GiB", f"over {variant.out_of_memory.used_bytes / GIB:.1f}: does not fit"
        return
    figures = dict(_program_figures(variant.programs, None))
    figures["HBM per chip, GiB"] += f": does not fit, measured on {variant.topology}"
    yield from figures.items()


def _program_figures(programs: Sequence[ProgramStats], chip: Chip | None) -> Iterator[tuple[str, str]]:
    peak = max(programs, key=lambda item: item.peak_hbm_bytes)
    limit = f" of {chip.hbm_gib:g}" if chip else ""
    yield "HBM per chip, GiB", f"{peak.peak_hbm_bytes / GIB:.3f}{limit}"
    if len(programs) > 1:
        yield "  peak in program", peak.name
    yield "  arguments", f"{peak.argument_size_in_bytes / GIB:.3f}"
    yield "  outputs", f"{peak.output_size_in_bytes / GIB:.3f}"
    yield "  outputs aliased to arguments", f"{peak.alias_size_in_bytes / GIB:.3f}"
    yield "  temporaries", f"{peak.temp_size_in_bytes / GIB:.3f}"
    yield "  generated code", f"{peak.generated_code_size_in_bytes / GIB:.3f}"
    if peak.resident_bytes:
        yield "  other resident parameters", f"{peak.resident_bytes / GIB:.3f}"
    totals = _totals(programs)
    useful = totals["model_flops"] / max(1, totals["hardware_flops"] - totals["padding_flops"])
    yield "hardware TFLOP per chip", f"{totals['hardware_flops'] / 1e12:.4g}"
    yield "  padding of heads", f"{totals['padding_flops'] / 1e12:.4g}"
    if chip:
        padded = sum(item.runs * item.padded_flops[chip.mxu] for item in programs)
        yield "  with padding to the matrix unit", f"{padded / 1e12:.4g}"
    yield "model TFLOP per chip", f"{totals['model_flops'] / 1e12:.4g}"
    yield "model / hardware FLOPs, without padding", f"{100 * useful:.1f}%"
    if unknown := sum(item.runs * item.unknown_kernels for item in programs):
        yield "kernels that declare no FLOPs", str(unknown)
    if unknown := sum(item.runs * item.unknown_loops for item in programs):
        yield "loops of unknown trip count", str(unknown)
    yield "HBM traffic, GiB", f"{totals['hbm_bytes'] / GIB:.4g}"
    for kind in sorted({kind for item in programs for kind in item.collectives}):
        found = [(item.runs, *item.collectives.get(kind, (0, 0))) for item in programs]
        count, size = sum(runs * n for runs, n, _ in found), sum(runs * size for runs, _, size in found)
        yield f"{kind}, MiB (count)", f"{size / 2**20:.4g} ({count})"
    if chip:
        terms = roofline(programs, chip)
        for name, seconds in terms.items():
            yield f"{name} at peak, ms", f"{1000 * seconds:.4g}"
        longest = max(terms, key=lambda name: terms[name])
        yield "lower bound, ms", f"{1000 * terms[longest]:.4g} ({longest})"
    yield "compile time, s", f"{sum(item.compile_seconds for item in programs):.1f}"


def as_json(check: CompileCheck, chip: Chip | None, command: str, topology: str) -> dict[str, Any]:
    """The figures of the table as JSON, and what was compiled; sizes in bytes, times in seconds.

    `command` is "train", "sample" or "edit".
    """
    found = {
        name: {
            "fits": variant.out_of_memory is None,
            "out_of_memory": variant.out_of_memory
            and {
                "used_bytes": variant.out_of_memory.used_bytes,
                "available_bytes": variant.out_of_memory.available_bytes,
            },
            **_json_of_programs(variant.programs, chip if variant.out_of_memory is None else None),
        }
        for name, variant in check.variants.items()
    }
    compiled = {
        "command": command,
        "topology": topology,
        "devices": check.chips,
        "fingerprint": check.fingerprint,
    }
    return {"chip": dataclasses.asdict(chip) if chip else None, "compiled": compiled, **found}


def _json_of_programs(programs: Sequence[ProgramStats], chip: Chip | None) -> dict[str, Any]:
    if not programs:
        return {}
    return {
        "programs": [item._asdict() | {"peak_hbm_bytes": item.peak_hbm_bytes} for item in programs],
        "peak_hbm_bytes": max(item.peak_hbm_bytes for item in programs),
        **_totals(programs),
        "compile_seconds": sum(item.compile_seconds for item in programs),
        "roofline": roofline(programs, chip) if chip else None,
    }


def _totals(programs: Sequence[ProgramStats]) -> dict[str, Any]:
    return {name: sum(item.runs * getattr(item, name) for item in programs) for name in TOTALS}


def out_of_memory_message(error: OutOfMemory, config: TrainConfig | SampleConfig) -> str:
    """How much memory a program lacks, and which config fields would save some. None of them was compiled."""
    lacking = error.used_bytes - error.available_bytes
    suggestions = "; ".join(_suggestions(config)) or "fewer frames or fewer pixels"
    return (
        f"{error.program} does not fit: it needs {error.used_bytes / GIB:.2f} GiB of HBM and the chip has "
        f"{error.available_bytes / GIB:.2f}, {lacking / GIB:.2f} too much ({error}). "
        f"Try (none of these was compiled): {suggestions}"
    )


def _suggestions(config: TrainConfig | SampleConfig) -> Iterator[str]:
    """Config fields that would save memory and that the config does not use yet, the cheapest first."""
    if config.dtype != "bfloat16":
        yield "dtype=bfloat16"
    if isinstance(config, SampleConfig):
        if config.decode_chunk_size > 1:
            yield f"decode_chunk_size={max(1, config.decode_chunk_size // 2)}"
        if config.num_frames > 1:
            yield f"num_frames={config.num_frames // 2}"
        return
    if config.frozen_dtype != "bfloat16":
        yield "frozen_dtype=bfloat16"
    if config.remat != "all":
        yield "remat=transformers" if config.remat == "none" else "remat=all"
    if config.mesh.fsdp == 1:
        yield "mesh.fsdp=4 (shards parameters and optimizer state)"
    steps = config.optimizer.grad_accumulation_steps
    accumulation = f"optimizer.grad_accumulation_steps={2 * steps}"
    yield f"{accumulation} or a smaller data.batch_size, if a chip has several clips"
    if config.data.num_frames > 1:
        yield f"mesh.frame={2 * max(1, config.mesh.frame)} (shards the frames of a clip over chips)"
        yield f"data.num_frames={config.data.num_frames // 2}"
