"""How often each paragraph is in each resample of whole clusters."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mechmem.stats.mean_intervals import Side, expanded_quantiles


def cluster_draws(
    recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, draws: int, seed: int
) -> Float[np.ndarray, "draw paragraph"]:
    """Weights of resamples with replacement, as `stats.bootstrap` draws them.

    Clusters of both classes are drawn together from one urn, so that near-duplicates rise and fall together, across
    the classes as well. A resample that lacks a class is drawn again.

    Args:
        recites: the truth; both classes are there.
        clusters: labels.
        draws: how many resamples.
        seed: of the resampling.

    Returns:
        Whole numbers as float32: exact in sums up to 2**24.
    """
    labels, members = np.unique(clusters, return_inverse=True)
    count, rng = len(labels), np.random.default_rng(seed)
    found: list[np.ndarray] = []
    held = 0
    while held < draws:
        chosen = rng.integers(0, count, (draws - held, count))
        offset = np.arange(len(chosen))[:, None] * count
        times = np.bincount((chosen + offset).ravel(), minlength=len(chosen) * count).reshape(len(chosen), count)
        weights = times.astype(np.float32)[:, members]
        whole = (weights[:, recites].sum(1) > 0) & (weights[:, ~recites].sum(1) > 0)
        found.append(weights[whole])
        held += int(whole.sum())
    return np.concatenate(found)


def draw_quantiles(recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, level: float) -> tuple[float, float]:
    """The quantiles of resampled rates at which their intervals end, wider than plain percentiles at few clusters.

    Rates by rank, areas, and rates at thresholds from other clusters are not means of clusters: their intervals stay
    those of resampling. Simulated 95 % intervals of an area of 0.76 hold it in 93 % of cases at 5 clusters a class and
    in 95 % at 25 (plain percentiles: 84 and 94), those of the rate at 5 % false alarms in 92 and 96 %. Near 1 they are
    too narrow: an area of 0.96 is in 60 % of them at 5 clusters a class, 75 % at 10, 90 % at 25, 93 % at 50 and 100.

    Args:
        recites: the truth; both classes are there.
        clusters: labels.
        level: of the intervals.
    """
    members = np.unique(clusters, return_inverse=True)[1]
    sizes = [np.bincount(members[chosen], minlength=members.max() + 1) for chosen in (recites, ~recites)]
    return expanded_quantiles([Side(np.zeros((len(size), 1)), size.astype(np.float64)) for size in sizes], level)


def interval(values: Float[np.ndarray, " draw"], quantiles: tuple[float, float]) -> tuple[float, float]:
    """The ends at these quantiles of resampled values; NaN where one of them is not known."""
    if not np.isfinite(values).all():
        return np.nan, np.nan
    low, high = np.quantile(values, quantiles)
    return float(low), float(high)
