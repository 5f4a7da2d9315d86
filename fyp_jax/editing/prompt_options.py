"""Options of an edit that name words, for one of several prompts and for prompts that came later."""

import dataclasses
from collections.abc import Sequence

from fyp_jax.editing.options import EditOptions, word_values, word_windows
from fyp_jax.editing.words import TokenizedPrompt, has_words, is_for


def options_of_prompt(options: EditOptions, targets: Sequence[TokenizedPrompt], number: int) -> EditOptions:
    """The options with which one of several prompts alone is edited as it would be beside the others.

    Blend words are those of the source and its own. Factors and windows of words that only other prompts have
    are left out; what no prompt has stays, so that `make_plan` refuses it.
    """
    target, blend_words = targets[number], options.blend_words
    if len(blend_words) == 1 + len(targets):
        blend_words = [blend_words[0], blend_words[1 + number]]

    def own(texts: list[str], phrases: Sequence[str]) -> list[str]:
        return [x for x, phrase in zip(texts, phrases, strict=True) if is_for(target, targets, phrase)]

    equalizer = [(text, *word_values("equalizer", [text])) for text in options.equalizer]
    windows = [(text, *word_windows([text])) for text in options.word_replace_steps]
    return dataclasses.replace(
        options,
        blend_words=blend_words,
        equalizer=own(options.equalizer, [phrase for _, phrase in equalizer]),
        word_replace_steps=own(options.word_replace_steps, [phrase for _, phrase in windows]),
    )


def fit_blend_words(options: EditOptions, source: str, prompts: Sequence[str]) -> EditOptions:
    """The options of a config whose prompts were replaced by others.

    Blend words of prompts that these do not have are left out: the words in the same places are meant.
    Without the source's blend words there is no mask, and nothing is kept.
    """
    if not options.blend_words:
        return options
    first, *others = options.blend_words
    texts = [" ".join(text.split()) for text in (source, *prompts)]
    tokenized = [TokenizedPrompt(text, (), ()) for text in texts]
    if not has_words(tokenized[0], first):
        return dataclasses.replace(options, blend_words=[], blend_latents=False, blend_self_attention=False)
    if len(others) not in (0, 1, len(prompts)):
        return dataclasses.replace(options, blend_words=[first])
    fit = all(has_words(x, others[min(k, len(others) - 1)]) for k, x in enumerate(tokenized[1:]) if others)
    return options if fit else dataclasses.replace(options, blend_words=[first])
