"""Give each of some points its own nearest of others, at the smallest total distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import KDTree

from mechmem.stats.balance import pooled_variance

# Candidates looked at for each that is wanted. While no more are wanted than this, the assignment is optimal none the
# less: the others can take at most all but one of a point's nearest.
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

    Directions in which nothing varies are left out (the pseudo-inverse), so that columns which say the same count once
    and constant ones not at all. Without any column all points are equal.
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
    """`ratio` points of the second set for each of the first, none twice.

    1. Every wanted point is a slot. Slots and their nearest candidates are a bipartite graph, and as many slots as
       possible are filled at the smallest sum of Mahalanobis distances.
    2. Slots left empty although candidates are free (there are more than `NEAREST` slots) look among those.
    3. If rows have some of theirs and not all, as many as must go are taken out, those with fewest first, and the rest
       starts again.

    Args:
        first: points that want others.
        second: points to be given; of equally good choices, those depend on the order.
        ratio: how many each wants.
        caliper: largest allowed difference in every column, in pooled SDs; None: any.

    Returns:
        Indices into `second`, nearest first, [row, ratio]; rows that cannot have all of theirs have -1.
    """
    left = np.arange(len(first))
    result = np.full((len(first), ratio), -1)
    while len(left):
        chosen = _fill(first.select(left), second, ratio, caliper)
        filled = (chosen >= 0).sum(1)
        if (filled == ratio).all():
            result[left] = chosen
            break
        # No fewer rows than these can go, whichever they are.
        gone = -(-int(ratio * len(left) - filled.sum()) // ratio)
        left = left[np.sort(np.argsort(filled, kind="stable")[gone:])]
    return result


def _fill(first: Points, second: Points, ratio: int, caliper: float | None) -> Int[np.ndarray, "row ratio"]:
    """As many as possible at the smallest sum of distances, nearest first; -1 where there is none."""
    chosen = np.full(len(first) * ratio, -1)
    free = np.arange(len(second))
    while len(free) and (chosen < 0).any():
        empty = np.flatnonzero(chosen < 0)
        slots, picks, costs = _pairs(first.select(empty // ratio), second.select(free), caliper)
        if len(slots) == 0:
            break
        # Every slot has a place of its own that is dearer than all pairs together: it stays empty only if it must.
        none = np.full(len(empty), (1 + costs.max()) * (len(empty) + 1))
        own = np.arange(len(empty))
        ends = np.concatenate([slots, own]), np.concatenate([picks, len(free) + own])
        # Distances of zero would not be edges: one is added to all, which changes no choice among as many pairs.
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
    # The caliper is a box in pooled SDs; rounding must not shut out a candidate on its border.
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
