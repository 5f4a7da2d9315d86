"""Words of a prompt, and the text tokens that they became.

A prompt's words are what single spaces divide. Tokens are given as strings, in order, without the start and
the end token and without marks of the ends of words, so that no tokenizer is needed here.
"""

from collections.abc import Iterable
from typing import NamedTuple

from fyp_jax.errors import UserError


class TokenizedPrompt(NamedTuple):
    """A prompt and its tokens."""

    text: str
    ids: tuple[int, ...]
    """Token ids with the start and the end token, without padding."""
    strings: tuple[str, ...]
    """The text of each token between start and end token."""

    @property
    def words(self) -> list[str]:
        return self.text.split(" ")

    def check_length(self, tokens: int) -> None:
        """Raise UserError for a prompt of more tokens than a text encoder takes."""
        if len(self.ids) > tokens:
            raise UserError(
                f"prompt {self.text!r} has {len(self.ids)} tokens, more than {tokens}: shorten it"
            )


def word_positions(prompt: TokenizedPrompt, word: str | int) -> list[int]:
    """Positions in the text (0 is the start token) of a word: of one by its number, or of all equal ones.

    Tokens belong to words by length, as in the published code of prompt-to-prompt (`get_word_inds`). A word
    that the prompt does not have has no positions.
    """
    words = prompt.words
    wanted = {word} if isinstance(word, int) else {i for i, x in enumerate(words) if x == word}
    positions, current, length = [], 0, 0
    for number, token in enumerate(prompt.strings):
        if current in wanted:
            positions.append(number + 1)
        length += len(token)
        if current < len(words) and length >= len(words[current]):
            current, length = current + 1, 0
    return positions


def find_words(prompt: TokenizedPrompt, phrase: str, option: str) -> list[int]:
    """Numbers of the words of a prompt that a user means by one or several words.

    Words are compared as they stand, and else without case and without punctuation around them. Raises
    UserError, which names the `option`, for a word that the prompt does not have.
    """
    found: list[int] = []
    for word in phrase.split():
        exact = [i for i, x in enumerate(prompt.words) if x == word]
        numbers = exact or [i for i, x in enumerate(prompt.words) if _plain(x) == _plain(word)]
        if not numbers:
            raise UserError(f"{option}: {word!r} is not a word of the prompt {prompt.text!r}")
        found += numbers
    if not found:
        raise UserError(f"{option}: {phrase!r} has no words")
    return found


def has_words(prompt: TokenizedPrompt, phrase: str) -> bool:
    """Whether a prompt has all words that a user means by a phrase."""
    try:
        find_words(prompt, phrase, "")
    except UserError:
        return False
    return True


def is_for(target: TokenizedPrompt, targets: Iterable[TokenizedPrompt], phrase: str) -> bool:
    """Whether an option of this phrase is for a target: all but those that only other targets have."""
    return has_words(target, phrase) or not any(has_words(other, phrase) for other in targets)


def _plain(word: str) -> str:
    return word.strip(".,;:!?\"'()").casefold() or word
