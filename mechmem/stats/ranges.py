"""What measured quantities can be, so that no interval says otherwise.

A range is (least, largest), with None where there is no end. The interval of a mean of few clusters is wide, and may
reach beyond it: below an EM of 0, above a share of 1. It is cut there. The truth lies within its range, so a cut
interval holds it as often as before.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechmem.data.bounds import Factor
from mechmem.data.errors import InputError

# (least, largest), always two.
Range = tuple[Factor | None, ...]

ANY: Range = (None, None)
NOT_NEGATIVE: Range = (0.0, None)
SHARE: Range = (0.0, 1.0)
CORRELATION: Range = (-1.0, 1.0)

_TOKENS = ("em", "edit_distance")
_SHARES = ("exact_fraction", "match_fraction", "changed_top1", "p_extractable")
_NOT_NEGATIVE = ("nll", "min_k_nll", "kl", "oracle_kl", "oracle_scale", "oracle_distance")
# What rounding may leave beyond an end, as a share of it, or of 1.
_ROUNDING = 1e-4


def token_range(continuation_len: int) -> Range:
    """Of EM, edit distance and runs: from no token to all of the continuation."""
    return (0.0, float(continuation_len))


def change_of(given: Range) -> Range:
    """Of the difference of two values with this range."""
    low, high = given
    return ANY if low is None or high is None else (low - high, high - low)


def range_of(measure: str, continuation_len: int) -> Range:
    """The range of a measure by its name in results; `NAME_change` has that of a difference.

    Raises:
        KeyError: a measure that is not known here; its range must be added.
    """
    if measure.endswith("_change"):
        return change_of(range_of(measure.removesuffix("_change"), continuation_len))
    ranges: dict[str, Range] = dict.fromkeys(_TOKENS, token_range(continuation_len))
    ranges |= dict.fromkeys(_SHARES, SHARE) | dict.fromkeys(_NOT_NEGATIVE, NOT_NEGATIVE)
    return ranges[measure]


def cut(
    within: Range,
    estimates: tuple[Float[np.ndarray, " cell"], ...],
    low: Float[np.ndarray, " cell"],
    high: Float[np.ndarray, " cell"],
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Ends of intervals within a range.

    Args:
        within: the range.
        estimates: what must lie in it, or else the range is that of another quantity.
        low: the lower ends.
        high: the upper ends.

    Raises:
        InputError: not two ends, a range without width, or an estimate beyond it.
    """
    if len(within) != 2:
        raise InputError(f"got {len(within)} values as within; need 2, the least and the largest: (0, 1) for shares")
    least, largest = (-np.inf if within[0] is None else within[0], np.inf if within[1] is None else within[1])
    if least >= largest:
        raise InputError(f"got {within} as within; need the least value first, then the largest: (0, 1) for shares")
    slack = _ROUNDING * max(1.0, *(abs(end) for end in within if end is not None), 0.0)
    for estimate in estimates:
        if ((estimate < least - slack) | (estimate > largest + slack)).any():
            raise InputError(
                f"got within={within}, and values whose statistic is {estimate.min():g} to {estimate.max():g}; need "
                "the range of this statistic: (0, 1) for shares, (-1, 1) for their differences"
            )
    return np.clip(low, least, largest), np.clip(high, least, largest)
