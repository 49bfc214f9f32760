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
    check_clustered(values, clusters)
    _check_draws(draws, level)
    labels, members = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(labels))
    results = []
    for start in range(0, draws, chunk):
        chosen = rng.integers(0, len(labels), size=(min(chunk, draws - start), len(labels)))
        if statistic is np.mean:
            results.append(_means(values, members, chosen, len(labels)))
        else:
            results.append(_statistics(values, members, chosen, len(labels), statistic))
    low, high = np.quantile(np.concatenate(results), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def cluster_bootstrap_difference(
    first: Num[np.ndarray, " first_value"],
    second: Num[np.ndarray, " second_value"],
    first_clusters: np.ndarray,
    second_clusters: np.ndarray,
    *,
    statistic: Callable[..., object] = np.mean,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of statistic(first) - statistic(second), by resampling whole clusters with replacement.

    Clusters of both sets are drawn together from one urn, so that a cluster with values in both brings both: what its
    values share cancels in the difference, as it does in the data. Draws that leave a set empty are drawn again.

    Args:
        first: one number a paragraph of the first set.
        second: those of the second set; for pairs, give the differences to `cluster_bootstrap` instead.
        first_clusters: label of each value's cluster; equal labels in both sets mean one cluster.
        second_clusters: those of the second set, of the same type.
        statistic: of a one-axis array; the mean is computed from cluster sums, much faster.
        draws: how many resamples.
        seed: of the resampling.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), in the unit of the statistic; above 0: the first set is higher. A set that is one cluster adds
        nothing to the interval, for nothing is known about how its clusters vary.

    Raises:
        InputError: a set without values, a value that is not finite, labels of another length, or a level outside 0..1.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    first_clusters, second_clusters = np.asarray(first_clusters), np.asarray(second_clusters)
    check_clustered(first, first_clusters)
    check_clustered(second, second_clusters)
    _check_draws(draws, level)
    labels, members = np.unique(np.concatenate([first_clusters, second_clusters]), return_inverse=True)
    sides = (first, members[: len(first)]), (second, members[len(first) :])
    sizes = [np.bincount(member, minlength=len(labels)) for _, member in sides]
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(labels))
    results, done = [], 0
    while done < draws:
        chosen = rng.integers(0, len(labels), size=(min(chunk, draws - done), len(labels)))
        # At least half of the draws have both sets, so this ends.
        chosen = chosen[(sizes[0][chosen].sum(1) > 0) & (sizes[1][chosen].sum(1) > 0)]
        compute = _means if statistic is np.mean else _statistics
        extra = () if statistic is np.mean else (statistic,)
        one, other = (compute(values, member, chosen, len(labels), *extra) for values, member in sides)
        results.append(one - other)
        done += len(chosen)
    low, high = np.quantile(np.concatenate(results), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _means(
    values: Float[np.ndarray, " value"],
    members: Integer[np.ndarray, " value"],
    chosen: Integer[np.ndarray, "draw cluster"],
    count: int,
) -> Float[np.ndarray, " draw"]:
    sums, sizes = np.bincount(members, values, count), np.bincount(members, minlength=count)
    return sums[chosen].sum(1) / sizes[chosen].sum(1)


def _statistics(
    values: Float[np.ndarray, " value"],
    members: Integer[np.ndarray, " value"],
    chosen: Integer[np.ndarray, "draw cluster"],
    count: int,
    statistic: Callable[..., object],
) -> Float[np.ndarray, " draw"]:
    order = np.argsort(members, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(members, minlength=count))[:-1])
    return np.array([statistic(values[np.concatenate([rows[c] for c in draw])]) for draw in chosen], dtype=np.float64)


def check_clustered(values: np.ndarray, clusters: np.ndarray) -> None:
    """Refuse numbers that cannot be resampled by cluster.

    Raises:
        InputError: no value, one that is not finite, or labels of another length.
    """
    if values.ndim != 1 or clusters.shape != values.shape:
        raise InputError(
            f"values of shape {list(values.shape)} and clusters of shape {list(clusters.shape)} came; need one label "
            "for each value, both with one axis"
        )
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError("no value came, or one that is not finite; need numbers: drop missing values first")


def _check_draws(draws: int, level: float) -> None:
    if draws < 1 or not 0 < level < 1:
        raise InputError(f"draws is {draws} and level {level}; need at least 1 and 0 < level < 1, for example 0.95")
