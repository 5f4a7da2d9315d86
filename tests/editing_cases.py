"""Cases of the published editors (tests/fixtures/editing_reference.*): prompts, tables, synthesised maps."""

import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from conftest import FIXTURES
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.editing.tables import (
    TextTables,
    equalizer,
    refinement_matrix,
    replacement_matrix,
    text_tables,
    time_weights,
)
from fyp_jax.editing.words import TokenizedPrompt
from fyp_jax.models.unet import UNet3D
from fyp_jax.pipeline.clip_editor import ClipEditor
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import SamplingPrograms

STEPS, TOKENS = 5, 77
CASES: dict[str, Any] = json.loads((FIXTURES / "editing_reference.json").read_text())
with np.load(FIXTURES / "editing_reference.npz") as _arrays:
    ARRAYS: dict[str, np.ndarray] = dict(_arrays)


def prompt(text: str) -> TokenizedPrompt:
    """A prompt whose words are a token each."""
    words = text.split(" ")
    return TokenizedPrompt(text, (1, *(2 + sum(map(ord, x)) for x in words), 0), tuple(words))


class Programs:
    """What `ClipEditor` needs of a pipeline's programs to run a UNet alone."""

    def __init__(self, unet: UNet3D):
        self.unet, self.schedule, self.mesh = unet, ScheduleConfig(), None

    on_host = SamplingPrograms.on_host


def editor(unet: UNet3D, params: dict, **sampling: Any) -> ClipEditor:
    """What edits latents with a UNet alone."""
    options = SamplingParams(**{"num_inference_steps": STEPS, **sampling})
    found = object.__new__(ClipEditor)
    for name, value in {"programs": Programs(unet), "params": {"unet": params}, "sampling": options}.items():
        object.__setattr__(found, name, value)
    return found


class Tables(NamedTuple):
    """The tables of a case: M, a, e, tau, and what they make together."""

    matrices: np.ndarray
    alphas: np.ndarray
    factors: np.ndarray
    tau: np.ndarray
    text: TextTables


def prompts(case: dict[str, Any]) -> list[TokenizedPrompt]:
    parts = zip(case["prompts"], case["token_ids"], case["token_strings"], strict=True)
    return [TokenizedPrompt(text, tuple(ids), tuple(strings[1:-1])) for text, ids, strings in parts]


def tables(case: dict[str, Any]) -> Tables:
    source, *targets = prompts(case)
    ones = np.ones((len(targets), TOKENS), np.float32)
    if "replace" in case["kind"]:
        matrices, alphas = np.stack([replacement_matrix(source, target) for target in targets]), ones
    elif "refine" in case["kind"]:
        pairs = [refinement_matrix(source, target) for target in targets]
        matrices, alphas = (np.stack(x) for x in zip(*pairs, strict=True))
    else:
        matrices, alphas = np.stack([np.eye(TOKENS, dtype=np.float32)] * len(targets)), ones
    factors = np.ones((1, TOKENS), np.float32)
    if weights := case.get("equalizer") or case.get("eq_params"):
        factors = equalizer(targets[0], dict(zip(weights["words"], weights["values"], strict=True)))[None]
    windows = case["cross_replace_steps"]
    windows = dict(windows) if isinstance(windows, dict) else {"default_": windows}
    tau = time_weights(targets, windows.pop("default_", 1.0), windows, case["num_steps"])
    return Tables(matrices, alphas, factors, tau, text_tables(matrices, alphas, factors, tau))


def softmax_map(tag: str, shape: tuple[int, ...], scale: float = 2.0, bump: Any = 0.0) -> np.ndarray:
    """A synthesised map of the reference: rows of it sum to 1."""
    x = scale * np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(shape) + bump
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return (x / x.sum(axis=-1, keepdims=True)).astype(np.float32)


def blob(side: int, centre: Any, positions: list[int]) -> np.ndarray:
    """What is added to the scores of these tokens: a bump around a centre, [side^2, tokens]."""
    rows, columns = np.mgrid[:side, :side]
    y, x = np.asarray(centre) * side
    bump = np.zeros((side * side, TOKENS))
    height = 4 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (side / 6) ** 2))
    bump[:, positions] = height.reshape(-1, 1)
    return bump
