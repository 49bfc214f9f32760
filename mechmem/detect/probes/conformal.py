"""A threshold whose rate of false alarms is bounded for any finite number of texts that it is taken from."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from mechmem.data.bounds import Level, checked


@checked
def conformal_threshold(null: Float[np.ndarray, " text"], false_alarms: Level) -> float:
    """The value that the statistic of a new text of the same kind exceeds with probability `false_alarms` at most.

    If n texts and the new one are exchangeable, each of the n + 1 ranks is as likely as another for the new one, so it
    is above the ceil((n + 1)(1 - a))-th smallest of the n with probability at most a (Vovk et al. 2005). Nothing is
    assumed about the statistic; ties only lower the rate.

    Args:
        null: statistics of texts that are not recited and were not used to make the statistic, sorted or not.
        false_alarms: a.

    Returns:
        Infinity where n is below 1/a - 1: so few texts bound no rate so low, and there is no alarm.
    """
    rank = allowed_rank(len(null), false_alarms)
    return math.inf if rank > len(null) else float(np.sort(null)[rank - 1])


def allowed_rank(count: int, false_alarms: float) -> int:
    """ceil((n + 1)(1 - a)), counted from 1; above n where there is none."""
    # 100 * (1 - 0.01) is 99.00000000000001 or 98.99999999999999 in floats, and means 99.
    return math.ceil(round((count + 1) * (1 - false_alarms), 9))


def conformal_p_value(null: Float[Tensor, " text"], statistic: Num[Tensor, " row"]) -> Float[Tensor, " row"]:
    """How often a text that is not recited reaches this statistic: (1 + how many of n do) / (1 + n).

    Args:
        null: sorted ascending.
        statistic: of each row.

    Returns:
        At least 1/(n + 1). p <= a exactly where the statistic exceeds `conformal_threshold(null, a)`.
    """
    below = torch.searchsorted(null, statistic.to(null.dtype).contiguous(), side="left")
    return (1 + len(null) - below).to(statistic.dtype) / (1 + len(null))
