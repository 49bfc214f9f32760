"""Detectors and free baselines judged alike, on texts whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechmem.data.bounds import Count, Level, Seed, Share, Size, check_fields, checked
from mechmem.data.errors import InputError
from mechmem.data.progress import ProgressLike, batches
from mechmem.detect.detector_settings import Folds
from mechmem.detect.evaluation.cluster_draws import cluster_draws, draw_quantiles, interval
from mechmem.detect.evaluation.reliability import BINS, reliability
from mechmem.detect.evaluation.roc import held_out_rates, weighted_auroc
from mechmem.detect.evaluation.variables import ATTRIBUTES
from mechmem.detect.evaluation.whole_generation import Flags, first_flags, held_out_thresholds
from mechmem.detect.probes.examples import cluster_folds

# False positive rates of `tpr_at_1` and `tpr_at_01`.
RATES = (0.01, 0.001)
STEP_VALUES = ("auroc", "tpr_at_1", "tpr_at_01", "fpr_at_1", "fpr_at_01", "precision", "calibration_error")
GENERATION_VALUES = ("flagged", "flagged_early", "lead_time", "false_alarm_rate", "false_alarms_per_1000")
BIN_VALUES = ("predicted", "observed", "in_bin")


@dataclass(frozen=True)
class EvaluationSettings:
    """How detectors are judged.

    Attributes:
        ks: steps that get a row, those of them that were read.
        false_alarms: share of generations that may be flagged wrongly.
        folds: of clusters; thresholds of each come from the others.
        draws: resamples of clusters, for intervals.
        level: of the intervals.
        seed: of folds and resamples.
    """

    ks: tuple[Size, ...] = (0, 1, 2, 4, 8, 16, 32)
    false_alarms: Level = 0.01
    folds: Folds = 5
    draws: Count = 1000
    level: Level = 0.95
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class MethodScores:
    """What one method says of each text at each step.

    Attributes:
        scores: higher: more likely recited; for a calibrated method probabilities at even odds.
        statistic: its running statistic of the generation so far; None: the largest score so far.
        threshold: above which the statistic is an alarm; None: one is taken from the other texts of other clusters.
        calibrated: whether the scores are probabilities.
        kind: "detector" or "baseline".
    """

    scores: Float[np.ndarray, "paragraph k"]
    statistic: Float[np.ndarray, "paragraph k"] | None = None
    threshold: float | None = None
    calibrated: bool = False
    kind: str = "baseline"


@dataclass(frozen=True, eq=False)
class _Case:
    """What is the same for every method."""

    recites: Bool[np.ndarray, " paragraph"]
    clusters: np.ndarray
    ks: tuple[int, ...]
    generation_len: int
    base_rate: float
    settings: EvaluationSettings
    fold: np.ndarray
    # The first row is the data itself.
    weights: Float[np.ndarray, "draw paragraph"]
    # Of the other rows' values, where an interval ends.
    quantiles: tuple[float, float]


@checked
def compare_methods(
    methods: Mapping[str, MethodScores],
    recites: Bool[np.ndarray, " paragraph"],
    clusters: np.ndarray,
    ks: tuple[int, ...],
    *,
    generation_len: Count,
    base_rate: Share | None = None,
    settings: EvaluationSettings | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Judge methods by their scores at each step, and by their alarms over whole generations.

    Args:
        methods: name -> what it says.
        recites: the truth, [paragraph].
        clusters: labels, [paragraph].
        ks: steps of the scores.
        generation_len: tokens of a generation.
        base_rate: share of recitations for `precision`; None: that of these texts.
        settings: None: the defaults.
        progress: called with (methods done, methods).

    Returns:
        Dataset with dimensions `method`, `k` (those of `settings.ks` that were read) and `bin`. Each value has bounds
        `*_low` and `*_high`, by resampling clusters. `attrs` of each variable say what it is.

    Raises:
        InputError: fewer than two clusters of recited or of other texts, or scores of another shape.
    """
    settings = settings or EvaluationSettings()
    _check(methods, recites, clusters, ks)
    fold = cluster_folds(recites, clusters, settings.folds, settings.seed)
    draws = cluster_draws(recites, clusters, settings.draws, settings.seed)
    weights = np.concatenate([np.ones((1, len(recites)), dtype=np.float32), draws])
    base = float(recites.mean()) if base_rate is None else base_rate
    quantiles = draw_quantiles(recites, clusters, settings.level)
    case = _Case(recites, clusters, ks, generation_len, base, settings, fold, weights, quantiles)
    rows = []
    for at in batches(len(methods), 1, progress):
        name = list(methods)[at.start]
        rows.append(_compared(case, methods[name]).assign_coords(method=name, kind=methods[name].kind))
    attrs = {"false_alarms": settings.false_alarms, "generation_len": generation_len, "base_rate": base}
    attrs |= {"recitations": int(recites.sum()), "others": int((~recites).sum()), "seed": settings.seed}
    attrs |= {"clusters": len(np.unique(clusters)), "draws": settings.draws, "level": settings.level}
    together = xr.concat(rows, "method", coords="different", compat="equals", join="exact", combine_attrs="override")
    return together.assign_attrs(attrs)


