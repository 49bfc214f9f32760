"""Steps in groups, one probe for each: a score exists at every step, however long the generation."""

from __future__ import annotations

import bisect

# First k of each bucket; the last one has no end. Early steps differ most from their neighbours.
BUCKETS: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32)


def bucket_of(k: int, buckets: tuple[int, ...] = BUCKETS) -> int:
    """Which bucket a step is in.

    Args:
        k: own tokens said so far.
        buckets: first k of each, ascending from 0.
    """
    return bisect.bisect_right(buckets, k) - 1


def buckets_with_steps(ks: tuple[int, ...], buckets: tuple[int, ...] = BUCKETS) -> tuple[int, ...]:
    """The buckets that hold at least one of these steps; the first one begins at 0.

    Where training text is short, the last bucket that it reaches serves all later steps.
    """
    kept = sorted({buckets[bucket_of(k, buckets)] for k in ks})
    return (0, *kept[1:])
