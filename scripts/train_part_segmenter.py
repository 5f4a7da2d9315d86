"""Train the network with which evaluation finds figures and their parts, on drawings of the synthetic world.

    python scripts/train_part_segmenter.py --out fyp_jax/assets/part_segmenter.safetensors

Drawings are augmented at random (blur, tint, noise), so that sampled clips are segmented as well as drawn
ones. At the end it prints the intersection over union of figures, and of each part, on drawings that training
never had.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from PIL import Image, ImageFilter
from safetensors.flax import save_file
from tqdm import trange

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.evaluation.autoencoder import held_out_drawings
from fyp_jax.evaluation.part_segmenter import CLASSES, PartSegmenter, part_classes
from fyp_jax.synthetic.parts import PARTS
from fyp_jax.synthetic.scenes import SIZE, render_clip, training_scene

FIRST_SEED = 7 * 10**8
"""Seed of the first drawing, a training scene."""
NUM_HELD_OUT = 128
"""Drawings that the network is tested on."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the weights, in float16")
    add("--steps", type=int, default=1500, metavar="N", help="training steps (%(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="drawings a step (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, metavar="RATE", help="highest rate (%(default)s)")
    args = parser.parse_args()
    with wrap_write_errors(args.out):  # a folder that is missing is told before the training
        args.out.parent.mkdir(parents=True, exist_ok=True)
    model = PartSegmenter()
    params = model.init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]
    optimizer = optax.adam(optax.cosine_onecycle_schedule(args.steps, args.learning_rate))

    @jax.jit
    def step(params: Any, state: Any, frames: jax.Array, classes: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, frames.astype(jnp.float32) / 127.5 - 1)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()  # pyright: ignore

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    with trange(args.steps, unit="step") as bar:
        for number in bar:
            first = FIRST_SEED + number * args.batch_size
            params, state, loss = step(params, state, *batch(first, args.batch_size))
            if number % 20 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")
    with wrap_write_errors(args.out):
        save_file(
            {name: jnp.asarray(x, jnp.float16) for name, x in flatten_dict(params, sep="/").items()}, args.out
        )
    report(jax.jit(lambda x: model.apply({"params": params}, x).argmax(-1)))  # pyright: ignore


def batch(first_seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Augmented drawings, uint8 [n h w 3], and the classes of their pixels, [n h w]."""
    rng = np.random.default_rng(first_seed)
    frames, classes = [], []
    for seed in range(first_seed, first_seed + count):
        clip = render_clip(training_scene(seed), 1, labels=True)
        assert clip.labels is not None
        frames.append(augment(clip.video[0], rng))
        classes.append(part_classes(clip.labels[0]))
    return np.stack(frames), np.stack(classes)


def augment(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawing as a sampler may make it: blurred, with other colours, with noise. Half of them stay."""
    if rng.random() < 0.5:
        return frame
    blurred = Image.fromarray(frame).filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.3)))
    tinted = np.asarray(blurred, np.float32) * rng.uniform(0.85, 1.15, 3) + rng.uniform(-15, 15, 3)
    noise = rng.normal(0, rng.uniform(0, 8), frame.shape)
    return np.clip(tinted + noise, 0, 255).astype(np.uint8)


def report(classify: Any) -> None:
    """Print the intersection over union of figures and parts on held-out drawings."""
    drawn, found = [], []
    for clip in held_out_drawings(NUM_HELD_OUT):
        assert clip.labels is not None
        drawn.append(part_classes(clip.labels[0]))
        found.append(np.asarray(classify(jnp.asarray(clip.video, jnp.float32) / 127.5 - 1))[0])
    a, b = np.stack(drawn), np.stack(found)
    print(f"figure: {iou(a > 0, b > 0):.3f}")
    for number in range(1, CLASSES):
        print(f"{PARTS[number - 1]}: {iou(a == number, b == number):.3f}")


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


if __name__ == "__main__":
    run_console(main)
