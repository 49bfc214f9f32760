"""A detector from examples: chosen, fitted, calibrated and given its threshold on parts that share no cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mechmem.data.bounds import Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.progress import ProgressLike
from mechmem.detect.detector import Detector, Probes
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_arrays import columns_of
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.identity import Identity
from mechmem.detect.probes.boosting import TreeFit, TreeProbes
from mechmem.detect.probes.buckets import bucket_of, buckets_with_steps
from mechmem.detect.probes.calibration import (
    ENOUGH,
    Calibration,
    CalibrationPart,
    IsotonicCalibration,
    PlattCalibration,
)
from mechmem.detect.probes.choose import Candidate, Problem, best_penalty, choose, first_steps, fit_probe
from mechmem.detect.probes.examples import Examples, check_clusters, divide
from mechmem.detect.probes.logistic import LogisticFit, LogisticProbes
from mechmem.detect.probes.rules import statistics


@checked
def fit_detector(
    examples: Examples,
    candidates: Sequence[Candidate],
    *,
    identity: Identity,
    settings: DetectorSettings | None = None,
    null: Examples | Callable[[FeatureChoice], Examples] | None = None,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> Detector:
    """Fit a detector to features that were decoded before.

    1. Divide the clusters of the examples into a part to fit on, one to calibrate on, and one for the threshold.
    2. Choose a candidate by nested cross-validation over the clusters of the first part; one alone is taken as it is.
    3. Fit a probe for each bucket of steps on the first part, and calibrate it on the second.
    4. Take the statistic of whole generations of the third, one random paragraph of each cluster that is not recited.

    Args:
        examples: features of `settings.ks`, of other steps as well where `null` is not given.
        candidates: to choose from.
        identity: of the model that said the examples' texts.
        settings: None: the defaults.
        null: other examples for step 4, at every step that a monitor looks at, or a function that decodes them with
            the features that were chosen; those that are recited are left out. None: the third part of `examples`.
            Only the steps that are there count for the bound.
        seed: of divisions, choice and trees.
        progress: called with (candidates done, candidates).

    Returns:
        The detector; `notes` say how it was chosen.

    Raises:
        InputError: too few clusters, or features that lack a candidate's.
    """
    settings = settings or DetectorSettings()
    fitting, calibrating, *third = parts_of(examples, settings, seed, thirds=null is None)
    ks = tuple(k for k in examples.ks if k in settings.ks)
    if not ks:
        raise InputError(f"got features at k = {examples.ks} and settings.ks = {settings.ks}; need some in common")
    fitting, calibrating = fitting.at(ks), calibrating.at(ks)
    buckets = buckets_with_steps(ks)
    chosen, table = candidates[0], []
    if len(candidates) > 1:
        chosen, table = choose(fitting, candidates, buckets, settings, seed, progress)
    probes, penalty = _fitted(fitting, chosen, buckets, settings, seed)
    rest = _others(third[0] if null is None else null if isinstance(null, Examples) else null(chosen.choice))
    names = columns_of(fitting.features.isel(paragraph=slice(1)), chosen.choice)[1]
    detector = Detector(
        chosen.choice,
        names,
        buckets,
        probes,
        PlattCalibration(torch.ones(len(buckets)), torch.zeros(len(buckets))),
        settings.rule,
        np.zeros(1),
        rest.generation_len,
        identity,
        settings,
        notes={"candidates": table, "penalty": penalty, "looks": list(rest.ks), "seed": seed}
        | {"fitted_on": _counts(fitting), "calibrated_on": _counts(calibrating), "threshold_from": _counts(rest)},
    )
    detector = replace(detector, calibration=_calibrated(detector, calibrating))
    return replace(detector, null=_null(detector, rest, seed))


def parts_of(examples: Examples, settings: DetectorSettings, seed: int, *, thirds: bool) -> list[Examples]:
    """What a detector is fitted on, calibrated on, and, with `thirds`, what its threshold comes from.

    Raises:
        InputError: too few clusters.
    """
    check_clusters(examples.recites, examples.clusters, 3 if thirds else 2)
    fit = 1 - settings.calibrate - settings.conformal
    shares = (fit, settings.calibrate, settings.conformal)
    if not thirds:
        shares = (fit / (fit + settings.calibrate), settings.calibrate / (fit + settings.calibrate))
    parts = [examples.select(rows) for rows in divide(examples.recites, examples.clusters, shares, seed)]
    for part, name in zip(parts, ("fit a probe on", "calibrate it on"), strict=False):
        if part.recites.all() or not part.recites.any():
            raise InputError(
                f"got too few clusters: those to {name} have {int(part.recites.sum())} memorized and "
                f"{int((~part.recites).sum())} other paragraphs; need both: give more paragraphs"
            )
    return parts


def _others(part: Examples) -> Examples:
    if part.recites.all():
        raise InputError("got no other paragraph to take the threshold from; need at least 1: give more paragraphs")
    return part.select(np.flatnonzero(~part.recites))


def step_scores(detector: Detector, features: xr.Dataset) -> Float[np.ndarray, "paragraph k"]:
    """The scores of decoded texts at each of their steps, as a monitor computes them."""
    matrix, names = columns_of(features, detector.choice)
    if names != detector.names:
        wrong = next(iter(set(detector.names) ^ set(names)), "another order")
        raise InputError(
            f"got features with {len(names)} columns for a detector that reads {len(detector.names)} and differ in "
            f"{wrong}; need those of the same model and version: train the detector again"
        )
    ks = features.k.values.tolist()
    steps = (torch.from_numpy(np.ascontiguousarray(matrix[:, at])) for at in range(len(ks)))
    return np.stack([detector.score(step, k).numpy() for step, k in zip(steps, ks, strict=True)], 1)


def step_statistics(detector: Detector, features: xr.Dataset) -> Float[np.ndarray, "paragraph k"]:
    """The detector's statistic of decoded texts so far, at each of their steps."""
    scores = step_scores(detector, features)
    return statistics(detector.rule, scores, tuple(features.k.values.tolist()), detector.generation_len)


