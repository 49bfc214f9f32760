"""Intervals of many means at once: one for each cell of a grid, over pairs or paragraphs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechmem.data.bounds import Count, Level, Seed, checked
from mechmem.data.errors import InputError

# Means of all draws held at once: 8 bytes each.
_CHUNK = 4_000_000


@checked
def cell_intervals(
    values: Float[np.ndarray, "paragraph ..."],
    clusters: np.ndarray,
    *,
    draws: Count = 2000,
    seed: Seed = 0,
    level: Level = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of `cluster_bootstrap` for the mean of every cell, all from the same draws.

    Each interval is about one cell alone: of many cells, 5 % lie outside theirs.

    Args:
        values: of each paragraph in each cell; a cell with a NaN has no interval.
        clusters: label of each paragraph's cluster, [paragraph].
        draws: how many resamples.
        seed: of the resampling.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), one for each cell, in the values' unit; NaN where a value is missing.

    Raises:
        InputError: no paragraph, or labels of another length.
    """
    if not len(values) or np.shape(clusters) != (len(values),):
        raise InputError(
            f"got {len(values)} values in every cell and clusters of shape {list(np.shape(clusters))}; need at least 1 "
            "value, and one label for each"
        )
    labels, members = np.unique(clusters, return_inverse=True)
    chosen = np.random.default_rng(seed).integers(0, len(labels), size=(draws, len(labels)))
    # How often each draw took each cluster.
    taken = np.zeros((draws, len(labels)))
    np.add.at(taken, (np.arange(draws)[:, None], chosen), 1.0)
    weights = taken / (taken @ np.bincount(members))[:, None]
    flat = values.reshape(len(values), -1)
    whole = np.flatnonzero(np.isfinite(flat).all(0))
    ends = np.full((2, flat.shape[1]), np.nan)
    step = max(1, _CHUNK // draws)
    for start in range(0, len(whole), step):
        cells = whole[start : start + step]
        sums = np.zeros((len(labels), len(cells)))
        np.add.at(sums, members, flat[:, cells])
        ends[:, cells] = np.quantile(weights @ sums, [(1 - level) / 2, (1 + level) / 2], axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high
