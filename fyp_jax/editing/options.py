"""The options of an edit, as configs and the command line give them."""

import dataclasses
import math

from fyp_jax.config import config_field
from fyp_jax.errors import UserError

METHODS = {
    "fatezero": "a real clip, by the rules of FateZero",
    "p2p": "a real clip, by the rules of prompt-to-prompt",
    "generate": "no clip: source and edit are generated beside each other (prompt-to-prompt)",
}
CONTROLLERS = ("auto", "replace", "refine", "reweight")


@dataclasses.dataclass
class EditOptions:
    """Which attention an edit takes from its source, in which steps, and which latents."""

    method: str = config_field("fatezero", f"{', '.join(METHODS)}: whose rules, and whether there is a clip")
    controller: str = config_field(
        "auto", "replace, refine or reweight (equal prompts); auto: replace for equally many words"
    )
    cross_replace_steps: float = config_field(0.8, "fraction of the steps to which text attention is edited")
    cross_replace_start: float = config_field(0.0, "fraction of the steps from which it is")
    word_replace_steps: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "windows of single words: WORD=END or WORD=START:END"}
    )
    self_replace_steps: float = config_field(
        0.5, "fraction of the steps up to which attention within and across frames is the source's"
    )
    self_replace_start: float = config_field(0.0, "fraction of the steps from which it is")
    equalizer: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "factors of words of the prompt: 'Van Gogh=5' (--emphasise)"}
    )
    blend_words: list[str] = dataclasses.field(
        default_factory=list,
        metadata={"help": "words of the part that changes: of the source, then of each prompt if others"},
    )
    blend_threshold: float = config_field(0.3, "a mask has what is over this fraction of a frame's maximum")
    blend_self_attention: bool = config_field(
        False, "take the source's attention outside of the mask alone (needs blend_words)"
    )
    blend_latents: bool = config_field(
        False, "keep the source's latents outside of the mask (needs blend_words)"
    )
    blend_start: float = config_field(0.2, "fraction of the steps after which latents are kept")
    blend_end: float | None = config_field(
        None, "fraction of the steps up to which they are; null: 0.8 (fatezero), or all"
    )
    cross_level: int | None = config_field(
        None, "highest level (0: the latents' side) of edited text attention; null: 1 (fatezero), 0"
    )
    self_level: int = config_field(1, "highest level at which self_replace_steps counts")
    map_level: int = config_field(2, "level of the word maps that make masks")
    null_text: bool = config_field(
        False, "p2p: fit embeddings of the empty text so that the source's own row gives the clip again"
    )

    def check(self) -> None:
        """Raise UserError for values that have the right type but make no edit."""
        if self.method not in METHODS:
            raise UserError(f"method={self.method} is none of {', '.join(METHODS)}")
        if self.controller not in CONTROLLERS:
            raise UserError(f"controller={self.controller} is none of {', '.join(CONTROLLERS)}")
        for name in ("cross_replace", "self_replace"):
            start, end = getattr(self, f"{name}_start"), getattr(self, f"{name}_steps")
            check_window(f"{name}_start={start} {name}_steps={end}", start, end)
        end = 1.0 if self.blend_end is None else self.blend_end
        check_window(f"blend_start={self.blend_start} blend_end={end}", self.blend_start, end)
        if not math.isfinite(self.blend_threshold) or self.blend_threshold < 0:
            raise UserError(f"blend_threshold={self.blend_threshold} is not 0 or more")
        for name in ("blend_self_attention", "blend_latents"):
            if getattr(self, name) and not self.blend_words:
                raise UserError(f"{name}=true needs blend_words (--keep-background WORDS) for its mask")
        if self.method == "generate" and self.blend_self_attention:
            raise UserError("blend_self_attention=true needs a clip: its mask is made before; leave it out")
        if self.null_text and self.method != "p2p":
            raise UserError(f"null_text=true is for method=p2p, and not for method={self.method}")
        for name in ("cross_level", "self_level", "map_level"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name}={getattr(self, name)} is not 0 or more")
        word_values("equalizer", self.equalizer)
        word_windows(self.word_replace_steps)

    def blend_window(self) -> tuple[float, float | None]:
        """Fractions of the steps after which, and up to which, latents are kept; None: to the end."""
        end = 0.8 if self.blend_end is None and self.method == "fatezero" else self.blend_end
        return self.blend_start, end


def keep_background(options: EditOptions, words: list[str]) -> EditOptions:
    """The options with which an edit changes what the words name, and keeps the rest of the source."""
    clip = options.method != "generate"
    return dataclasses.replace(options, blend_words=words, blend_latents=True, blend_self_attention=clip)


def check_window(what: str, start: float, end: float) -> None:
    """Raise UserError for fractions that are no part of a run; an empty window from 0 to 0 turns it off."""
    if not 0 <= start <= 1 or not 0 <= end <= 1:
        raise UserError(f"{what}: fractions of the steps are between 0 and 1")
    if start >= end and (start, end) != (0, 0):
        raise UserError(f"{what}: this window is empty; its start comes before its end")


def word_values(option: str, texts: list[str]) -> dict[str, float]:
    """The number of each phrase of WORDS=NUMBER. Raises UserError."""
    found = {}
    for text in texts:
        phrase, equals, number = text.rpartition("=")
        value = _number(number)
        if not equals or not phrase.strip() or value is None:
            raise UserError(f"{option}: {text!r} is not of the form WORDS=NUMBER, such as 'Van Gogh=5'")
        found[phrase.strip()] = value
    return found


def word_windows(texts: list[str]) -> dict[str, tuple[float, float]]:
    """The window of each phrase of WORDS=END or WORDS=START:END. Raises UserError."""
    found = {}
    for text in texts:
        phrase, equals, window = text.rpartition("=")
        first, colon, last = window.partition(":")
        start, end = (_number(first), _number(last)) if colon else (0.0, _number(first))
        if not equals or not phrase.strip() or start is None or end is None:
            raise UserError(f"word_replace_steps: {text!r} is not of the form WORD=END or WORD=START:END")
        check_window(f"word_replace_steps: {text}", start, end)
        found[phrase.strip()] = (start, end)
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
