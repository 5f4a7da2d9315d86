"""Cycles of a Pallas TPU kernel, from the schedule that the TPU compiler writes for it; no TPU is needed.

A bundle is one cycle's instructions. Each bundle counts as often as the loops around it run. Waits for copies
from HBM are not in the count, and a part that only some grid steps run counts in all of them: so it is the
time of the compute units, at most.
"""

import os
import re
from pathlib import Path

FLAGS = (
    "--xla_jf_dump_llo_text=true --xla_jf_dump_hlo_text=false --xla_jf_dump_llo_pass_label_regex=.*final.*"
)
BUNDLE = re.compile(r"^\s*(?P<address>0x[0-9a-f]+|0)\s+(?P<label>\w+)?\s*:", re.MULTILINE)
EXIT_TEST = re.compile(
    r"%(?P<predicate>p\w+) = scmp\.\w+\.s32\.totalorder [^,]+, (?P<trips>\S+?)\s+/\* loop exit test \*/"
)


def dump_schedules(folder: Path) -> None:
    """Have the compiler write its schedules to a folder. To be called before libtpu is loaded."""
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} --xla_jf_dump_to={folder} {FLAGS}"


def scheduled_cycles(folder: Path, kernel: str) -> int | None:
    """Cycles of the newest kernel in the folder whose name has `kernel` in it; None if there is none."""
    files = sorted(folder.glob(f"*{kernel}*-final_bundles.txt"), key=lambda file: file.stat().st_mtime)
    return count_cycles(files[-1].read_text(errors="replace")) if files else None


def count_cycles(schedule: str) -> int:
    """Bundles of a schedule, each times the trips of the loops that it is in.

    Raises ValueError where the trips of a loop are not a constant.
    """
    marks = list(BUNDLE.finditer(schedule))
    ends = [mark.start() for mark in marks[1:]] + [len(schedule)]
    bundles = [
        (mark["label"] or "", schedule[mark.end() : end]) for mark, end in zip(marks, ends, strict=True)
    ]
    times, open_loops = [1] * len(bundles), []
    for i, (label, body) in enumerate(bundles):
        if "LB" in label:
            open_loops.append(i)
        for test in EXIT_TEST.finditer(body):
            if not test["trips"].isdigit():
                raise ValueError(f"a loop with {test['trips']} trips: the number is not a constant")
            first = open_loops.pop()
            predicate = re.compile(rf"%{test['predicate']}\b")
            after = (j for j in range(i, len(bundles)) if "sbr.rel" in bundles[j][1])
            last = next((j for j in after if predicate.search(bundles[j][1])), i)
            for j in range(first, last + 1):
                times[j] *= int(test["trips"])
    return sum(times)
