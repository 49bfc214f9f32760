"""Intervals for paragraphs that are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Integer, Num

from mechmem.data.errors import InputError

# Chosen clusters of all draws held at once: 8 bytes each.
_CHUNK = 4_000_000


def cluster_bootstrap(
    values: Num[np.ndarray, " value"],
    clusters: np.ndarray,
    *,
    statistic: Callable[..., object] = np.mean,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic, by resampling whole clusters with replacement.

    Near-duplicate paragraphs rise and fall together: resampled one by one they would make the interval too narrow.

    1. Draw as many clusters as there are, with replacement.
    2. Take all values of each drawn cluster, as often as it was drawn, and compute the statistic.
    3. Repeat; the interval holds the middle `level` of the results.

    Args:
        values: one number a paragraph, [value].
        clusters: label of each value's cluster, [value]; any type that sorts.
        statistic: of a one-axis array; the mean is computed from cluster sums, much faster.
        draws: how many resamples.
        seed: of the resampling.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), in the unit of the statistic. With one cluster alone, both are the statistic itself: nothing is
        known about how clusters vary.

    Raises:
        InputError: no value, a value that is not finite, labels of another length, or a level outside 0..1.
    """
    values, clusters = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    _check(values, clusters, draws, level)
    labels, members = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(labels))
    results = []
    for start in range(0, draws, chunk):
        chosen = rng.integers(0, len(labels), size=(min(chunk, draws - start), len(labels)))
        if statistic is np.mean:
            results.append(_means(values, members, chosen))
        else:
            results.append(_statistics(values, members, chosen, statistic))
    low, high = np.quantile(np.concatenate(results), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(
    values: Float[np.ndarray, " value"],
    members: Integer[np.ndarray, " value"],
    chosen: Integer[np.ndarray, "draw cluster"],
) -> Float[np.ndarray, " draw"]:
    sums, sizes = np.bincount(members, values), np.bincount(members)
    return sums[chosen].sum(1) / sizes[chosen].sum(1)


def _statistics(
    values: Float[np.ndarray, " value"],
    members: Integer[np.ndarray, " value"],
    chosen: Integer[np.ndarray, "draw cluster"],
    statistic: Callable[..., object],
) -> Float[np.ndarray, " draw"]:
    order = np.argsort(members, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(members))[:-1])
    return np.array([statistic(values[np.concatenate([rows[c] for c in draw])]) for draw in chosen], dtype=np.float64)


def _check(values: np.ndarray, clusters: np.ndarray, draws: int, level: float) -> None:
    if values.ndim != 1 or clusters.shape != values.shape:
        raise InputError(
            f"values of shape {list(values.shape)} and clusters of shape {list(clusters.shape)} came; wanted one label "
            "for each value, both with one axis"
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError("no value came, or one that is not finite; wanted numbers: drop missing values first")
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"draws is {draws} and level {level}; wanted at least 1 and 0 < level < 1, for example 0.95")
