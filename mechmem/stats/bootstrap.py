"""Intervals for paragraphs that are not independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr
from jaxtyping import Float, Integer, Num

from mechmem.data.bounds import Count, Level, Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs

# SciPy's bootstrap has no clusters. For the mean of one set it can resample cluster sums: the same interval in 1.6 to
# 2.2 times the time (a test compares both). It cannot draw two sets together, as `cluster_bootstrap_difference` does.

# Chosen clusters of all draws held at once: 8 bytes each.
_CHUNK = 4_000_000


@checked
def cluster_bootstrap(
    values: Num[np.ndarray, " value"] | xr.DataArray,
    clusters: np.ndarray | Paragraphs,
    *,
    statistic: Callable[..., object] = np.mean,
    draws: Count = 2000,
    seed: Seed = 0,
    level: Level = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic, by resampling whole clusters with replacement.

    Near-duplicate paragraphs rise and fall together: resampled one by one they would make the interval too narrow.

    1. Draw as many clusters as there are, with replacement.
    2. Take all values of each drawn cluster, as often as it was drawn, and compute the statistic.
    3. Repeat; the interval holds the middle `level` of the results.

    Args:
        values: one number per paragraph, [value].
        clusters: label of each value's cluster, [value], of any type that sorts; or the paragraphs that the values are
            about: then a DataArray's values are found by the paragraphs' ids.
        statistic: of a one-axis array; the mean is computed from cluster sums, much faster.
        draws: how many resamples.
        seed: of the resampling.
        level: share of the resamples inside the interval.

    Returns:
        (low, high), in the unit of the statistic. With one cluster alone, both are the statistic itself: nothing is
        known about how clusters vary.

    Raises:
        InputError: no value, a value that is not finite, labels of another length, paragraphs that the values do not
            know, or a level outside 0..1.
    """
    values, clusters = values_and_clusters(values, clusters)
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


@checked
def cluster_bootstrap_difference(
    first: Num[np.ndarray, " first_value"] | xr.DataArray,
    second: Num[np.ndarray, " second_value"] | xr.DataArray,
    first_clusters: np.ndarray | Paragraphs,
    second_clusters: np.ndarray | Paragraphs,
    *,
    statistic: Callable[..., object] = np.mean,
    draws: Count = 2000,
    seed: Seed = 0,
    level: Level = 0.95,
) -> tuple[float, float]:
    """Percentile interval of statistic(first) - statistic(second), by resampling whole clusters with replacement.

    Clusters of both sets are drawn together from one urn, so that a cluster with values in both brings both: what its
    values share cancels in the difference, as it does in the data. Draws that leave a set empty are drawn again.

    Args:
        first: one number per paragraph of the first set.
        second: those of the second set; for pairs, give the differences to `cluster_bootstrap` instead.
        first_clusters: label of each value's cluster, or the paragraphs, as in `cluster_bootstrap`; equal labels in
            both sets mean one cluster.
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
    first, first_clusters = values_and_clusters(first, first_clusters)
    second, second_clusters = values_and_clusters(second, second_clusters)
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


def values_and_clusters(values: object, clusters: object) -> tuple[Float[np.ndarray, " value"], np.ndarray]:
    """Numbers and the label of each one's cluster, as arrays of one length.

    Args:
        values: any array-like; a DataArray with ids is put into the order of the paragraphs, where these are given.
        clusters: labels, any array-like, or the paragraphs.

    Raises:
        InputError: no value, one that is not finite, labels of another length, or paragraphs that the values do not
            know.
    """
    if isinstance(clusters, Paragraphs):
        values = aligned(values, clusters) if isinstance(values, xr.DataArray) else values
        clusters = clusters.clusters
    numbers, labels = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if numbers.ndim != 1 or labels.shape != numbers.shape:
        raise InputError(
            f"got values of shape {list(numbers.shape)} and clusters of shape {list(labels.shape)}; need one label "
            "for each value, both with one axis"
        )
    if len(numbers) == 0 or not np.isfinite(numbers).all():
        raise InputError(
            f"got {len(numbers)} values, {int((~np.isfinite(numbers)).sum())} of them not finite; need at least 1 and "
            "all finite: drop missing values first"
        )
    return numbers, labels
