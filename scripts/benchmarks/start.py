"""Time the first start of sample.py, which compiles, and the second, which finds its programs in the cache.

    python scripts/benchmark.py start [--runs 3]

Each run is python sample.py twice, from the command to the written files; at first the cache is empty.
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
    """Wall time of one run of sample.py, in seconds."""
    start_time = time.perf_counter()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    subprocess.run([sys.executable, SAMPLE, "--out", out], env=environment, capture_output=True, check=True)
    return time.perf_counter() - start_time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="pairs of starts (%(default)s)")
    args = parser.parse_args()
    pairs = []
    for _ in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            pairs.append([start(f"{folder}/cache", f"{folder}/out") for _ in range(2)])
    first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratios = [second / first for first, second in pairs]
    print(f"first start   {first:6.1f} s\nsecond start  {second:6.1f} s")
    print(f"ratio         {second / first:6.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
