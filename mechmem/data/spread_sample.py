"""Samples that draw on as many clusters of near-duplicates as they can."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int


def spread_sample(
    members: Int[np.ndarray, " member"],
    clusters: Int[np.ndarray, " member"],
    count: int | None,
    *,
    seed: int | list[int],
    distinct: bool = False,
) -> Int[np.ndarray, " chosen"]:
    """Some members at random, in increasing order; a cluster comes again only when every other had its turn.

    Args:
        members: rows to choose from.
        clusters: label of each.
        count: at most this many; None: all.
        seed: of the draw.
        distinct: no more than one of a cluster.
    """
    order = np.random.default_rng(seed).permutation(len(members))
    labels = pd.Series(clusters[order])
    turn = labels.groupby(labels).cumcount().to_numpy()
    order = order[np.argsort(turn, kind="stable")][: int((turn == 0).sum()) if distinct else len(turn)]
    return np.sort(members[order[:count]])
