"""Rates of detection with intervals by cluster: every method and every resample at once, so that differences pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold

import mechmem as mm
from mechmem.detect.evaluation.cluster_draws import draw_quantiles
from mechmem.stats.ranges import SHARE, Range

LEVEL = 0.95
BINS = 10


def cluster_weights(clusters: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """How often each row's cluster is drawn, [1 + draws, row]; the first is the data itself, all ones."""
    labels, members = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), draws).astype(np.float32)
    return np.concatenate([np.ones((1, len(clusters)), np.float32), drawn[:, members]])


@dataclass(frozen=True)
class Ranked:
    """Cumulative weights of recitations and other rows of two halves of the clusters, the highest scores first.

    Attributes:
        recited: of each half, [score, draw]: the weight of recitations with this score or a higher one.
        other: the same of other rows.
    """

    recited: tuple[np.ndarray, np.ndarray]
    other: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def of(scores: np.ndarray, labels: np.ndarray, first: np.ndarray, weights: np.ndarray) -> Ranked:
        """Sort once for all rates and all draws.

        Args:
            scores: [row].
            labels: true for recitations, [row].
            first: rows of the first half, [row].
            weights: [draw, row].
        """
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])
        # Rows first: whole rows are copied, and sums run down columns. Sums of whole numbers are exact in float32.
        sorted_weights = np.ascontiguousarray(weights.T)[order]

        def summed(chosen: np.ndarray) -> np.ndarray:
            return np.cumsum(sorted_weights * chosen[order][:, None], 0)[ends]

        return Ranked(
            (summed(labels & first), summed(labels & ~first)), (summed(~labels & first), summed(~labels & ~first))
        )

    def auroc(self) -> np.ndarray:
        """Chance that a recitation scores above another row, ties count half, [draw]."""
        recited, other = ((part[0] + part[1]).astype(np.float64) for part in (self.recited, self.other))
        at_score = np.diff(recited, axis=0, prepend=0)
        below = other[-1] - other + np.diff(other, axis=0, prepend=0) / 2
        return (at_score * below).sum(0) / (recited[-1] * other[-1])

    def tpr_at(self, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Share of recitations flagged, and of other rows, at a threshold that the other half sets, both [draw].

        A half's threshold is the lowest score that at most `rate` of the other half's other rows exceed.
        """
        flagged = np.zeros((2, self.other[0].shape[1]))
        for here, there in ((0, 1), (1, 0)):
            setting = self.other[there]
            # Scores before this one are above the threshold.
            place = (setting <= rate * setting[-1] * (1 + 1e-6)).sum(0) - 1
            for row, part in enumerate((self.recited[here], self.other[here])):
                reached = np.take_along_axis(part, np.maximum(place, 0)[None], 0)[0]
                flagged[row] += np.where(place >= 0, reached, 0)
        totals = [part[0][-1] + part[1][-1] for part in (self.recited, self.other)]
        return flagged[0] / totals[0], flagged[1] / totals[1]


def auroc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chance that a recitation scores above another row, ties count half, [draw].

    Args:
        scores: [row].
        labels: true for recitations, [row].
        weights: of rows, [draw, row].
    """
    return Ranked.of(scores, labels, np.ones(len(labels), dtype=bool), weights).auroc()


def tpr_at(
    scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, weights: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Share of recitations flagged, and of other rows, at a threshold that other clusters set, both [draw].

    Args:
        scores: [row].
        labels: true for recitations, [row].
        clusters: dealt into two halves, [row].
        weights: [draw, row].
        rate: of false alarms.
    """
    return Ranked.of(scores, labels, half_of(clusters), weights).tpr_at(rate)


def half_of(clusters: np.ndarray) -> np.ndarray:
    """Rows of one half of the clusters, bool [row]."""
    halves = GroupKFold(2, shuffle=True, random_state=0).split(clusters, groups=clusters)
    first = np.zeros(len(clusters), dtype=bool)
    first[next(iter(halves))[0]] = True
    return first


def calibration_error(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean distance of a bin's mean score from its share of recitations, both sets weighted alike, [draw].

    Args:
        scores: probabilities at even odds, [row].
        labels: true for recitations, [row].
        weights: [draw, row].
    """
    balanced = weights / np.where(labels, (weights * labels).sum(1)[:, None], (weights * ~labels).sum(1)[:, None])
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    inside = (place[:, None] == np.arange(BINS)).astype(np.float32)
    predicted, observed = (balanced * scores) @ inside, (balanced * labels) @ inside
    return np.abs(predicted - observed).sum(1) / 2


def share(flagged: np.ndarray, clusters: np.ndarray) -> list[float]:
    """Share of rows that are flagged, bool [row], and its interval by cluster: [value, low, high]."""
    return mean(np.asarray(flagged, dtype=bool), clusters, SHARE)


def mean(values: np.ndarray, clusters: np.ndarray, within: Range) -> list[float]:
    """The mean and its interval by cluster, within what it can be: [value, low, high]; NaN without rows."""
    if not len(values):
        return [np.nan] * 3
    return [float(values.mean()), *mm.cluster_bootstrap(values, clusters, level=LEVEL, within=within)]


def ends_at(labels: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """The quantiles of resamples at which intervals of rates of two classes end, for `summary`."""
    return draw_quantiles(labels, clusters, LEVEL)


def summary(values: np.ndarray, ends: tuple[float, float]) -> list[float]:
    """The value of the data and its interval: [value, low, high].

    Args:
        values: of the data and of every resample that has both classes; others are not finite.
        ends: what `ends_at` gives of the same rows.
    """
    finite = values[1:][np.isfinite(values[1:])]
    return [float(values[0]), *(np.quantile(finite, ends).tolist() if len(finite) else [np.nan] * 2)]


def precision(tpr: float, fpr: float, base_rate: float) -> float:
    """Share of alarms that are right where `base_rate` of the texts are recited."""
    alarms = base_rate * tpr + (1 - base_rate) * fpr
    return base_rate * tpr / alarms if alarms else float("nan")


def conformal_threshold(null: np.ndarray, rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest of n statistics; infinite where n is too small."""
    rank = int(np.ceil(round((len(null) + 1) * (1 - rate), 9)))
    return float("inf") if rank > len(null) else float(np.sort(null)[rank - 1])


def one_of_each(clusters: np.ndarray, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """One random row of each cluster among `rows` (indices)."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[np.unique(clusters[order], return_index=True)[1]]
