"""Tokens as people read them: white space visible, parts of a character as their bytes, long tokens cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

SHOWN = {"\n": "↵", "\r": "␍", "\t": "⇥", "\0": "␀"}
LONGEST = 40


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A label for each token.

    Spaces stay; line ends and tabs become ↵ and ⇥. A token that is part of a character, as byte-level tokenizers cut
    emoji and Chinese, reads as its bytes: ‹F0 9F›. What is longer than 40 characters is cut.

    Args:
        tokenizer: the model's; None: ids are shown.
        ids: token ids.
    """
    if tokenizer is None:
        return [f" {token}" for token in ids]
    return [_label(tokenizer, int(token)) for token in ids]


def shortened(text: str) -> str:
    """A text on one line, with white space visible, cut to 40 characters."""
    line = "".join(SHOWN.get(letter, letter) for letter in text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _label(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token]))
    if "\ufffd" not in text:
        return shortened(text) or "∅"
    piece = str(tokenizer.convert_ids_to_tokens(token))
    values = [_byte_values().get(letter) for letter in piece]
    if not piece or None in values:
        return shortened(text)
    return "‹" + " ".join(f"{value:02X}" for value in values) + "›"


@cache
def _byte_values() -> dict[str, int]:
    """The byte that a letter of a byte-level vocabulary stands for: printable Latin-1 for itself, others in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(others)}