def _compared(case: _Case, method: MethodScores) -> xr.Dataset:
    read = [(at, k) for at, k in enumerate(case.ks) if k in case.settings.ks]
    values: dict[str, list[np.ndarray]] = {name: [] for name in STEP_VALUES}
    for at, _ in read:
        for name, found in _at_step(case, method, method.scores[:, at]).items():
            values[name].append(found)
    arrays: dict[str, Any] = {}
    for name, columns in values.items():
        arrays |= _bounded(name, ("k",), np.stack(columns, 1), case.quantiles)
    for name, found in flags_of(case, method).shares(case.recites, case.weights).items():
        arrays |= _bounded(name, (), found, case.quantiles)
    for name, found in _bins(case, method).items():
        arrays |= _bounded(name, ("bin",), found, case.quantiles)
    return xr.Dataset(arrays, {"k": [k for _, k in read]})


def _at_step(case: _Case, method: MethodScores, scores: Float[np.ndarray, " paragraph"]) -> dict[str, np.ndarray]:
    """Every value of one step, [draw]."""
    found = {"auroc": weighted_auroc(scores, case.recites, case.weights)}
    true, false = held_out_rates(scores, case.recites, case.fold, RATES, case.weights)
    for at, name in enumerate(("1", "01")):
        found |= {f"tpr_at_{name}": true[at], f"fpr_at_{name}": false[at]}
    # Where fewer false alarms came than were aimed at, the aim is what can be relied on.
    wrong = (1 - case.base_rate) * np.maximum(false[0], RATES[0])
    right = case.base_rate * true[0]
    found["precision"] = right / (right + wrong)
    unknown = np.full(len(case.weights), np.nan)
    found["calibration_error"] = reliability(scores, case.recites, case.weights).error if method.calibrated else unknown
    return found


def flags_of(case: _Case, method: MethodScores) -> Flags:
    """When each generation is flagged: by the method's own threshold, or by one from other clusters."""
    statistic = largest_so_far(method.scores) if method.statistic is None else method.statistic
    if method.threshold is not None:
        thresholds = np.full(len(statistic), method.threshold)
    else:
        rate, seed = case.settings.false_alarms, case.settings.seed
        thresholds = held_out_thresholds(statistic.max(1), case.recites, case.fold, case.clusters, rate, seed)
    return first_flags(statistic, thresholds, case.ks, case.generation_len)


def largest_so_far(scores: Float[np.ndarray, "paragraph k"]) -> Float[np.ndarray, "paragraph k"]:
    """The largest score up to each step, without steps at which all texts have one score, as before any is said."""
    telling = np.ptp(scores, 0) > 0
    return np.maximum.accumulate(np.where(telling, scores, scores.min()), 1)


def _bins(case: _Case, method: MethodScores) -> dict[str, Float[np.ndarray, "draw bin"]]:
    """Reliability of all steps that get a row, together."""
    if not method.calibrated:
        return {name: np.full((len(case.weights), BINS), np.nan) for name in BIN_VALUES}
    steps = [at for at, k in enumerate(case.ks) if k in case.settings.ks]
    rows = method.scores[:, steps].reshape(-1)
    weights = np.repeat(case.weights, len(steps), 1)
    found = reliability(rows, np.repeat(case.recites, len(steps)), weights)
    return {"predicted": found.predicted, "observed": found.observed, "in_bin": found.mass}


def _bounded(
    name: str, dims: tuple[str, ...], found: Float[np.ndarray, "draw ..."], quantiles: tuple[float, float]
) -> dict[str, Any]:
    """A value and its bounds; the first draw is the data."""
    low, high = np.apply_along_axis(lambda column: np.array(interval(column, quantiles)), 0, found[1:])
    attrs = ATTRIBUTES[name]
    plain = {"units": attrs["units"]}
    return {name: (dims, found[0], attrs), f"{name}_low": (dims, low, plain), f"{name}_high": (dims, high, plain)}


def _check(
    methods: Mapping[str, MethodScores], recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, ks: tuple
) -> None:
    for truth, name in ((recites, "recited"), (~recites, "other")):
        count = len(np.unique(clusters[truth]))
        if count < 2:
            raise InputError(
                f"got {count} cluster{'s' * (count != 1)} of {name} paragraphs to judge detectors on; need at least 2: "
                "give more paragraphs"
            )
    for name, method in methods.items():
        arrays = {"scores": method.scores, "statistic": method.statistic}
        for kind, array in arrays.items():
            if array is not None and (array.shape != (len(recites), len(ks)) or not np.isfinite(array).all()):
                raise InputError(
                    f"got {kind} of {name!r} of shape {list(array.shape)}; need finite numbers of shape "
                    f"[{len(recites)}, {len(ks)}], one for each paragraph and step"
                )
