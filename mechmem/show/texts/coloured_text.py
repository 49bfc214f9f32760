"""One text as a page draws it: labels of its tokens, a number of each, and what is known about it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import tokenizer_of
from mechmem.data.paragraphs import Paragraphs
from mechmem.show.token_labels import shortened, text_labels, token_labels

# Columns of the table that a header names, with the word before the value.
FACTS = ("set", "kind", "source", "count")


class Vocabulary:
    """The tokens of some texts, each once, so that a page of many texts stays small.

    Args:
        tokenizer: the model's; None: ids are shown.
        counts: how often each token occurs in the corpus, [d_vocab]; None: not shown.

    Raises:
        InputError: counts that are not one number for each token.
    """

    def __init__(self, tokenizer: Any, counts: Any = None) -> None:
        self._tokenizer = tokenizer
        self._counts = None if counts is None else np.asarray(counts)
        if self._counts is not None and (self._counts.ndim != 1 or self._counts.dtype.kind not in "iuf"):
            raise InputError(f"got counts of shape {self._counts.shape}; need one number for each token")
        self._places: dict[tuple[int, str], int] = {}

    def text(self, ids: Sequence[int]) -> tuple[list[int], list[str]]:
        """The places of a text's tokens in `data`, and their labels."""
        labels = text_labels(self._tokenizer, ids)
        if self._counts is not None and len(ids) and max(ids) >= len(self._counts):
            raise InputError(
                f"got counts of {len(self._counts)} tokens for tokens up to {max(ids)}; need one for each token"
            )
        return [self._place(token, label) for token, label in zip(ids, labels, strict=True)], labels

    def token(self, token: int) -> int:
        """The place of one token by itself."""
        return self._place(token, token_labels(self._tokenizer, [token])[0])

    def label(self, place: int) -> str:
        """The label of the token at a place."""
        return list(self._places)[place][1]

    def _place(self, token: int, label: str) -> int:
        return self._places.setdefault((int(token), label), len(self._places))

    def data(self) -> dict[str, Any]:
        """For the page: labels, ids and counts of all tokens that were met."""
        ids = [token for token, _ in self._places]
        counts = None if self._counts is None else [int(count) for count in self._counts[ids]]
        return {"labels": [label for _, label in self._places], "ids": ids, "counts": counts}


def tokenizer_for(paragraphs: Paragraphs, given: Any) -> Any:
    """The tokenizer of these ids: the one given, or one of the same vocabulary that this process has met."""
    if given is not None or paragraphs.tokenizer is None:
        return getattr(given, "tokenizer", given)
    return tokenizer_of(paragraphs.tokenizer)


def numbers(values: np.ndarray) -> list[float | int | None]:
    """Four digits of each, as a page keeps them; None for NaN. Whole numbers stay."""
    if values.dtype.kind in "iu":
        return values.tolist()
    return [None if value != value else float(f"{value:.4g}") for value in values.astype(float).tolist()]


def facts_of(paragraphs: Paragraphs) -> list[list[str]]:
    """What the table says of each paragraph, a few words each; its id first."""
    columns = {name: paragraphs.column(name) for name in FACTS if paragraphs.has(name)}

    def fact(name: str, value: Any) -> str:
        said = f"{value:,}" if isinstance(value, np.integer) else shortened(str(value))
        return said if name in ("kind", "source") else f"{name} {said}"

    return [
        [f"id {shortened(str(known))}", *(fact(name, values[row]) for name, values in columns.items())]
        for row, known in enumerate(paragraphs.ids)
    ]


def reads_from_the_right(labels: Sequence[str]) -> bool:
    """Whether most letters of a text belong to a script that is written from right to left."""
    kinds = [unicodedata.bidirectional(letter) for label in labels for letter in label]
    return sum(kind in ("R", "AL") for kind in kinds) > sum(kind == "L" for kind in kinds)
