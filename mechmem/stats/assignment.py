"""Match points one to one (or one to several) at the smallest total distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from mechmem.stats.balance import pooled_variance

# Nearest candidates considered for each slot. With at most this many slots the assignment is still optimal: the other
# slots can take at most all but one of a slot's nearest candidates.
NEAREST = 500


@dataclass(frozen=True)
class Points:
    """Numeric covariates of some paragraphs.

    Attributes:
        scaled: in pooled SDs, [paragraph, covariate]; a column without spread keeps its unit.
        whitened: so that Euclidean distance is Mahalanobis distance, [paragraph, direction].
    """

    scaled: Float[np.ndarray, "paragraph covariate"]
    whitened: Float[np.ndarray, "paragraph direction"]

    def __len__(self) -> int:
        return len(self.scaled)

    def select(self, rows: Int[np.ndarray, " row"]) -> Points:
        """The points at these indices, in that order."""
        return Points(self.scaled[rows], self.whitened[rows])


def points(
    first: Float[np.ndarray, "first covariate"], second: Float[np.ndarray, "second covariate"]
) -> tuple[Points, Points]:
    """Both sets in pooled SDs and whitened by the pooled covariance, the mean of the two sets' covariances.

    Directions without variance are left out (the pseudo-inverse), so that redundant columns count once and constant
    columns do not count. Without any column all points are equal.
    """
    spread = np.array([pooled_variance(a, b) for a, b in zip(first.T, second.T, strict=True)]) ** 0.5
    scaled = [side / np.where(spread > 0, spread, 1.0) for side in (first, second)]
    several = [side for side in scaled if len(side) > 1]
    if first.shape[1] == 0 or not several:
        return Points(scaled[0], scaled[0]), Points(scaled[1], scaled[1])
    covariance = np.mean([np.atleast_2d(np.cov(side, rowvar=False)) for side in several], axis=0)
    values, vectors = np.linalg.eigh(covariance)
    # Scaled columns have variance 1, so the threshold is a share of one column's variance.
    kept = values > 1e-10
    whitening = vectors[:, kept] / values[kept] ** 0.5
    return Points(scaled[0], scaled[0] @ whitening), Points(scaled[1], scaled[1] @ whitening)


def assign(first: Points, second: Points, ratio: int, caliper: float | None) -> Int[np.ndarray, "row ratio"]:
    """Assign `ratio` points of the second set to each point of the first, none twice.

    1. Each point of the first set has `ratio` slots. Slots and their nearest candidates form a bipartite graph, and as
       many slots as possible are filled at the smallest sum of Mahalanobis distances.
    2. Slots that stay empty although candidates are free (with more than `NEAREST` slots) are filled from those.
    3. If some rows are only partly filled, as few rows as necessary are removed, those with the fewest candidates
       first, and the assignment is repeated without them.

    Args:
        first: points to match.
        second: candidates; ties are broken by their order.
        ratio: candidates per point.
        caliper: largest allowed difference in every column, in pooled SDs; None: any.

    Returns:
        Indices into `second`, nearest first, [row, ratio]; -1 in rows that cannot be filled completely.
    """
    left = np.arange(len(first))
    result = np.full((len(first), ratio), -1)
    while len(left):
        chosen = _fill(first.select(left), second, ratio, caliper)
        filled = (chosen >= 0).sum(1)
        if (filled == ratio).all():
            result[left] = chosen
            break
        # At least this many rows have to be removed, whichever they are.
        gone = -(-int(ratio * len(left) - filled.sum()) // ratio)
        left = left[np.sort(np.argsort(filled, kind="stable")[gone:])]
    return result


def _fill(first: Points, second: Points, ratio: int, caliper: float | None) -> Int[np.ndarray, "row ratio"]:
    """Fill as many slots as possible at the smallest sum of distances, nearest first; -1 in empty slots."""
    chosen = np.full(len(first) * ratio, -1)
    free = np.arange(len(second))
    while len(free) and (chosen < 0).any():
        empty = np.flatnonzero(chosen < 0)
        slots, picks, costs = _pairs(first.select(empty // ratio), second.select(free), caliper)
        if len(slots) == 0:
            break
        # Every slot has a dummy candidate dearer than all pairs together, so a slot stays empty only if it must.
        none = np.full(len(empty), (1 + costs.max()) * (len(empty) + 1))
        own = np.arange(len(empty))
        ends = np.concatenate([slots, own]), np.concatenate([picks, len(free) + own])
        # A distance of zero would be no edge: one is added to all, which changes no choice among equally many pairs.
        graph = coo_matrix((np.concatenate([1 + costs, none]), ends), shape=(len(empty), len(free) + len(empty)))
        _, columns = min_weight_full_bipartite_matching(graph.tocsr())
        real = columns < len(free)
        chosen[empty[real]] = free[columns[real]]
        free = np.setdiff1d(free, chosen, assume_unique=False)
    grouped = chosen.reshape(len(first), ratio)
    distance = np.linalg.norm(second.whitened[grouped] - first.whitened[:, None], axis=-1)
    nearest = np.argsort(np.where(grouped < 0, np.inf, distance), axis=1, kind="stable")
    return np.take_along_axis(grouped, nearest, 1)


def _pairs(
    slots: Points, free: Points, caliper: float | None
) -> tuple[Int[np.ndarray, " pair"], Int[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """(slot, index into `free`, Mahalanobis distance) of each slot's nearest candidates within the caliper."""
    count = min(len(slots), len(free), NEAREST)
    if caliper is None:
        costs, picks = KDTree(_at_least_one_axis(free)).query(_at_least_one_axis(slots), k=count)
        return np.repeat(np.arange(len(slots)), count), np.ravel(picks), np.ravel(costs)
    # The caliper is a box in pooled SDs; rounding must not exclude a candidate on its border.
    box = KDTree(free.scaled)
    parts = []
    for slot in range(len(slots)):
        near = np.array(box.query_ball_point(slots.scaled[slot], caliper * (1 + 1e-12), p=np.inf), dtype=np.int64)
        costs = np.linalg.norm(free.whitened[near] - slots.whitened[slot], axis=1)
        best = np.argsort(costs, kind="stable")[:count]
        parts.append((np.full(len(best), slot), near[best], costs[best]))
    several = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return several[0], several[1], several[2]


def _at_least_one_axis(side: Points) -> Float[np.ndarray, "paragraph direction"]:
    return side.whitened if side.whitened.shape[1] else np.zeros((len(side), 1))
