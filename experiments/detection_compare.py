"""All methods on the same rows: detectors, each output statistic by itself, and the best of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from detection_methods import FALSE_ALARMS, collected, usable
from detection_rows import Rows
from detection_sets import EASE, matched
from detection_statistics import (
    Ranked,
    calibration_error,
    cluster_weights,
    conformal_threshold,
    ends_at,
    half_of,
    one_of_each,
    share,
    summary,
)

import mechmem as mm
from mechmem.detect.evaluation.free_scores import free_scores
from mechmem.detect.evaluation.ngram_counts import NgramCounts
from mechmem.model.load import HookedTransformer

KS = (0, 1, 2, 4, 8, 16, 32)
BEST = "best free statistic"
# What methods are compared with: one free statistic, all of the own text's, and the prefix's with them.
REFERENCES = (BEST, "output", "output + prefix")
HARD = (*EASE, "prefix_nll")
# Tokens to come that count as early.
EARLY = 40


@dataclass(frozen=True)
class Scores:
    """A method's scores of all rows.

    Attributes:
        score: higher: recites; NaN for rows that are not judged, [row, k].
        statistic: of the generation so far, [row, k].
        threshold: of the generation's statistic, for `FALSE_ALARMS`, [row]: that of the row's fold.
        calibrated: whether scores are probabilities.
    """

    score: np.ndarray
    statistic: np.ndarray
    threshold: np.ndarray
    calibrated: bool


def detector_scores(rows: Rows, names: Sequence[str], folds: int, work: Path) -> dict[str, Scores]:
    """Scores of detectors, each row by the detector of the other folds."""
    found = {}
    for name in names:
        if all((work / f"{name}-{number}.nc").is_file() for number in range(folds)):
            kept = collected(rows, name, folds, work)
            found[name] = Scores(kept.score.values, kept.statistic.values, kept.threshold.values, True)
    return found


def free_statistics(rows: Rows, folds: np.ndarray, model: HookedTransformer) -> dict[str, Scores]:
    """Every baseline by itself, and the one that is best on the other folds; signs are chosen there, too."""
    counts = NgramCounts([tokens.tolist() for tokens in rows.corpus])
    raw = free_scores(
        rows.features, rows.paragraphs, counts=mm.bundled_unigram_counts(), ngrams=counts, tokenizer=model.tokenizer
    )
    names = [str(name) for name in raw.baseline.values]
    values = raw.transpose("baseline", "paragraph", "k").values.astype(np.float64)
    shape = (len(names) + 1, *values.shape[1:])
    score, statistic, threshold = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[:2], np.nan)
    for fold in range(folds.max() + 1):
        train, test = usable(rows) & (folds != fold), folds == fold
        signed, standard, best = _signed(values, rows, train)
        score[:-1, test], score[-1, test] = signed[:, test], best[test]
        # The last of the methods is the best statistic of each step.
        largest = np.maximum.accumulate(np.concatenate([standard, best[None]]), 2)
        statistic[:, test] = largest[:, test]
        null = one_of_each(rows.clusters, np.flatnonzero(train & ~rows.recites & (folds >= 0)), fold)
        for at in range(len(largest)):
            threshold[at, test] = conformal_threshold(largest[at, null, -1], FALSE_ALARMS)
    labels = [*(f"free: {name}" for name in names), BEST]
    return {name: Scores(score[at], statistic[at], threshold[at], False) for at, name in enumerate(labels)}


def _signed(values: np.ndarray, rows: Rows, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Statistics with the sign that is right on the rows trained on, the same standardized, and the best of each step.

    Standardized: distances from the mean of other rows at that step, in their standard deviations. A generation's
    largest score is taken of these: a running mean would otherwise have its extremes where little is said. Before
    anything is said, statistics of the text said tell nothing, and are no alarm.

    Args:
        values: as computed, [baseline, row, k].
        rows: all of them.
        train: rows that signs, means and the choice come from.

    Returns:
        Signed and standardized, [baseline, row, k], and the best, standardized, [row, k].
    """
    labels, first = rows.recites[train], half_of(rows.clusters[train])
    one = np.ones((1, int(train.sum())), np.float32)
    signed, standard = np.empty_like(values), np.empty_like(values)
    best, chosen = np.empty(values.shape[1:]), 0
    for k in range(values.shape[2]):
        worth = []
        for at, column in enumerate(values[:, :, k]):
            area = float(Ranked.of(column[train], labels, first, one).auroc()[0])
            signed[at, :, k] = column if area >= 0.5 else -column
            inside = signed[at, train, k]
            other = inside[~labels]
            spread = float(other.std())
            standard[at, :, k] = (signed[at, :, k] - other.mean()) / spread if spread > 0 else -np.inf
            tpr = Ranked.of(inside, labels, first, one).tpr_at(FALSE_ALARMS)[0][0]
            worth.append((float(tpr), max(area, 1 - area)))
        if k in KS:
            # Between the steps of the tables, the choice of the last one stays.
            chosen = worth.index(max(worth))
        best[:, k] = standard[chosen, :, k]
    return signed, standard, best


