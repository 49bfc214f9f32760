"""Which windows are worth scoring: the filters of Stoehr et al. (2024), each one optional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from mechmem.data.decoding import decoded
from mechmem.data.errors import InputError

# Boilerplate of the Pile that the paper leaves out: a window whose text holds one of these, letter case as here.
PAPER_KEYWORDS = (
    "TripAdvisor",
    "href",
    "license",
    "copyright",
    "software",
    "manuscript",
    "submission",
    "distribution",
    "disclaimed",
    "limited",
)
PAPER_MIN_DISTINCT = 0.5


def distinct_enough(tokens: Integer[np.ndarray, "window pos"], min_distinct: float) -> Bool[np.ndarray, " window"]:
    """Keep the windows whose distinct tokens are at least the share `min_distinct` (0..1) of all their tokens."""
    ordered = np.sort(tokens, axis=1)
    distinct = 1 + np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1)
    return distinct >= min_distinct * tokens.shape[1]


def without_keywords(
    tokens: Integer[np.ndarray, "window pos"], keywords: Sequence[str], tokenizer: Any
) -> Bool[np.ndarray, " window"]:
    """Keep the windows whose decoded text holds none of the keywords; letter case counts.

    Raises:
        InputError: there is no tokenizer to decode with.
    """
    if tokenizer is None:
        raise InputError(
            f"got keywords {list(keywords)} and no tokenizer; need one to decode windows with: load the model with its "
            "tokenizer, or leave out keywords"
        )
    texts = decoded(tokenizer, tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return np.array([not any(keyword in text for keyword in keywords) for text in texts], dtype=bool)
