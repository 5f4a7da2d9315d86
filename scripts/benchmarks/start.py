"""The first start of sample.py and the second: what compiling costs, and what is left when programs are kept.

    python scripts/benchmark.py start [--runs 3]

Each turn is python sample.py twice, from the command to the files, the first time with an empty cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "sample.py"


def start(cache: str, out: str) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run([sys.executable, SAMPLE, "--out", out], env=environment, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="turns (%(default)s)")
    args = parser.parse_args()
    turns = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            turns.append([start(f"{folder}/cache", f"{folder}/out") for _ in range(2)])
    first, second = (statistics.median(times) for times in zip(*turns, strict=True))
    shares = [second / first for first, second in turns]
    print(f"first start   {first:6.1f} s\nsecond start  {second:6.1f} s")
    print(f"share         {second / first:6.2f} ({min(shares):.2f} to {max(shares):.2f})")


if __name__ == "__main__":
    main()
