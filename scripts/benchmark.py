"""Run a benchmark of scripts/benchmarks/: python scripts/benchmark.py [TOPIC] [options].

step           a denoising step against PyTorch diffusers' image UNet (the default; needs the torch extra)
breakdown      where the time of a step goes, by kind of operation; beside PyTorch
attention      implementations of attention on this machine
attention_tpu  implementations of attention, by what the TPU compiler makes of them
motion         a training step of the motion stage against its baseline
variants       the same step with other fields and compiler options, by time and memory
start          the first start of sample.py against the second, which finds its programs in the cache
convolution    forms of a 3x3 convolution on this machine, beside PyTorch
data           the data loader against plain PyAV decoding
data_rates     core seconds of preparing an item and of loading a clip, for scripts/plan_run.py
long_clips     clips in windows: time, memory, appearance, pose accuracy, change at seams
gpu            sampling, training and attention on a GPU, beside PyTorch
many_clips     throughput of batches of clips, by devices and clips a device
checkpoints    what the checksums of checkpoints cost
solvers        solvers of sampling, by the quality of the bundled model's clips at few steps
sweep          values of a sampling field, by the quality of the bundled model's clips
editing        edits of drawn clips: another character beside plain inversion, and the factor of a style

`python scripts/benchmark.py TOPIC --help` lists the options. The speed of a machine drifts, so each benchmark
compares within one run.
"""

import importlib
import sys

TOPICS = (
    "step",
    "breakdown",
    "attention",
    "attention_tpu",
    "motion",
    "variants",
    "start",
    "convolution",
    "data",
    "data_rates",
    "long_clips",
    "gpu",
    "many_clips",
    "checkpoints",
    "solvers",
    "sweep",
    "editing",
)


def main() -> None:
    topic, *options = sys.argv[1:] or ["step"]
    if topic in ("-h", "--help"):
        print(__doc__)
        return
    if topic.startswith("-"):
        topic, options = "step", sys.argv[1:]
    if topic not in TOPICS:
        print(f"error: unknown topic {topic}; the topics are {', '.join(TOPICS)}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{sys.argv[0]} {topic}", *options]
    importlib.import_module(f"benchmarks.{topic}").main()


if __name__ == "__main__":  # false in the worker processes of `data`
    main()
