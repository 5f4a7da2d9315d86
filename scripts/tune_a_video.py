"""Measure Tune-A-Video on one clip: how well a model makes it again before and after it was tuned on it.

    python scripts/tune_a_video.py --out runs/tune_a_video

Trains configs/mini/tune_a_video.yaml (fields can be changed as a.b=c). The clip is inverted with the weights
from before and from after, and sampled with its caption and with each --prompt. Prints the time, and the PSNR
in dB against the clip and against the clip as the VAE decodes it. OUT/tune_a_video.png has a row for the
clip, for the VAE's, and before and after for each prompt. For the bundled clip, the synthetic world also says
which character each clip shows.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from fyp_jax.compilation_cache import enable_compilation_cache
from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.data.one_clip import open_one_clip
from fyp_jax.evaluation.scene_metrics import drawn_parts, nearest_character
from fyp_jax.evaluation.statistics import psnr
from fyp_jax.media.images import Frames, image_grid
from fyp_jax.media.writing import write_png
from fyp_jax.pipeline.inversions import INVERSION_PROMPT
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.scenes import scene_keypoints, training_scene
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.loop import train

CONFIG = "configs/mini/tune_a_video.yaml"
BUNDLED, SEED = "waving", 200_000_020
"""The bundled clip is this scene (scripts/render_bundled_clips.py)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tune_a_video"), metavar="DIR")
    prompts = ["A robot, in the park", "A panda, in the park"]
    parser.add_argument("--prompt", nargs="+", default=prompts, metavar="TEXT", help="new texts")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="fields of the training config")
    args = parser.parse_intermixed_args()
    config = load_config(TrainConfig, CONFIG, [f"output_dir={args.out}", *args.overrides])
    config.check()
    assert config.data.caption is not None
    enable_compilation_cache()
    clip, texts = open_one_clip(config.data).frames, [config.data.caption, *args.prompt]
    one_window = {"window": config.data.num_frames, "window_overlap": 0}  # before as after the tuning
    sampling = dataclasses.replace(config.validation_sampling(), **one_window)
    rows = [clip]
    for when, checkpoint in (("before", None), ("after", config.checkpoint_folder)):
        if checkpoint is not None:
            wall, cpu = time.perf_counter(), time.process_time()
            train(dataclasses.replace(config, validation=type(config.validation)()))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{config.num_train_steps} steps: {wall:.0f} s, {cpu:.0f} s of CPU time")
        pipeline = FollowYourPosePipeline.from_pretrained(config.pretrained, checkpoint=checkpoint)
        z = pipeline.programs.run("decode", pipeline.params, pipeline.encode(clip)[None], chunk=4)
        decoded = np.asarray(z[0])
        latents = pipeline.invert(clip, INVERSION_PROMPT, sampling)
        made = [pipeline(text, None, sampling, latents=latents).frames for text in texts]
        against = [likeness(made[0], x) for x in (clip, decoded)]
        print(f"{when}: {against[0]:.1f} dB, {against[1]:.1f} dB against the VAE's")
        if config.data.video == BUNDLED:
            print(", ".join(f"{text!r} shows {character(x)}" for text, x in zip(texts, made, strict=True)))
        rows += [decoded, *made] if checkpoint is None else made
    print(f"the VAE alone: {likeness(decoded, clip):.1f} dB")
    write_png(args.out / "tune_a_video.png", image_grid(rows))
    print(args.out / "tune_a_video.png")


def likeness(found: Frames, expected: Frames) -> float:
    """PSNR in dB."""
    return psnr(np.square(found.astype(float) - expected))


def character(video: Frames) -> str:
    """The character that a clip with the bundled clip's motion looks most like."""
    scene, size = training_scene(SEED), video.shape[1]
    keypoints = scene_keypoints(scene, range(len(video)), size)
    return nearest_character(video, keypoints, scene, drawn_parts(scene, keypoints, size))


if __name__ == "__main__":
    run_console(main)