def sets_of(rows: Rows, folds: np.ndarray) -> dict[str, np.ndarray]:
    """Rows that are judged together: all, matched on what makes text easy, and on the prefix's NLL as well."""
    free = folds >= 0
    found = {"all": free & (rows.recites | rows.other)}
    for name, on in (("matched", EASE), ("matched, prefix NLL too", HARD)):
        found[name] = matched(rows.paragraphs, rows.recites & free, rows.other & free, on)
    return found


def table(scores: Mapping[str, Scores], rows: Rows, chosen: np.ndarray, draws: int) -> dict[str, Any]:
    """Every method's values on a set of rows, with intervals: method -> name -> k -> [value, low, high]."""
    at = np.flatnonzero(chosen)
    labels, clusters = rows.recites[at], rows.clusters[at]
    weights, first, ends = cluster_weights(clusters, draws), half_of(clusters), ends_at(labels, clusters)
    found: dict[str, Any] = {}
    kept: dict[tuple[str, str, int], np.ndarray] = {}
    for name, method in scores.items():
        values: dict[str, Any] = {
            "AUROC": {},
            "TPR at 1 %": {},
            "FPR at 1 %": {},
            "TPR at 0.1 %": {},
            "calibration": {},
        }
        for k in KS:
            score = method.score[at, k].astype(np.float64)
            ranked = Ranked.of(score, labels, first, weights)
            kept[name, "AUROC", k] = ranked.auroc()
            kept[name, "TPR at 1 %", k], alarms = ranked.tpr_at(FALSE_ALARMS)
            values["FPR at 1 %"][k] = summary(alarms, ends)
            values["TPR at 0.1 %"][k] = summary(ranked.tpr_at(FALSE_ALARMS / 10)[0], ends)
            if method.calibrated:
                values["calibration"][k] = summary(calibration_error(score, labels, weights), ends)
            for measure in ("AUROC", "TPR at 1 %"):
                values[measure][k] = summary(kept[name, measure, k], ends)
        found[name] = values | whole(method, rows, at)
    for name, reference in product(scores, REFERENCES):
        if reference not in scores or name == reference:
            continue
        found[name][f"minus {reference}"] = {
            measure: {k: summary(kept[name, measure, k] - kept[reference, measure, k], ends) for k in KS}
            for measure in ("AUROC", "TPR at 1 %")
        }
    return found


def whole(method: Scores, rows: Rows, at: np.ndarray) -> dict[str, Any]:
    """Whole generations: share flagged, share flagged early, median tokens to come, false alarms."""
    labels, clusters = rows.recites[at], rows.clusters[at]
    alarm = np.asarray(method.statistic[at] > method.threshold[at, None])
    ever, first = np.asarray(alarm.any(1)), alarm.argmax(1)
    length = alarm.shape[1]
    early = ever & (length - first >= EARLY)
    to_come = (length - first)[labels & ever]
    rate = share(ever[~labels], clusters[~labels])
    return {
        "flagged": share(ever[labels], clusters[labels]),
        "flagged early": share(early[labels], clusters[labels]),
        "tokens to come": float(np.median(np.where(ever, length - first, 0)[labels])) if len(to_come) else 0.0,
        "false alarms": rate,
        # An alarm is raised once in a generation.
        "false alarms per 1,000 tokens": [1000 * value / length for value in rate],
    }


def special_rows(scores: Mapping[str, Scores], rows: Rows, folds: np.ndarray) -> dict[str, Any]:
    """Share of whole generations flagged, on rows that are neither recitations nor plain other text."""
    free = folds >= 0
    groups = {
        "recites another text": rows.truth.elsewhere & free & ~rows.predictable,
        "25 tokens of another text": rows.truth.partly & free & ~rows.predictable,
        "EM 11 to 49": rows.truth.between & free & ~rows.predictable,
        "other texts, the tenth said most surely": _surest(rows, rows.other & free),
        "predictable, families trained on": rows.taught & free,
        "predictable, other families": rows.predictable & ~rows.taught & free,
    }
    found: dict[str, Any] = {}
    for name, chosen in groups.items():
        at = np.flatnonzero(chosen)
        if not len(at):
            continue
        found[name] = {"rows": len(at), "clusters": len(np.unique(rows.clusters[at]))}
        for label, method in scores.items():
            alarm = np.asarray((method.statistic[at] > method.threshold[at, None]).any(1))
            found[name][label] = share(alarm, rows.clusters[at])
    return found


def _surest(rows: Rows, chosen: np.ndarray) -> np.ndarray:
    """The tenth of these rows whose own tokens have the highest mean log p."""
    sure = -rows.features.said_nll.values.mean(1)
    return chosen & (sure >= np.quantile(sure[chosen], 0.9))
