"""An edit, ready to run: its options and its prompts become the tables of each step."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from fyp_jax.editing.options import EditOptions, word_values, word_windows
from fyp_jax.editing.tables import (
    TextTables,
    equalizer,
    refinement_matrix,
    replacement_matrix,
    text_tables,
    time_weights,
    window_steps,
)
from fyp_jax.editing.words import TokenizedPrompt, find_words, is_for, word_positions
from fyp_jax.errors import UserError
from fyp_jax.models.attention_edit import AttentionEdit, LevelEdits


@dataclasses.dataclass(frozen=True, eq=False)
class EditPlan:
    """The tables of all steps of an edit of one source into k targets."""

    options: EditOptions
    num_inference_steps: int
    levels: int
    """Number of levels of the UNet."""
    text: TextTables
    words: Float[np.ndarray, "rows l 1"] | None
    """Blend words of the source and the targets; None: no mask."""

    @property
    def generated(self) -> bool:
        """Whether the source is generated beside its targets."""
        return self.options.method == "generate" or self.options.null_text

    @property
    def reads_words(self) -> bool:
        """Whether the steps read word maps: of the targets, to keep latents outside of a mask."""
        return self.options.blend_latents

    def self_replaced(self, step: int) -> bool:
        """Whether attention within and across frames is the source's at this step."""
        window = self.options.self_replace_start, self.options.self_replace_steps
        start, end = window_steps(window, self.num_inference_steps)
        return start <= step < end

    def keeps_latents(self, step: int) -> bool:
        """Whether the latents outside of the mask are the source's behind this step."""
        start, end = self.options.blend_window()
        after = int(start * self.num_inference_steps)
        before = self.num_inference_steps + 1 if end is None else int(end * self.num_inference_steps)
        return self.options.blend_latents and after < step + 1 < before

    def level_edits(self, step: int, own: Mapping[int, Any]) -> LevelEdits:
        """The edit of one step; `own` has the mask of each level whose self-attention is edited, bool [k f q]
        or [k f 1] (`AttentionEdit`)."""
        options, a, b = self.options, self.text.source_weights[step], self.text.own_weights[step]
        highest = options.cross_level
        if highest is None:
            highest = 1 if options.method == "fatezero" else 0
        edits = {}
        for level in range(self.levels):
            edit = AttentionEdit(own=own.get(level))
            if level >= highest and (a.any() or (b != 1).any()):
                edit = edit._replace(source_weights=a, own_weights=b)
            if level == options.map_level and self.reads_words and self.words is not None:
                edit = edit._replace(**self._words(a, b))
            if any(x is not None for x in edit):
                edits[level] = edit
        return edits

    def _words(self, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
        assert self.words is not None
        if self.options.method == "fatezero":  # as published: maps of the targets' own attention
            return {"words": self.words}
        targets = self.words[1:]
        words = np.concatenate([self.words[:1], targets * b[:, :, None]])
        return {"words": words, "source_words": a @ targets}


def make_plan(
    options: EditOptions,
    source: TokenizedPrompt,
    targets: Sequence[TokenizedPrompt],
    num_inference_steps: int,
    levels: int,
    tokens: int,
) -> EditPlan:
    """The plan of an edit.

    Raises UserError for words that are in no prompt, prompts that do not fit the controller, prompts that are
    too long, windows without a step, and levels that the model does not have.
    """
    options.check()
    for prompt in (source, *targets):
        if not prompt.strings:
            raise UserError(
                "an edit needs a source prompt, which says what the clip shows: give --source TEXT"
            )
        prompt.check_length(tokens)
    for name in ("cross_level", "self_level", "map_level"):
        if (getattr(options, name) or 0) >= levels and (name != "map_level" or options.blend_words):
            raise UserError(f"{name}={getattr(options, name)}: this model has levels 0 to {levels - 1}")
    _check_windows(options, num_inference_steps)
    pairs = [_matrix(options.controller, source, target, tokens) for target in targets]
    matrices, alphas = (np.stack(parts) for parts in zip(*pairs, strict=True))
    factors = np.stack([_factors(options, target, targets, tokens) for target in targets])
    window = options.cross_replace_start, options.cross_replace_steps
    tau = time_weights(targets, window, {}, num_inference_steps, tokens)
    for phrase, own in word_windows(options.word_replace_steps).items():
        for k, target in enumerate(targets):
            windows = {number: own for number in _found(target, phrase, "word_replace_steps", targets)}
            tau[:, k : k + 1] = _with_windows(tau[:, k : k + 1], target, windows, num_inference_steps, tokens)
    words = _blend_words(options, source, targets, tokens) if options.blend_words else None
    tables = text_tables(matrices, alphas, factors, tau)
    plan = EditPlan(options, num_inference_steps, levels, tables, words)
    if options.blend_latents and not any(map(plan.keeps_latents, range(num_inference_steps))):
        raise UserError(
            f"blend_start={options.blend_start} blend_end={options.blend_window()[1]} has no step of "
            f"num_inference_steps={num_inference_steps}: widen the window or take more steps"
        )
    return plan


def _with_windows(
    tau: np.ndarray, target: TokenizedPrompt, windows: dict, num_inference_steps: int, tokens: int
) -> np.ndarray:
    own = time_weights([target], (0.0, 0.0), windows, num_inference_steps, tokens)
    positions = [x for word in windows for x in word_positions(target, word)]
    tau = tau.copy()
    tau[:, :, positions] = own[:, :, positions]
    return tau


def _check_windows(options: EditOptions, steps: int) -> None:
    windows = {
        "cross_replace_steps": (steps + 1, (options.cross_replace_start, options.cross_replace_steps)),
        "self_replace_steps": (steps, (options.self_replace_start, options.self_replace_steps)),
    }
    for phrase, window in word_windows(options.word_replace_steps).items():
        windows[f"word_replace_steps: {phrase}"] = (steps + 1, window)
    for name, (axis, window) in windows.items():
        start, end = window_steps(window, axis)
        if window != (0, 0) and start >= end:
            raise UserError(
                f"{name}={window[1]} from {window[0]} has no step of num_inference_steps={steps}: "
                "widen the window or take more steps"
            )


def _matrix(
    controller: str, source: TokenizedPrompt, target: TokenizedPrompt, tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    if controller == "reweight":
        if source.text != target.text:
            raise UserError(
                f"controller=reweight is for equal prompts, not {source.text!r} and {target.text!r}; "
                "refine and replace take the equalizer, too"
            )
        return np.eye(tokens, dtype=np.float32), np.ones(tokens, np.float32)
    same = len(source.words) == len(target.words)
    if controller == "refine" or (controller == "auto" and not same):
        return refinement_matrix(source, target, tokens)
    return replacement_matrix(source, target, tokens), np.ones(tokens, np.float32)


def _found(
    target: TokenizedPrompt, phrase: str, option: str, targets: Sequence[TokenizedPrompt]
) -> list[int]:
    """Numbers of the words in a target; none where another target has them.

    Raises UserError where no target has them.
    """
    return find_words(target, phrase, option) if is_for(target, targets, phrase) else []


def _factors(
    options: EditOptions, target: TokenizedPrompt, targets: Sequence[TokenizedPrompt], tokens: int
) -> np.ndarray:
    values: dict[str | int, float] = {}
    for phrase, value in word_values("equalizer", options.equalizer).items():
        values |= dict.fromkeys(_found(target, phrase, "equalizer", targets), value)
    return equalizer(target, values, tokens)


def _blend_words(
    options: EditOptions, source: TokenizedPrompt, targets: Sequence[TokenizedPrompt], tokens: int
) -> np.ndarray:
    """Indicators of the blend words' tokens. With the source's words alone, a target's are the same words, or
    else those in the same places."""
    first, *others = options.blend_words
    numbers = find_words(source, first, "blend_words")
    if others and len(others) not in (1, len(targets)):
        raise UserError(
            f"blend_words has {1 + len(others)} entries: give the source's words, and if they differ those "
            f"of the prompts, one entry for all or one for each of {len(targets)}"
        )
    words = np.zeros((1 + len(targets), tokens, 1), np.float32)
    for k, target in enumerate(targets):
        if others:
            chosen = find_words(target, others[min(k, len(others) - 1)], "blend_words")
        elif len(target.words) == len(source.words):
            chosen = numbers
        else:
            chosen = find_words(target, first, "blend_words")
        words[1 + k, [x for word in chosen for x in word_positions(target, word)]] = 1
    words[0, [x for word in numbers for x in word_positions(source, word)]] = 1
    return words
