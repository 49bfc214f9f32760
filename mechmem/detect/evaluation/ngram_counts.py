"""How often the n-grams of a text occur in a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Integer

from mechmem.data.bounds import Count, check_bounds
from mechmem.data.errors import InputError
from mechmem.data.hashes import window_hashes


class NgramCounts:
    """Counts of all n-grams of some documents, by their 64-bit hashes: 16 bytes for each that is distinct.

    Attributes:
        n: tokens of an n-gram.
    """

    def __init__(self, documents: Iterable[Sequence[int] | Integer[np.ndarray, " pos"]], n: int = 4):
        """Count.

        Args:
            documents: token ids; an n-gram never crosses from one to the next.
            n: tokens of an n-gram.

        Raises:
            InputError: an n below 1, or no document of n tokens.
        """
        self.n = check_bounds("n", n, Count)
        parts = [window_hashes(np.asarray(tokens, dtype=np.int64), n) for tokens in documents]
        if not any(len(part) for part in parts):
            raise InputError(f"got no document of at least {n} tokens; need the corpus that n-grams are counted in")
        self._keys, self._counts = np.unique(np.concatenate(parts), return_counts=True)

    def ending_at(self, tokens: Int[np.ndarray, "row pos"]) -> Int[np.ndarray, "row pos"]:
        """Occurrences of the n-gram that ends at each position; 0 where a row has not n tokens yet."""
        found = np.zeros(tokens.shape, np.int64)
        for row, ids in enumerate(np.asarray(tokens, dtype=np.int64)):
            hashes = window_hashes(ids, self.n)
            places = np.searchsorted(self._keys, hashes).clip(max=len(self._keys) - 1)
            found[row, self.n - 1 :] = np.where(self._keys[places] == hashes, self._counts[places], 0)
        return found
