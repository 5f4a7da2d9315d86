"""Measure edits of clips that the synthetic world has drawn, with a model that makes such clips.

    python scripts/benchmark.py editing --out runs/editing [--clips 32] [a.b=c ...]

Two kinds of edits, with the options of configs/mini/edit.yaml (fields can be changed as a.b=c). `swap` puts
another character into a clip, and keeps the background. Beside it: plain DDIM inversion, from which the new
prompt is sampled, and the clip as the VAE decodes it. Scores: whether the clip looks most like the new
character; PSNR of the background, in dB, against the clip and against the VAE's; pose accuracy against the
clip's skeletons. `style` adds a style to the prompt, with several factors of its words: 0 is the clip's look,
1 that of the drawing in the style. All clips have a motion that training never saw. Brackets: 95% interval
over clips. OUT has scores.json, and pictures of the first clips.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fyp_jax.compilation_cache import enable_compilation_cache
from fyp_jax.config import load_config
from fyp_jax.console import run_console
from fyp_jax.editing.options import keep_background
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.evaluation.edit_cases import EditCase, SwapScores, style_cases, swap_cases
from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci
from fyp_jax.media.images import image_grid
from fyp_jax.media.writing import write_png
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.editing import EditOutput
from fyp_jax.pipeline.loading import load_components
from fyp_jax.pipeline.params import SamplingParams, sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.styles import STYLES

CONFIG = "configs/mini/edit.yaml"
EDIT, PLAIN, VAE = "edit", "inversion and new prompt", "the clip behind the VAE"
KINDS = ("swap", "style")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/editing"), metavar="DIR", help="default: %(default)s")
    add("--clips", type=int, default=32, metavar="N", help="clips of each kind (default: %(default)s)")
    add("--shown", type=int, default=4, metavar="N", help="clips that become pictures (default: %(default)s)")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="default: both")
    add("--factors", nargs="+", type=float, default=[-8.0, -2.0, 0.0, 1.0], help="of style words (-8 -2 0 1)")
    add("--config", default=CONFIG, metavar="FILE", help="default: %(default)s")
    add("overrides", nargs="*", metavar="a.b=c", help="fields of that config")
    args = parser.parse_intermixed_args()
    if args.clips < 1:
        raise UserError(f"--clips {args.clips}: give at least one clip")
    return args


class Edits:
    """Edits of drawn clips by one model and one config."""

    def __init__(self, config: EditConfig):
        components = load_components(config)
        self.pipeline = FollowYourPosePipeline(*components)
        side = components.defaults.height
        self.config = dataclasses.replace(config, height=side, width=side)
        self.size = self.config.num_frames, side

    @property
    def sampling(self) -> SamplingParams:
        return sampling_params(self.config)

    def invert(self, case: EditCase) -> Any:
        sampling = dataclasses.replace(self.sampling, guidance_scale=1.0)
        options: dict[str, Any] = {"trajectory": True, "map_level": self.config.edit.map_level}
        return self.pipeline.invert(case.clip, case.captions[0], sampling, pose=case.pose_images, **options)

    def edit(self, case: EditCase, inversion: Any, **options: Any) -> EditOutput:
        edit = dataclasses.replace(self.config.edit, **options)
        return self.pipeline.edit(
            inversion, *case.captions, edit, self.sampling, source_pose=case.pose_images
        )

    def swap(self, case: EditCase) -> tuple[dict[str, SwapScores], np.ndarray]:
        """Scores of an edit to another character and of what it is compared with, and a picture of them."""
        inversion = self.invert(case)
        words = keep_background(self.config.edit, list(case.characters))
        kept = {name: getattr(words, name) for name in ("blend_words", "blend_latents")}
        edited = self.edit(case, inversion, **kept)
        plain = self.pipeline(case.captions[1], case.pose_images, self.sampling, latents=inversion.noise)
        clips = {EDIT: edited.frames, PLAIN: plain.frames, VAE: edited.source}
        scores = {name: case.swap_scores(video, edited.source) for name, video in clips.items()}
        return scores, image_grid([case.clip, edited.source, plain.frames, edited.frames])

    def restyle(self, case: EditCase, factors: Sequence[float]) -> tuple[list[float], np.ndarray]:
        """The style score of an edit to a style for each factor of the style's words, and a picture."""
        inversion, words = self.invert(case), STYLES[case.target.style][0]
        none = {"blend_words": [], "blend_latents": False, "blend_self_attention": False}
        found = [
            self.edit(case, inversion, controller="refine", equalizer=[f"{words}={factor}"], **none).frames
            for factor in factors
        ]
        return [case.style_score(video) for video in found], image_grid([case.clip, *found, case.drawing])


