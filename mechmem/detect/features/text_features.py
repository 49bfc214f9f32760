"""The tokens alone, as a classifier of text sees them: counts of hashed uni- and bigrams."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from mechmem.data.hashes import window_hashes

# Columns; each token and each pair of neighbours falls into one of them, with a sign (Weinberger et al. 2009).
BUCKETS = 256


def hashed_counts(
    tokens: Int[np.ndarray, "row pos"], prefix_len: int, ks: tuple[int, ...], buckets: int = BUCKETS
) -> Float[np.ndarray, "row k bucket"]:
    """Signed counts of the uni- and bigrams of each text up to its k-th own token, scaled to length 1.

    Args:
        tokens: prefix and own tokens.
        prefix_len: tokens of the prefix, which count too.
        ks: numbers of own tokens, in rising order.
        buckets: columns.
    """
    found = np.zeros((len(tokens), len(ks), buckets), np.float32)
    for row, ids in enumerate(np.asarray(tokens, dtype=np.int64)):
        counts, start = np.zeros(buckets), 0
        grams = [window_hashes(ids, n) for n in (1, 2)]
        for index, k in enumerate(ks):
            stop = prefix_len + k
            for n, hashes in enumerate(grams):
                # The bigram at a place ends one token later.
                new = hashes[max(start - n, 0) : stop - n]
                # The lowest bits of a polynomial hash are weak: columns and signs come from the highest.
                columns = ((new >> np.uint64(33)) % np.uint64(buckets)).astype(np.int64)
                np.add.at(counts, columns, np.where(new >> np.uint64(63), 1.0, -1.0))
            found[row, index], start = counts / max(float(np.linalg.norm(counts)), 1e-9), stop
    return found
