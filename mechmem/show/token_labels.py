"""Tokens as people read them: white space visible, characters cut between tokens put together, long tokens cut."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import Any

SHOWN = {"\n": "↵", "\t": "⇥"}
LONGEST = 40
PARTS = "₀₁₂₃₄₅₆₇₈₉"


def token_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A label for each token by itself.

    Spaces stay; line ends and tabs become ↵ and ⇥, a token of spaces alone becomes as many dots. A token that is part
    of a character, as byte-level tokenizers cut emoji and Chinese, reads as its bytes: ‹F0 9F›. What is longer than 40
    characters is cut.

    Args:
        tokenizer: the model's; None: ids are shown.
        ids: token ids.
    """
    if tokenizer is None:
        return [f" {token}" for token in ids]
    return [_label(tokenizer, int(token)) for token in ids]


def text_labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """A label for each token of a text: as `token_labels`, but a character that is cut stands at its first token.

    Its further tokens read ₂, ₃ and ₄: 中₂ is one character of two tokens. Bytes that are no character stay bytes.

    Args:
        tokenizer: the model's; None: ids are shown.
        ids: token ids, in the order of the text.
    """
    labels = token_labels(tokenizer, ids)
    parts = [None if tokenizer is None else _bytes_of_part(tokenizer, int(token)) for token in ids]
    for is_part, places in groupby(range(len(labels)), lambda place: parts[place] is not None):
        run = list(places)
        if is_part and len(run) > 1:
            for place, label in zip(run, _joined([parts[place] or b"" for place in run]), strict=True):
                labels[place] = label
    return labels


def shortened(text: str) -> str:
    """A text on one line, with white space visible, cut to 40 characters."""
    line = "".join(_shown(letter) for letter in text)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _shown(letter: str) -> str:
    code = ord(letter)
    if code < 32:
        return SHOWN.get(letter, chr(0x2400 + code))
    return "\ufffd" if 0xD800 <= code < 0xE000 else letter


def _label(tokenizer: Any, token: int) -> str:
    text = str(tokenizer.decode([token]))
    part = _bytes_of_part(tokenizer, token)
    if part is not None:
        return _in_hexadecimal(part)
    if text and not text.strip(" "):
        return "·" * min(len(text), LONGEST)
    return _visible(text) or "∅"


def _visible(text: str) -> str:
    """As `shortened`, but letters that take no room would leave nothing to see: ‹U+200B›."""
    if text and all(unicodedata.category(letter) in ("Cf", "Zl", "Zp") for letter in text):
        return "‹" + " ".join(f"U+{ord(letter):04X}" for letter in text[:4]) + "›"
    return shortened(text)


@cache
def _byte_values() -> dict[str, int]:
    """The byte that a letter of a byte-level vocabulary stands for: printable Latin-1 for itself, others in order."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + place): value for place, value in enumerate(others)}


def _bytes_of_part(tokenizer: Any, token: int) -> bytes | None:
    """The bytes of a token of a byte-level vocabulary that is no text by itself."""
    if "\ufffd" not in str(tokenizer.decode([token])):
        return None
    piece = str(tokenizer.convert_ids_to_tokens(token))
    values = [_byte_values().get(letter) for letter in piece]
    known = [value for value in values if value is not None]
    return bytes(known) if piece and len(known) == len(values) else None


def _in_hexadecimal(part: bytes) -> str:
    return "‹" + " ".join(f"{value:02X}" for value in part) + "›"


def _joined(parts: Sequence[bytes]) -> list[str]:
    """Labels of tokens that follow one another, each with the characters that begin in it."""
    whole = b"".join(parts)
    owners = [place for place, part in enumerate(parts) for _ in part]
    labels, bare = [""] * len(parts), [b""] * len(parts)
    at = 0
    while at < len(whole):
        letter = _character(whole[at : at + 4])
        first, size = owners[at], len(letter.encode()) if letter else 1
        if letter is None:
            bare[first] += whole[at : at + 1]
        else:
            labels[first] += _visible(letter)
            for number, place in enumerate(dict.fromkeys(owners[at : at + size])):
                labels[place] += PARTS[number + 1] if number else ""
        at += size
    return [label + (_in_hexadecimal(rest) if rest else "") for label, rest in zip(labels, bare, strict=True)]


def _character(start: bytes) -> str | None:
    """The character that some bytes begin with; None: they begin with none."""
    for size in range(1, len(start) + 1):
        try:
            return start[:size].decode()
        except UnicodeDecodeError:
            continue
    return None
