"""Write the CLIP vocabulary of the synthetic world, in which each word of its captions is one token.

    python scripts/make_mini_tokenizer.py [--out DIR]

It is made by byte-pair encoding (Sennrich et al. 2016), trained on the words of all captions until each word
is one token. Any other word becomes several tokens, at worst one for each byte.
"""

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from fyp_jax.console import run_console
from fyp_jax.errors import wrap_write_errors
from fyp_jax.synthetic.scenes import caption_words

MAX_TOKENS = 32
END, START_TOKEN, END_TOKEN = "</w>", "<|startoftext|>", "<|endoftext|>"
Word = tuple[str, ...]
FOLDER = Path(__file__).resolve().parents[1] / "configs" / "mini" / "pipeline" / "tokenizer"


def byte_alphabet() -> list[str]:
    """The characters that stand for the 256 bytes in the vocabularies of CLIP and GPT-2, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def merge(word: Word, pair: tuple[str, str]) -> Word:
    """Merge each occurrence of a pair of neighbouring symbols, from the left."""
    merged: list[str] = []
    i = 0
    while i < len(word):
        step = 2 if word[i : i + 2] == pair else 1
        merged.append("".join(word[i : i + step]))
        i += step
    return tuple(merged)


def train_merges(words: set[str]) -> list[tuple[str, str]]:
    """Train byte-pair encoding: merges, in order, that turn each of the words into one token."""
    split: list[Word] = [(*word[:-1], word[-1] + END) for word in sorted(words)]
    merges = []
    while any(len(word) > 1 for word in split):
        pairs = Counter(pair for word in split for pair in pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [merge(word, best) for word in split]
    return merges


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: configs/mini's")
    args = parser.parse_args()
    merges = train_merges(caption_words())
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(byte + END for byte in alphabet), *map("".join, merges), START_TOKEN, END_TOKEN]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": START_TOKEN,
        **dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_TOKEN),
        "errors": "replace",
        "do_lower_case": True,
    }
    for name, text in {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, indent=0),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }.items():
        with wrap_write_errors(args.out / name) as file:
            file.write_text(text + "\n", encoding="utf-8")
    print(f"{args.out}: {len(tokens)} tokens")


if __name__ == "__main__":
    run_console(main)