def _fitted(
    part: Examples, candidate: Candidate, buckets: tuple[int, ...], settings: DetectorSettings, seed: int
) -> tuple[Probes, float | None]:
    """Probes of all buckets, each fitted on all of its steps, and the penalty that was chosen."""
    problem, penalty = Problem.of(part, candidate.choice), None
    if candidate.method == "logistic":
        firsts = Problem.of(part.at(first_steps(part.ks, buckets)), candidate.choice)
        penalty = best_penalty(firsts, settings, settings.folds, seed)
    fits: list[Any] = []
    for bucket in range(len(buckets)):
        steps = _steps(part.ks, bucket, buckets)
        fits.append(fit_probe(problem, steps, candidate.method, penalty or 0.0, settings, seed))
    if all(isinstance(fit, TreeFit) for fit in fits):
        return TreeProbes.stack(fits), penalty
    assert all(isinstance(fit, LogisticFit) for fit in fits)
    return LogisticProbes.stack(fits), penalty


def _calibrated(detector: Detector, part: Examples) -> Calibration:
    matrix = torch.from_numpy(part.columns(detector.choice)[0])
    found = []
    for bucket in range(len(detector.buckets)):
        steps = _steps(part.ks, bucket, detector.buckets)
        rows = matrix[:, steps].reshape(-1, matrix.shape[2])
        odds = detector.probes.log_odds(rows, bucket).double().numpy()
        found.append(CalibrationPart(odds, np.repeat(part.recites, len(steps))))
    enough = min(int(part.recites.sum()), int((~part.recites).sum())) >= ENOUGH
    wanted = detector.settings.calibration
    isotonic = wanted == "isotonic" or (wanted == "auto" and enough)
    return IsotonicCalibration.fit(found) if isotonic else PlattCalibration.fit(found)


def _null(detector: Detector, part: Examples, seed: int) -> Float[np.ndarray, " cluster"]:
    """Statistics of whole generations, of one random paragraph of each cluster: these are exchangeable."""
    last = step_statistics(detector, part.features)[:, -1]
    order = np.random.default_rng(seed).permutation(len(last))
    _, first = np.unique(part.clusters[order], return_index=True)
    return np.sort(last[order[first]].astype(np.float64))


def _steps(ks: tuple[int, ...], bucket: int, buckets: tuple[int, ...]) -> list[int]:
    """Places of a bucket's steps."""
    return [at for at, k in enumerate(ks) if bucket_of(k, buckets) == bucket]


def _counts(part: Examples) -> dict[str, int]:
    recited = int(part.recites.sum())
    return {"memorized": recited, "other": len(part) - recited, "clusters": len(np.unique(part.clusters))}
