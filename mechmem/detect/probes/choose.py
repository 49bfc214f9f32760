"""Which features and which kind of probe: nested cross-validation over clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from mechmem.data.progress import ProgressLike, batches
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.probes.boosting import TreeFit, fit_boosting
from mechmem.detect.probes.buckets import bucket_of
from mechmem.detect.probes.examples import Examples, cluster_folds
from mechmem.detect.probes.logistic import SMALL, LogisticFit, fit_logistic, group_sizes

ProbeMethod = Literal["logistic", "boosting"]
# Folds inside a fold, by which the penalty is chosen.
INNER = 2


@dataclass(frozen=True)
class Candidate:
    """A kind of probe and the features that it reads."""

    method: ProbeMethod
    choice: FeatureChoice


@dataclass(frozen=True)
class Problem:
    """A candidate's columns, at one step of each bucket.

    Attributes:
        features: [paragraph, step, feature].
        recites: the truth.
        clusters: labels.
        sizes: columns of each column's group.
    """

    features: Float[np.ndarray, "paragraph step feature"]
    recites: Bool[np.ndarray, " paragraph"]
    clusters: np.ndarray
    sizes: Int[np.ndarray, " feature"]

    @staticmethod
    def of(examples: Examples, choice: FeatureChoice) -> Problem:
        """A candidate's columns of examples."""
        matrix, names = examples.columns(choice)
        return Problem(matrix, examples.recites, examples.clusters, group_sizes(names))

    def select(self, rows: Int[np.ndarray, " chosen"]) -> Problem:
        """Some paragraphs."""
        return Problem(self.features[rows], self.recites[rows], self.clusters[rows], self.sizes)


def choose(
    examples: Examples,
    candidates: Sequence[Candidate],
    buckets: tuple[int, ...],
    settings: DetectorSettings,
    seed: int,
    progress: ProgressLike = None,
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The candidate with the smallest loss on clusters that it was not fitted on.

    1. Divide the clusters into folds.
    2. For each fold and candidate: choose the penalty by cross-validation over the clusters of the other folds, fit on
       them, and take the loss on the fold: cross-entropy with both classes weighted alike, mean over the buckets, each
       at its first step.
    3. Take the candidate with the smallest mean loss; of equal ones the first.

    Returns:
        It, and for each candidate its loss (nats) and AUROC, mean over folds.
    """
    ks = first_steps(examples.ks, buckets)
    fold = cluster_folds(examples.recites, examples.clusters, settings.folds, seed)
    found = []
    for at in batches(len(candidates), 1, progress):
        candidate = candidates[at.start]
        problem = Problem.of(examples.at(ks), candidate.choice)
        losses, areas = [], []
        for number in range(fold.max() + 1):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            held = problem.select(outside)
            if held.recites.all() or not held.recites.any():
                continue
            odds = _held_out(problem.select(inside), held, candidate.method, settings, seed)
            losses.append(np.mean([balanced_loss(column, held.recites) for column in odds.T]))
            areas.append(np.mean([roc_auc_score(held.recites, column) for column in odds.T]))
        about = {"method": candidate.method, "groups": list(candidate.choice.groups)}
        about |= {"depths": list(candidate.choice.stream_depths)}
        found.append(about | {"loss": float(np.mean(losses)), "auroc": float(np.mean(areas))})
    return candidates[int(np.argmin([each["loss"] for each in found]))], found


def first_steps(ks: tuple[int, ...], buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The first step of each bucket that there is."""
    firsts: dict[int, int] = {}
    for k in ks:
        firsts.setdefault(bucket_of(k, buckets), k)
    return tuple(firsts.values())


def best_penalty(problem: Problem, settings: DetectorSettings, folds: int, seed: int) -> float:
    """C of logistic regression with the smallest loss on held-out clusters, mean over the steps.

    Small groups have a C of their own; where there are no others, this one does not matter.
    """
    if len(settings.penalties) == 1 or problem.sizes.max() <= SMALL:
        return settings.penalties[0]
    fold = cluster_folds(problem.recites, problem.clusters, folds, seed + 1)
    losses = np.zeros(len(settings.penalties))
    for number in range(fold.max() + 1):
        inside, held = problem.select(np.flatnonzero(fold != number)), problem.select(np.flatnonzero(fold == number))
        if any(part.recites.all() or not part.recites.any() for part in (inside, held)):
            continue
        for at, penalty in enumerate(settings.penalties):
            for step in range(problem.features.shape[1]):
                fit = fit_logistic(inside.features[:, step], inside.recites, penalty, problem.sizes)
                losses[at] += balanced_loss(fit.log_odds(held.features[:, step]), held.recites)
    return settings.penalties[int(losses.argmin())]


def fit_probe(
    problem: Problem, steps: Sequence[int], method: ProbeMethod, penalty: float, settings: DetectorSettings, seed: int
) -> LogisticFit | TreeFit:
    """One probe of a kind, for some steps together."""
    rows = problem.features[:, steps].reshape(-1, len(problem.sizes))
    recites = np.repeat(problem.recites, len(steps))
    if method == "logistic":
        return fit_logistic(rows, recites, penalty, problem.sizes)
    return fit_boosting(rows, recites, settings.trees, settings.tree_depth, seed)


def balanced_loss(odds: Float[np.ndarray, " row"], recites: Bool[np.ndarray, " row"]) -> float:
    """Cross-entropy of log odds, nats, mean of the two classes' means."""
    loss = np.logaddexp(0, np.where(recites, -odds, odds))
    return float((loss[recites].mean() + loss[~recites].mean()) / 2)


def _held_out(
    inside: Problem, held: Problem, method: ProbeMethod, settings: DetectorSettings, seed: int
) -> Float[np.ndarray, "paragraph step"]:
    penalty = best_penalty(inside, settings, INNER, seed) if method == "logistic" else 0.0
    columns = []
    for step in range(inside.features.shape[1]):
        fit = fit_probe(inside, [step], method, penalty, settings, seed)
        columns.append(fit.log_odds(held.features[:, step]))
    return np.stack(columns, 1)
