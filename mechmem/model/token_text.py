"""The text of single tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor


def token_texts(tokenizer: Any, tokens: Int[Tensor, "paragraph pos"]) -> np.ndarray:
    """The text of each token, [paragraph, pos]; part of a character reads as U+FFFD.

    Args:
        tokenizer: the model's; None: the ids themselves, as text.
        tokens: ids.
    """
    ids, places = np.unique(tokens.cpu().numpy(), return_inverse=True)
    texts = [str(token) if tokenizer is None else str(tokenizer.decode([token])) for token in ids.tolist()]
    return np.array(texts, dtype=object)[places.reshape(tuple(tokens.shape))]
