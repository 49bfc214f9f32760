"""Long texts -> token ids, in memory and time linear in the text with a small factor."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Integer

# Characters that the tokenizer is given at once: what it makes of them takes some two hundred bytes for each.
PIECE = 2**16
# Characters that two neighbouring pieces share.
SHARED = 2**11
# Tokens on either side of a joint that both pieces agree on.
AGREED = 8


def is_long(text: str) -> bool:
    """Whether a text is worth cutting into pieces."""
    return len(text) > 2 * PIECE


def encoded(tokenizer: Any, text: str, dtype: type) -> Integer[np.ndarray, " pos"]:
    """The ids of a long text, without special tokens, as the tokenizer gives them for the whole.

    1. The text is encoded in pieces that overlap.
    2. Two pieces are joined at a place near the middle of what they share, where a token of both begins, after and
       before equal tokens. Tokenizers look no further than a word or two, so that the rest of each piece is as in the
       whole.
    3. Where there is no such place, as in one word of many thousand letters, the text is cut there: next to the cut
       the ids may differ from those of the whole.

    Args:
        tokenizer: a fast one of transformers; the text is encoded whole by any other.
        text: any text.
        dtype: of the ids.
    """
    if not getattr(tokenizer, "is_fast", False):
        return _ids(tokenizer, text, dtype)
    found: list[np.ndarray] = []
    start = 0  # where the tokens that are still to be kept begin
    left = _Piece(tokenizer, text, 0, PIECE + SHARED, dtype)
    for edge in range(PIECE, len(text), PIECE):
        right = _Piece(tokenizer, text, edge - SHARED, edge + PIECE + SHARED, dtype)
        place = left.joint(right, edge)
        if place is None:
            found.append(_ids(tokenizer, text[start:edge], dtype))
            start, left = edge, _Piece(tokenizer, text, edge, edge + PIECE + SHARED, dtype)
        else:
            found.append(left.ids[left.first(start) : left.first(place)])
            start, left = place, right
    return np.concatenate([*found, left.ids[left.first(start) :]])


class _Piece:
    """A piece of the text, encoded on its own."""

    def __init__(self, tokenizer: Any, text: str, start: int, stop: int, dtype: type) -> None:
        answer = tokenizer(text[start:stop], return_offsets_mapping=True, **OPTIONS)
        offsets = np.array(answer["offset_mapping"], dtype=np.int64).reshape(-1, 2) + start
        self.ids = np.asarray(answer["input_ids"], dtype=dtype)
        self.begins, ends = offsets[:, 0], offsets[:, 1]
        # A character of several tokens gives each of them its place: only the first one begins there.
        clean = np.ones(len(self.ids), dtype=bool)
        clean[1:] = self.begins[1:] >= ends[:-1]
        self._clean = np.flatnonzero(clean)

    def first(self, place: int) -> int:
        """The first token that begins at a character or behind it."""
        return int(np.searchsorted(self.begins, place))

    def joint(self, right: _Piece, edge: int) -> int | None:
        """The character nearest to the edge before which this piece's tokens count, and from which on the other's."""
        places = np.intersect1d(self.begins[self._clean], right.begins[right._clean])
        for place in places[np.argsort(np.abs(places - edge), kind="stable")].tolist():
            here, there = self.first(place), right.first(place)
            if min(here, there) < AGREED:
                continue
            around = self.ids[here - AGREED : here + AGREED], right.ids[there - AGREED : there + AGREED]
            if len(around[0]) == 2 * AGREED and np.array_equal(*around):
                return place
        return None


OPTIONS = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}


def _ids(tokenizer: Any, text: str, dtype: type) -> np.ndarray:
    return np.asarray(tokenizer([text], **OPTIONS)["input_ids"][0], dtype=dtype)
