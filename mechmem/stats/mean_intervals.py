"""Intervals of means, and of differences of two means, from the sums of independent clusters.

A mean over values is sum(S) / sum(n), with S the sum and n the number of a cluster's values. With h = n / sum(n):

1. Standard error: the jackknife that leaves out one cluster, SE² = (G - 1) / G * sum((u / (1 - h))²), where
   u = (S - n * mean) / sum(n) and G is the number of clusters ("CR3" of the literature). One cluster that holds most of
   the values makes it large.
2. Quantile q: Student's t with the degrees of freedom of Bell & McCaffrey (2002, Survey Methodology 28:169-181), G - 1
   for clusters of one size, fewer for others. In a difference each set counts by its own variance, as Welch's.
3. Skewness: a few large clusters make mean ± q * SE miss on one side. Hall (1992, J. R. Stat. Soc. B 54:221-228) gives
   the interval of a monotone transformation of t that is symmetric: its ends are mean - SE * y(± q), with
   y(q) = 3 / g * (cbrt(1 + g * (q - g / 6)) - 1) and g the skewness of u, adjusted for few clusters, over sqrt(G):
   sqrt(G * (G - 1)) / (G - 2) * sum(u³) / sum(u²)^1.5.
4. The result reaches as far as the wider of 2 and 3 on each side.

Why this one: of simulated 95 % intervals (5 to 80 clusters; normal and exponential cluster effects; sizes equal,
geometric, heavy-tailed; shares), the percentile interval of resampled clusters covers 74 to 85 % at 5 clusters and 83
to 90 % at 10, and bias correction (BCa) is no better. The bootstrap-t (Cameron, Gelbach & Miller 2008, Review of
Economics and Statistics 90:414-427) holds for normal effects, and fails for shares, where many resamples have no
variance: 33 to 82 % at 5 clusters. Student's t alone, steps 1 and 2, covers 89 to 91 % of exponential effects at 5 and
10 clusters, the wild bootstrap no more. With step 3 it is 92 to 98 % in all of them. What it does not hold: lognormal
effects (91 % at 5 clusters, 94 at 30) and skewed effects with heavy-tailed sizes (92 % at 80).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, stdtrit

from mechmem.stats.ranges import ANY, Range, cut


class Side(NamedTuple):
    """One set's values, by cluster.

    Attributes:
        sums: of the values, [cluster, cell]; 0 for a cluster without values here.
        sizes: number of values, [cluster].
        share: the values say yes or no.
    """

    sums: Float[np.ndarray, "cluster cell"]
    sizes: Float[np.ndarray, " cluster"]
    share: bool = False

    @property
    def mean(self) -> Float[np.ndarray, " cell"]:
        """Over all values."""
        return self.sums.sum(0) / self.sizes.sum()

    @property
    def weights(self) -> Float[np.ndarray, " cluster"]:
        """Each cluster's share of the values."""
        return self.sizes / self.sizes.sum()

    @property
    def clusters(self) -> int:
        """Those with values."""
        return int((self.sizes > 0).sum())


