"""How many copies make a memory, and how that number changes with the size of the model.

A document is extractable when greedy decoding from its prefix gives the whole continuation. Its chance is fitted by
logistic regression on log2 of the copies, with Firth's penalty (1993): where few or no documents, or all beyond some
number of copies, are extractable, plain maximum likelihood has no finite answer. The copies at which the fit says one
half are never given beyond the numbers of copies that were inserted. Of all models together the same is fitted with
log2 of the parameters and of the training tokens beside the copies.

Small models reach no whole continuation, so there is a second number: the copies at which the mean NLL has come half
the way from that of documents that were never inserted to 0, interpolated in log2 of the copies.

Intervals resample documents: they hold for other documents, not for other trainings, of which there are few.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from ladder_agreement import over_rows

DRAWS = 500
Estimate = tuple[float, float, float]


def firth(design: np.ndarray, trials: np.ndarray, successes: np.ndarray, iterations: int = 60) -> np.ndarray:
    """Coefficients of a logistic regression with Firth's penalty, [term].

    1. p = 1 / (1 + exp(-design @ coefficients)), weights w = trials p (1 - p).
    2. Leverage h = w x' I^-1 x with the information I = X' W X.
    3. Step I^-1 X' (successes - trials p + h (1/2 - p)), no longer than 2 in any coefficient, until it is small.

    Args:
        design: [group, term], with a constant.
        trials: of each group.
        successes: of each group.
        iterations: at most so many steps.
    """
    coefficients = np.zeros(design.shape[1])
    ridge = 1e-9 * np.eye(design.shape[1])
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(design @ coefficients, -30, 30)))
        weights = trials * p * (1 - p)
        inverse = np.linalg.inv(design.T @ (weights[:, None] * design) + ridge)
        leverage = weights * np.einsum("gi,ij,gj->g", design, inverse, design)
        step = inverse @ (design.T @ (successes - trials * p + leverage * (0.5 - p)))
        step *= min(1.0, 2 / max(np.abs(step).max(), 1e-12))
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-6:
            break
    return coefficients


def half_extractable(copies: np.ndarray, whole: np.ndarray, clusters: np.ndarray) -> Estimate:
    """log2 of the copies at which half of the documents are extractable, and its interval.

    Args:
        copies: of each document, at least 1, [document].
        whole: whether it is extractable, [document] or [document, model].
        clusters: of each document.

    Returns:
        Beyond log2 of the most copies: one more than that, which says that it was not reached.
    """
    levels, of = np.unique(copies, return_inverse=True)
    design = np.stack([np.ones(len(levels)), np.log2(levels)], 1)
    share = whole.reshape(len(copies), -1).mean(1)

    def half(rows: np.ndarray) -> float:
        trials = np.bincount(of[rows], minlength=len(levels))
        successes = np.bincount(of[rows], share[rows], minlength=len(levels))
        constant, slope = firth(design, trials, successes)
        return _within(-constant / slope if slope > 1e-6 else np.inf, levels)

    return over_rows(half, clusters, DRAWS)


def half_nll(copies: np.ndarray, nll: np.ndarray, clusters: np.ndarray) -> Estimate:
    """log2 of the copies at which mean NLL is half of that without copies, and its interval; as `half_extractable`.

    Args:
        copies: of each document; 0 is among them, [document].
        nll: of each document, [document] or [document, model].
        clusters: of each document.
    """
    levels, of = np.unique(copies, return_inverse=True)
    values = nll.reshape(len(copies), -1).mean(1)

    def half(rows: np.ndarray) -> float:
        counts = np.bincount(of[rows], minlength=len(levels))
        sums = np.bincount(of[rows], values[rows], minlength=len(levels))
        if not counts.all():
            return half(np.concatenate([rows, np.flatnonzero(counts[of] == 0)]))
        means = sums / counts
        goal, curve, x = means[0] / 2, means[1:], np.log2(levels[1:])
        below = np.flatnonzero(curve <= goal)
        if not len(below):
            return _within(np.inf, levels)
        place = below[0]
        if place == 0:
            return float(x[0])
        share = (curve[place - 1] - goal) / (curve[place - 1] - curve[place])
        return float(x[place - 1] + share * (x[place] - x[place - 1]))

    return over_rows(half, clusters, DRAWS)


def _within(power: float, levels: np.ndarray) -> float:
    return float(np.clip(power, -1.0, np.log2(levels.max()) + 1))


def said_copies(estimate: Sequence[float], most: int) -> str:
    """Copies and their interval, as "91 [64, 128]"; what lies beyond the most copies as ">256"."""
    value, low, high = (f">{most}" if power > np.log2(most) else f"{2**power:.3g}" for power in estimate)
    return f"{value} [{low}, {high}]"


def joint_law(
    copies: np.ndarray, whole: np.ndarray, sizes: np.ndarray, tokens: np.ndarray, clusters: np.ndarray
) -> dict[str, Estimate]:
    """By what factor twice the parameters, or twice the tokens of text, change the copies that are needed.

    Args:
        copies: of each document, at least 1, [document].
        whole: whether it is extractable, [document, model].
        sizes: parameters of each model.
        tokens: of each model's training text.
        clusters: of each document.

    Returns:
        "parameters" and "tokens" -> factor and interval; what does not vary between the models is left out.
    """
    levels, of = np.unique(copies, return_inverse=True)
    varied = {"parameters": np.log2(sizes), "tokens": np.log2(tokens)}
    varied = {name: values for name, values in varied.items() if np.ptp(values) > 0}
    if not varied:
        return {}
    models = whole.shape[1]
    terms = [np.ones(len(levels) * models), np.repeat(np.log2(levels), models)]
    terms += [np.tile(values - values.mean(), len(levels)) for values in varied.values()]
    design = np.stack(terms, 1)

    def fitted(rows: np.ndarray) -> np.ndarray:
        trials = np.repeat(np.bincount(of[rows], minlength=len(levels)), models)
        successes = np.stack([np.bincount(of[rows], each[rows], minlength=len(levels)) for each in whole.T], 1)
        return firth(design, trials, successes.ravel())

    def factor(term: int, rows: np.ndarray) -> float:
        found = fitted(rows)
        # Beyond 2^8 the factor says nothing that is in the data.
        return 2 ** float(np.clip(-found[term] / max(found[1], 1e-6), -8, 8))

    return {
        name: over_rows(lambda rows, term=term: factor(term, rows), clusters, DRAWS)
        for term, name in enumerate(varied, start=2)
    }


def groups_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Shape and text, as "6M-small" -> its models of all seeds."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rsplit("-", 1)[0], []).append(name)
    return found


def stacked(last: Mapping[str, xr.Dataset], names: Sequence[str], measure: str) -> np.ndarray:
    """A measure of the same documents in several models, [document, model]."""
    parts = [last[name].em.values == 50 if measure == "whole" else last[name][measure].values for name in names]
    return np.stack(parts, 1)
