"""What the checksums of checkpoints cost: a save and a restore with them, and without.

    python scripts/benchmark.py checkpoints [--config configs/sd14/stage2_motion.yaml] [--runs 3]

The arrays have the shapes of a run of the config, and random values: the training state (trained parameters,
and both moments of the optimizer), and the float32 weights of the UNet and the pose encoder. Without
checksums they are saved by the same Orbax handlers, and restored with no look at what they hold. The two are
measured in turns. A time includes the whole write. The last line is the ratio of the medians.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from benchmarks.timing import interleaved_times
from fyp_jax.checkpoints.manager import open_manager
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.config import load_config
from fyp_jax.models.layer_forms import DEFAULT_FORMS
from fyp_jax.models.random_params import random_params
from fyp_jax.tpu.programs import bundled_sizes
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import initial_shapes
from fyp_jax.training.stages import get_stage

SAVED = ("unet/", "pose_encoder/")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/sd14/stage2_motion.yaml", metavar="FILE", help="%(default)s by default")
    add("--runs", type=int, default=3, metavar="N", help="runs of each (%(default)s)")
    add("--folder", type=Path, metavar="DIR", help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    config = load_config(TrainConfig, args.config, [])
    config = dataclasses.replace(config, pretrained=bundled_sizes(config.pretrained)[0], init_checkpoint=None)
    train, inference = arrays_of_a_run(config)
    gigabytes = sum(x.nbytes for x in jax.tree.leaves((train, inference))) / 1e9
    print(f"{gigabytes:.2f} GB in {len(jax.tree.leaves((train, inference)))} arrays")
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), train)
    steps = itertools.count()
    with (
        tempfile.TemporaryDirectory(dir=args.folder) as folder,
        TrainingCheckpoints(Path(folder) / "with", max_to_keep=1) as checkpoints,
        open_manager(Path(folder) / "without", create=True, max_to_keep=1) as manager,
    ):

        def verified() -> Any:
            checkpoints.save(next(steps), train=train, inference=inference, data={}, config={}, loss=0.0)
            checkpoints.wait()
            restored = checkpoints.restore(target)
            assert restored is not None
            return restored.train

        def plain() -> Any:
            step = next(steps)
            items = {
                name: ocp.args.StandardSave(x) for name, x in (("train", train), ("inference", inference))
            }
            empty = {name: ocp.args.JsonSave({}) for name in ("data", "config")}
            manager.save(step, args=ocp.args.Composite(**items, **empty))
            manager.wait_until_finished()
            wanted = ocp.args.Composite(train=ocp.args.StandardRestore(target))
            return manager.restore(step, args=wanted)["train"]

        times = interleaved_times({"with checksums": verified, "without": plain}, args.runs)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name}: {medians[name]:.1f} s ({min(values):.1f} to {max(values):.1f})")
    print(f"ratio: {medians['with checksums'] / medians['without']:.3f}")


def arrays_of_a_run(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The items `train` and `inference` of a checkpoint."""
    _, trainable, frozen = initial_shapes(config, get_stage(config.stage), None, DEFAULT_FORMS)
    flat = {path: x for path, x in (trainable | frozen).items() if path.startswith(SAVED)}
    inference = random_params(unflatten_dict(flat, sep="/"), seed=0)
    params = {path: x for path, x in flatten_dict(inference, sep="/").items() if path in trainable}
    moments = [jax.tree.map(lambda x, scale=scale: x * scale, params) for scale in (0.1, 0.01)]
    return {"params": params, "mu": moments[0], "nu": moments[1]}, inference