def contrast_interval(
    sides: Sequence[Side], level: float, within: Range = ANY
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """The interval of the first side's mean, or of the first side's mean minus the second's, of every cell.

    Args:
        sides: one or two, over the same clusters; what a cluster has in both cancels.
        level: of the interval.
        within: what the contrast can be.

    Returns:
        (low, high). A side of one cluster adds nothing: nothing is known about how its clusters vary. A share of which
        all values are alike, in several clusters, has the exact bound of as many values as there are clusters: with
        yes in each of G clusters the share is at least ((1 - level) / 2)^(1 / G) (Clopper & Pearson 1934). Shares stay
        within 0..1, their differences within -1..1; others within the range that is given.
    """
    mean = _contrast([side.mean for side in sides])
    influence = [(side.sums - side.mean * side.sizes[:, None]) / side.sizes.sum() for side in sides]
    left_out = [part * _left_out(side)[:, None] for part, side in zip(influence, sides, strict=True)]
    error = _length(_contrast(left_out))
    q = stdtrit(degrees_of_freedom(sides, np.stack([(part**2).sum(0) for part in left_out])), (1 + level) / 2)
    clusters = int(np.any([side.sizes > 0 for side in sides], axis=0).sum())
    skewness = _skewness(_contrast(influence), clusters)
    low = mean - error * np.maximum(q, _transformed(q, skewness))
    high = mean + error * np.maximum(q, -_transformed(-q, skewness))
    return cut(within, (mean,), *_of_shares(sides, mean, low, high, level))


def degrees_of_freedom(sides: Sequence[Side], variances: Float[np.ndarray, "side cell"]) -> Float[np.ndarray, " cell"]:
    """Bell and McCaffrey's, each side's variance as given: those of Satterthwaite for the sum of squares of step 1.

    Under independent values, the clusters' scaled residuals of a side have the covariance V * h on the diagonal and
    -V * p * p' beside it, p = h / sqrt(1 - h); with C the sum over sides, df = trace(C)² / sum(C²).
    """
    h = np.stack([side.weights for side in sides])
    p = np.where(h < 1, h / np.sqrt(np.where(h < 1, 1 - h, 1)), 0)
    pairs = h @ h.T + (p @ p.T) ** 2 - (p**2) @ (p**2).T
    squares = np.einsum("ac,ab,bc->c", variances, pairs, variances)
    return np.where(squares > 0, variances.sum(0) ** 2 / np.where(squares > 0, squares, 1), 1.0)


def _contrast(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def expanded_quantiles(sides: Sequence[Side], level: float) -> tuple[float, float]:
    """The quantiles of resampled results at which the interval of another statistic than the mean ends.

    The expanded percentile interval of Hesterberg (2015, The American Statistician 69:371-386): Phi(± t * sqrt(G / (G -
    1))) for one set of G clusters. Each side's variance is taken as that of a mean of clusters of its sizes.

    Args:
        sides: whose clusters are resampled; their sums do not count.
        level: of the interval.
    """
    variances = np.array([(side.weights**2).sum() for side in sides])[:, None]
    resampled = sum(float(v[0]) * (1 - 1 / side.clusters) for v, side in zip(variances, sides, strict=True))
    if resampled == 0:
        return 0.0, 1.0
    t = stdtrit(degrees_of_freedom(sides, variances).item(), (1 + level) / 2)
    beyond = float(ndtr(-t * np.sqrt(variances.sum() / resampled)))
    return beyond, 1 - beyond


def _left_out(side: Side) -> Float[np.ndarray, " cluster"]:
    """What turns a cluster's influence into the mean's change without it; 0 where nothing else is there."""
    rest = 1 - side.weights
    scale = np.sqrt(max(0, side.clusters - 1) / max(1, side.clusters))
    return np.where(side.sizes < side.sizes.sum(), scale / np.where(rest > 0, rest, 1), 0)


def _length(parts: Float[np.ndarray, "cluster cell"]) -> Float[np.ndarray, " cell"]:
    return np.sqrt((parts**2).sum(0))


def _skewness(u: Float[np.ndarray, "cluster cell"], clusters: int) -> Float[np.ndarray, " cell"]:
    """Step 3's g; 0 where nothing varies."""
    length = _length(u)
    unit = u / np.where(length > 0, length, 1)
    # Two clusters lie on both sides of their mean, equally far: their third powers cancel.
    return np.sqrt(clusters * (clusters - 1)) / max(1, clusters - 2) * (unit**3).sum(0)


def _transformed(q: Float[np.ndarray, " cell"], g: Float[np.ndarray, " cell"]) -> Float[np.ndarray, " cell"]:
    """Step 3's y(q), as 3 * x / (r² + r + 1) with r = cbrt(1 + g * x): no difference of near numbers at small g."""
    x = q - g / 6
    r = np.cbrt(1 + g * x)
    return 3 * x / (r * r + r + 1)


def _of_shares(
    sides: Sequence[Side],
    mean: Float[np.ndarray, " cell"],
    low: Float[np.ndarray, " cell"],
    high: Float[np.ndarray, " cell"],
    level: float,
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Ends with the exact bounds of shares of which all values are alike, and within the range of shares.

    Distances from the means add as squares (Zou & Donner 2008, Statistics in Medicine 27:1693-1702).
    """
    for sign, side in zip((1, -1), sides, strict=False):
        if side.share and side.clusters > 1:
            bound = 1 - ((1 - level) / 2) ** (1 / side.clusters)
            down, up = (side.mean == at for at in ((1, 0) if sign > 0 else (0, 1)))
            low, high = mean - np.hypot(mean - low, bound * down), mean + np.hypot(high - mean, bound * up)
    if all(side.share for side in sides):
        low, high = np.maximum(low, 1 - len(sides)), np.minimum(high, 1)
    return low, high
