"""Measurements, each in a file of scripts/benchmarks/: python scripts/benchmark.py [TOPIC] [options].

step       one denoise step beside PyTorch diffusers' image UNet (the default; needs the torch extra)
attention  forms of attention beside each other
attention_tpu  the same, by what the TPU compiler makes of them
motion     a step of the motion stage beside the same one written the plain way
start      the first start of sample.py, and the second with kept programs
data       the data loader beside plain PyAV decoding

`python scripts/benchmark.py TOPIC --help` has the options. Machines drift: each compares within one run.
"""

import importlib
import sys

TOPICS = ("step", "attention", "attention_tpu", "motion", "start", "data")


def main() -> None:
    topic, *options = sys.argv[1:] or ["step"]
    if topic in ("-h", "--help"):
        print(__doc__)
        return
    if topic.startswith("-"):
        topic, options = "step", sys.argv[1:]
    if topic not in TOPICS:
        print(f"error: {topic}: the topics are {', '.join(TOPICS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{sys.argv[0]} {topic}", *options]
    importlib.import_module(f"benchmarks.{topic}").main()


if __name__ == "__main__":  # and not in the worker processes of `data`
    main()
