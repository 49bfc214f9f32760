"""The largest of some values."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, Shaped

from mechmem.data.errors import InputError


def largest(values: Shaped[np.ndarray, "*axis"], count: int) -> Int64[np.ndarray, " chosen"]:
    """Flat indices of the largest values, largest first; of equal values the earlier, NaN last.

    Args:
        values: of any shape; indices count them row by row.
        count: how many; all of them if there are fewer.
    """
    # Negated whole numbers and booleans could wrap around.
    return np.argsort(-np.asarray(values, dtype=np.float64), axis=None, kind="stable")[:count]


def share_of(total: int, fraction: float, example: float) -> int:
    """How many a fraction of a total is, rounded; at least one.

    Raises:
        InputError: a fraction that is not above 0 and at most 1; the sentence gives an example.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"got fraction {fraction}; need 0 < fraction <= 1, for example {example}")
    return max(1, round(fraction * total))
