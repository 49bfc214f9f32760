"""How often each paragraph is in each resample of whole clusters."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


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


def interval(values: Float[np.ndarray, " draw"], level: float) -> tuple[float, float]:
    """The percentile interval of resampled values; NaN where one of them is not known."""
    if not np.isfinite(values).all():
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
