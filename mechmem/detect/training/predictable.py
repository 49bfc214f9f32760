"""Text that is easy to continue and that nobody memorized: what would fool a detector of ease."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs

# Tokens that repeat: fewer are often one word, more repeat too seldom within a prefix.
SHORTEST, LONGEST = 8, 16


def repeated_prefixes(paragraphs: Paragraphs, seed: int) -> Int[Tensor, "paragraph prefix_pos"]:
    """Prefixes that repeat their own first 8 to 16 tokens to their end; fewer where the prefix is short."""
    prefix = paragraphs.prefix
    longest = max(1, min(LONGEST, prefix.shape[1] // 2))
    shortest = min(SHORTEST, longest)
    periods = np.random.default_rng(seed).integers(shortest, longest + 1, len(prefix))
    places = np.arange(prefix.shape[1])[None, :] % periods[:, None]
    return prefix.gather(1, torch.from_numpy(places).to(prefix.device))


def predictable_copies(paragraphs: Paragraphs, count: int, seed: int) -> tuple[Paragraphs, Int[np.ndarray, " copy"]]:
    """Copies of random paragraphs with repeated prefixes, and the rows that they are copies of.

    The continuation stays that of the original, so that a copy that the model continues with the training text after
    all counts as recited.
    """
    rows = np.random.default_rng(seed).permutation(len(paragraphs))[:count]
    chosen = paragraphs.select(rows)
    tokens = torch.cat([repeated_prefixes(chosen, seed), chosen.continuation], 1)
    return Paragraphs(tokens, paragraphs.prefix_len, tokenizer=paragraphs.tokenizer), rows
