"""How well scores separate recited from other text, for weighted paragraphs: many resamples at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from mechmem.detect.probes.conformal import allowed_rank

# Draws times paragraphs that are held at once, 4 bytes each and a few times over.
CELLS = 4_000_000


def weighted_auroc(
    scores: Float[np.ndarray, " paragraph"],
    recites: Bool[np.ndarray, " paragraph"],
    weights: Float[np.ndarray, "draw paragraph"],
) -> Float[np.ndarray, " draw"]:
    """Probability that a recited text has a higher score than another one; a tie counts one half.

    1. Sort by score. The weight of others below a recited text, plus half of that at the same score, is the mean of
       two running sums: up to the beginning and up to the end of its ties.
    2. Average it over the recited texts, and divide by the weight of the others.

    Args:
        scores: higher: more likely recited.
        recites: the truth.
        weights: of each paragraph in each resample.
    """
    order = np.argsort(scores, kind="stable")
    sorted_scores, truth = scores[order], recites[order]
    others, recited = order[~truth], order[truth]
    begin = np.searchsorted(sorted_scores[~truth], sorted_scores[truth], side="left")
    end = np.searchsorted(sorted_scores[~truth], sorted_scores[truth], side="right")
    found = []
    for part in _parts(weights):
        below = np.zeros((len(part), len(others) + 1))
        np.cumsum(part[:, others], 1, out=below[:, 1:])
        positive = part[:, recited]
        wins = (positive * (below[:, begin] + below[:, end])).sum(1) / 2
        found.append(wins / (positive.sum(1) * below[:, -1]))
    return np.concatenate(found)


def held_out_rates(
    scores: Float[np.ndarray, " paragraph"],
    recites: Bool[np.ndarray, " paragraph"],
    fold: Int[np.ndarray, " paragraph"],
    rates: tuple[float, ...],
    weights: Float[np.ndarray, "draw paragraph"],
) -> tuple[Float[np.ndarray, "rate draw"], Float[np.ndarray, "rate draw"]]:
    """True and false positive rates, each paragraph judged by a threshold from the clusters of other folds.

    The threshold for rate a is the ceil((n + 1)(1 - a))-th smallest score of the n other texts of the other folds; a
    score above it is flagged.

    Args:
        scores: higher: more likely recited.
        recites: the truth.
        fold: of each paragraph; a cluster is in one fold.
        rates: false positive rates that thresholds aim at.
        weights: of each paragraph in each resample; thresholds are taken anew in each.

    Returns:
        TPR and realized FPR. NaN for a rate for which a fold's others are too few to have a threshold; within
        resamples, whose numbers vary, the largest of them serves then.
    """
    too_few = [_lacks_threshold(recites, fold, rate) for rate in rates]
    found = []
    for part in _parts(weights):
        flagged = np.zeros((2, len(rates), len(part)))
        for number in np.unique(fold):
            flagged += _one_fold(scores, recites, fold == number, rates, part)
        totals = np.stack([part[:, recites].sum(1), part[:, ~recites].sum(1)])
        found.append(flagged / totals[:, None])
    both = np.concatenate(found, 2)
    both[:, too_few] = np.nan
    return both[0], both[1]


def _lacks_threshold(recites: Bool[np.ndarray, " paragraph"], fold: Int[np.ndarray, " paragraph"], rate: float) -> bool:
    """Whether some fold leaves too few others for a threshold."""
    least = min(int((~recites & (fold != number)).sum()) for number in np.unique(fold))
    return allowed_rank(least, rate) > least


def _one_fold(
    scores: Float[np.ndarray, " paragraph"],
    recites: Bool[np.ndarray, " paragraph"],
    inside: Bool[np.ndarray, " paragraph"],
    rates: tuple[float, ...],
    weights: Float[np.ndarray, "draw paragraph"],
) -> Float[np.ndarray, "class rate draw"]:
    """Weight of this fold's recited and other paragraphs above the thresholds that the other folds give."""
    falling = np.argsort(-scores, kind="stable")
    outside = falling[(~inside & ~recites)[falling]]
    above = np.cumsum(weights[:, outside], 1)
    classes = [falling[(inside & truth)[falling]] for truth in (recites, ~recites)]
    # How many of this fold's paragraphs lie above each possible threshold, and their weight.
    places = [np.searchsorted(-scores[rows], -scores[outside], side="left") for rows in classes]
    running = [np.pad(np.cumsum(weights[:, rows], 1), ((0, 0), (1, 0))) for rows in classes]
    draws, found = np.arange(len(weights)), np.zeros((2, len(rates), len(weights)))
    for at, rate in enumerate(rates):
        count = above[:, -1]
        allowed = np.maximum(count - np.ceil(np.round((count + 1) * (1 - rate), 6)), 0)
        # The first text that would be one too many is not flagged: its score is the threshold.
        first = np.minimum((above <= allowed[:, None]).sum(1), len(outside) - 1)
        for row, (place, sums) in enumerate(zip(places, running, strict=True)):
            found[row, at] = sums[draws, place[first]]
    return found


def _parts(weights: Float[np.ndarray, "draw paragraph"]) -> list[np.ndarray]:
    size = max(1, CELLS // max(1, weights.shape[1]))
    return [weights[start : start + size] for start in range(0, len(weights), size)]
