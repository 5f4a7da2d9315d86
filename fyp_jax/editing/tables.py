"""The tables of a text edit, from prompts: which token of the source stands for which of the target, and
when.

Prompt-to-prompt (Hertz et al. 2022) edits the maps of text attention. With P_s and P_t the maps of source and
target, and tau the time weights, all of its edits are

    P_t' = tau R + (1 - tau) P_t

    replace:    R[:, j] = sum over w of P_s[:, w] M[w, j]
    refine:     R[:, j] = a[j] P_s[:, m[j]] + (1 - a[j]) P_t[:, j]
    re-weight:  R[:, j] = e[j] R_inner[:, j]

which is one affine form, P_t' = P_s A + P_t diag(b) with

    A = M diag(a e tau),   b = e (1 - a) tau + (1 - tau)

where M of a refinement has a 1 at [m[j], j], and a of a replacement is 1. Everything here is NumPy, and
tables are float32.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fyp_jax.editing.words import TokenizedPrompt, word_positions
from fyp_jax.errors import UserError

TOKENS = 77
"""Tokens of a text of Stable Diffusion 1.x and 2.x."""

Window = float | Sequence[float]
"""Fractions of the steps: where a window begins and where it ends, or its end alone."""


class TextTables(NamedTuple):
    """A and b of each step and target."""

    source_weights: Float[np.ndarray, "steps k l l"]
    own_weights: Float[np.ndarray, "steps k l"]


def replacement_matrix(
    source: TokenizedPrompt, target: TokenizedPrompt, tokens: int = TOKENS
) -> Float[np.ndarray, "l l"]:
    """M of a replacement of words by as many words: rows are tokens of the source.

    As published, tokens behind the last changed word are not shifted back where a word's number of tokens
    changed. Raises UserError where the prompts have different numbers of words.
    """
    ours, theirs = source.words, target.words
    if len(ours) != len(theirs):
        raise UserError(
            f"replace needs prompts of equally many words, but {source.text!r} has {len(ours)} and "
            f"{target.text!r} has {len(theirs)}; controller=refine takes prompts of any length"
        )
    blocks = [
        (word_positions(source, i), word_positions(target, i))
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if a != b
    ]
    blocks = [(s, d) for s, d in blocks if s and d]
    matrix = np.zeros((tokens, tokens), np.float32)
    i = j = 0
    while i < tokens and j < tokens:
        if blocks and i == blocks[0][0][0]:
            rows, columns = blocks.pop(0)
            if len(rows) == len(columns):
                matrix[rows, columns] = 1
            else:
                matrix[np.ix_(rows, columns)] = 1 / len(columns)
            i, j = i + len(rows), j + len(columns)
        else:
            matrix[i if blocks else j, j] = 1
            i, j = i + 1, j + 1
    return matrix


def align(source: Sequence[int], target: Sequence[int]) -> Int[np.ndarray, "n"]:
    """The partner in the source of each token of the target, or -1 (Needleman and Wunsch 1970).

    A match counts 1, a mismatch -1, a gap 0. On ties, going back from the end, a target token without a
    partner is taken first, then a source token without one.
    """
    rows, columns = len(source), len(target)
    score = np.zeros((rows + 1, columns + 1), int)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            same = 1 if source[i - 1] == target[j - 1] else -1
            score[i, j] = max(score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + same)
    partners = np.full(columns, -1)
    i, j = rows, columns
    while i > 0 and j > 0:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def refinement(
    source: Sequence[int], target: Sequence[int], tokens: int = TOKENS
) -> tuple[Int[np.ndarray, "l"], Float[np.ndarray, "l"]]:
    """m and a of a refinement, from token ids with start and end tokens: the position in the source of each
    token of the target (-1: none), and 1 where there is one. Padding is its own partner."""
    mapper = np.arange(tokens)
    mapper[: len(target)] = align(source, target)
    return mapper, (mapper >= 0).astype(np.float32)


def refinement_matrix(
    source: TokenizedPrompt, target: TokenizedPrompt, tokens: int = TOKENS
) -> tuple[Float[np.ndarray, "l l"], Float[np.ndarray, "l"]]:
    """M and a of a refinement."""
    mapper, alphas = refinement(source.ids, target.ids, tokens)
    matrix = np.zeros((tokens, tokens), np.float32)
    matrix[mapper, np.arange(tokens)] = alphas
    return matrix, alphas


def equalizer(
    target: TokenizedPrompt, values: Mapping[str | int, float], tokens: int = TOKENS
) -> Float[np.ndarray, "l"]:
    """e: the value of each given word (by its text or number) at its positions in a target, and else 1."""
    factors = np.ones(tokens, np.float32)
    for word, value in values.items():
        factors[word_positions(target, word)] = value
    return factors


def time_weights(
    targets: Sequence[TokenizedPrompt],
    default: Window,
    words: Mapping[str | int, Window],
    num_inference_steps: int,
    tokens: int = TOKENS,
) -> Float[np.ndarray, "times k l"]:
    """tau: 1 at the steps at which a token's map is the edited one.

    `default` is the window of all tokens, `words` gives windows of their own to words. As published, windows
    are cut from an axis that has one step more than there are.
    """
    tau = np.zeros((num_inference_steps + 1, len(targets), tokens), np.float32)

    def fill(window: Window, k: int | slice, positions: Sequence[int] | slice) -> None:
        start, end = window_steps(window, num_inference_steps + 1)
        weights = np.zeros(num_inference_steps + 1, np.float32)
        weights[start:end] = 1
        tau[:, k, positions] = weights[:, None] if isinstance(k, int) else weights[:, None, None]

    fill(default, slice(None), slice(None))
    for word, window in words.items():
        for k, target in enumerate(targets):
            if positions := word_positions(target, word):
                fill(window, k, positions)
    return tau


def window_steps(window: Window, steps: int) -> tuple[int, int]:
    """The first step of a window and the one behind its last. Bounds are cut as Python's int() cuts them."""
    start, end = (0.0, window) if isinstance(window, int | float) else window
    return int(start * steps), int(end * steps)


def text_tables(
    matrices: Float[np.ndarray, "k l l"],
    alphas: Float[np.ndarray, "k l"],
    factors: Float[np.ndarray, "#k l"],
    tau: Float[np.ndarray, "times k l"],
) -> TextTables:
    """A and b from M, a, e and tau, for as many steps as tau has but one."""
    tau, scaled = tau[:-1], alphas * factors
    own = factors * (1 - alphas) * tau + (1 - tau)
    return TextTables(matrices[None] * (scaled * tau)[:, :, None, :], own.astype(np.float32))