def main() -> None:
    args = parse()
    # The clips and the prompts are those of the cases.
    config = load_config(EditConfig, args.config, ["prompt=[any]", "source=any", *args.overrides])
    config.check()
    enable_compilation_cache()
    with wrap_write_errors(args.out):
        args.out.mkdir(parents=True, exist_ok=True)
    edits, results = Edits(config), {}
    for kind in args.kinds:
        cases = {"swap": swap_cases, "style": style_cases}[kind](args.clips, *edits.size)
        rows, seconds = [], []
        for number, case in enumerate(tqdm(cases, kind, unit=" clips")):
            start = time.perf_counter()
            made = edits.swap(case) if kind == "swap" else edits.restyle(case, args.factors)
            seconds.append(time.perf_counter() - start)
            rows.append(made[0])
            if number < args.shown:
                write_png(args.out / f"{kind}-{number:02d}.png", made[1])
        if kind == "swap":
            results[kind] = print_swaps(rows)
        else:
            results[kind] = print_styles(rows, args.factors)
        print(
            f"{kind}: {np.median(seconds):.1f} s for each clip, {seconds[0]:.1f} s for the first\n",
            flush=True,
        )
    with wrap_write_errors(args.out / "scores.json") as file:
        file.write_text(json.dumps(results, indent=1) + "\n")


def print_swaps(rows: Sequence[Mapping[str, SwapScores]]) -> dict[str, Any]:
    """Print a table of edits to another character; gives its numbers."""
    columns = [name.replace("_", " ").replace("psnr", "PSNR") for name in SwapScores._fields]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    found: dict[str, Any] = {}
    for name in (EDIT, PLAIN, VAE):
        cis = [bootstrap_ci(values) for values in zip(*(row[name] for row in rows), strict=True)]
        found[name] = dict(zip(SwapScores._fields, cis, strict=True))
        print(f"| {name} | {' | '.join(cell(ci) for ci in cis)} |")
    gain = bootstrap_ci([row[EDIT].background_psnr - row[PLAIN].background_psnr for row in rows])
    print(f"\nbackground, edit over {PLAIN}: {cell(gain)} dB")
    return as_json(found | {"background_gain": gain})


def print_styles(rows: Sequence[Sequence[float]], factors: Sequence[float]) -> dict[str, Any]:
    """Print a table of edits to a style; gives its numbers."""
    scores = np.array(rows)
    print("| factor of the style's words | style score | change from the factor before |\n|---|---|---|")
    found: dict[str, Any] = {}
    for i, factor in enumerate(factors):
        column, before = scores[:, i], scores[:, max(i - 1, 0)]
        own, change = (bootstrap_ci(x.tolist()) for x in (column, column - before))
        found[str(factor)] = {"style": own, "change": change}
        print(f"| {factor:g} | {cell(own)} | {cell(change) if i else ''} |")
    monotone = bool((np.diff(scores.mean(axis=0)) > 0).all())
    print(f"\nmonotone: {'yes' if monotone else 'no'}")
    return as_json(found | {"monotone": monotone})


def cell(ci: ConfidenceInterval) -> str:
    return f"{ci.mean:.2f} ({ci.low:.2f} to {ci.high:.2f})"


def as_json(found: Any) -> Any:
    """The same with intervals as dictionaries."""
    if isinstance(found, ConfidenceInterval):
        return found._asdict()
    return {name: as_json(x) for name, x in found.items()} if isinstance(found, dict) else found


if __name__ == "__main__":
    run_console(main)
