"""How well detectors do on paragraphs that they were not trained on, beside every score that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from mechmem.data.bounds import Count, Share
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.data.token_counts import as_counts
from mechmem.detect.decoding.decoding_settings import DecodingSettings
from mechmem.detect.detector import Detector
from mechmem.detect.evaluation.compared_methods import EvaluationSettings, MethodScores, compare_methods
from mechmem.detect.evaluation.free_scores import free_scores
from mechmem.detect.evaluation.roc import weighted_auroc
from mechmem.detect.evaluation.whole_generation import first_flags
from mechmem.detect.features.detection_features import features_of_choice
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.probes.fit import step_scores, step_statistics
from mechmem.detect.training.candidates import union
from mechmem.detect.training.train_detector import truth_of
from mechmem.detect.training.training_texts import prefix_hashes
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.vocabulary import vocabulary


@public("run")
def evaluate_detector(
    detector: Detector | Mapping[str, Detector],
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    counts: Any = None,
    base_rate: Share | None = None,
    decoding: DecodingSettings | None = None,
    settings: EvaluationSettings | None = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Judge detectors and free baselines on the same texts, which the model says itself.

    1. Let the model continue every prefix, and read the detectors' features and the free scores at every step.
    2. A text is recited if it is the whole true continuation, and is not if at most a fifth of the continuation's
       tokens lead it; those between are left out.
    3. Judge each detector's score, and each baseline, at each of `settings.ks`. Thresholds for a false positive rate
       come from other clusters than those that they are judged on.
    4. Judge alarms over whole generations: a detector's by its own conformal threshold for `settings.false_alarms`, a
       baseline's by a threshold from other clusters.

    Args:
        detector: one, or several by name; one alone is called "detector".
        model: the detectors' own, edited or not; hooks on it act as usual.
        paragraphs: recited ones and others, none of which the detectors were trained on. Near-duplicates are told by
            the column `cluster`.
        counts: corpus count of every token id, [d_vocab]: adds the baselines of rarity.
        base_rate: share of recitations in the corpus, for `precision`; None: that of `paragraphs`.
        decoding: how the model continues; None: greedily. Its `ks` are all steps.
        settings: None: the defaults.
        batch_size: paragraphs that decode together; None: chosen for the machine.
        progress: called with (parts of a hundred done, 100).

    Returns:
        Dataset of dimensions `method` (detectors first; `kind` says which is a baseline), `k`, `bin`, `paragraph` and
        `step`, each value of a method with bounds `*_low` and `*_high` by resampling clusters. One method is
        `result.sel({"method": "detector"})`: `sel(method=...)` is an option of xarray's own.
        [method, k]: auroc, tpr_at_1, tpr_at_01, the rates fpr_at_1 and fpr_at_01 that their thresholds realized,
        precision (of tpr_at_1 at the base rate), calibration_error;
        [method]: flagged, flagged_early, lead_time (tokens), false_alarm_rate, false_alarms_per_1000, all over whole
        generations; bound (of false_alarm_rate; NaN: a baseline, or an infinite threshold: never an alarm), sign (that
        a baseline is taken with, the one that serves it best);
        [method, bin]: predicted, observed, in_bin (reliability over all k);
        of the first detector: score[paragraph, step], first_flag[paragraph] (own tokens said; -1: never);
        label[paragraph] (1 recited, 0 not, -1 between), em[paragraph], said[paragraph, pos].
        `attrs`: base_rate, generation_len, recitations, others, left_out and the settings.

    Raises:
        InputError: no detector, one of another model, paragraphs that one was trained on or that do not fit the model,
            or fewer than two clusters that are recited or not.
    """
    settings, decoding = settings or EvaluationSettings(), decoding or DecodingSettings()
    detectors = _named(detector)
    _check(detectors, model, paragraphs, decoding)
    counts = None if counts is None else as_counts(counts, model.cfg.d_vocab, vocabulary(model))
    features = _decoded(detectors, model, paragraphs, decoding, batch_size, between(progress, 0, 80, 100))
    length = min(features.sizes["pos"], paragraphs.continuation_len)
    recites, clear = truth_of(features.em.values, length)
    rows = np.flatnonzero(clear)
    methods = {name: _detector_scores(each, features, settings.false_alarms) for name, each in detectors.items()}
    baselines = free_scores(features, paragraphs, counts=counts, tokenizer=model.tokenizer)
    signs = {}
    for name, scores in zip(map(str, baselines.baseline.values), baselines.values, strict=True):
        signs[name] = _sign(scores[rows], recites[rows])
        methods[name] = MethodScores(signs[name] * scores)
    found = compare_methods(
        {name: _rows(method, rows) for name, method in methods.items()},
        recites[rows],
        paragraphs.clusters[rows],
        tuple(features.k.values.tolist()),
        generation_len=features.sizes["pos"],
        base_rate=float(recites.mean()) or None if base_rate is None else base_rate,
        settings=settings,
        progress=between(progress, 80, 100, 100),
    )
    fires = {name for name in detectors if np.isfinite(detectors[name].threshold(settings.false_alarms))}
    known = [settings.false_alarms if name in fires else np.nan for name in methods]
    meaning = "of false_alarm_rate, by the conformal threshold; NaN: a baseline, or a detector without a finite one"
    found = found.assign(
        bound=("method", known, {"units": "1", "long_name": meaning}),
        sign=("method", [signs.get(name, 1.0) for name in methods], {"long_name": "with which a baseline is taken"}),
    )
    of_rows = _per_paragraph(methods[next(iter(detectors))], features, recites, clear)
    return found.merge(of_rows).assign_attrs(found.attrs | {"left_out": int((~clear).sum())})


def _named(detector: Any) -> dict[str, Detector]:
    found = dict(detector) if isinstance(detector, Mapping) else {"detector": detector}
    wrong = [each for each in found.values() if not isinstance(each, Detector)]
    if wrong or not found:
        came = type(wrong[0]).__name__ if wrong else "none"
        raise InputError(
            f"got {came} as detector; need a mechmem.Detector, or several in a dict by name: train one with "
            "mechmem.train_detector, or load one with mechmem.Detector.load(folder)"
        )
    return found


def _check(
    detectors: Mapping[str, Detector], model: HookedTransformer, paragraphs: Paragraphs, decoding: DecodingSettings
) -> None:
    check_fit(model, paragraphs)
    if decoding.ks is not None:
        raise InputError("got decoding with ks; detectors are judged at every step: choose rows with settings.ks")
    for name, detector in detectors.items():
        detector.check_model(model)
        seen = int(np.isin(prefix_hashes(paragraphs), detector.trained_on).sum())
        if seen:
            raise InputError(
                f"got {seen} paragraphs that {name!r} was trained on among {len(paragraphs)}; need others, of other "
                "clusters too: paragraphs.split_by_cluster() before training makes two such sets"
            )


def _decoded(
    detectors: Mapping[str, Detector],
    model: HookedTransformer,
    paragraphs: Paragraphs,
    decoding: DecodingSettings,
    batch_size: int | None,
    progress: ProgressLike,
) -> xr.Dataset:
    """Features of all detectors and baselines at every step."""
    free = FeatureChoice(("output", "prefix"))
    choice = union([*(detector.choice for detector in detectors.values()), free])
    length = decoding.length(paragraphs.continuation_len)
    return features_of_choice(
        model, paragraphs, choice, replace(decoding, ks=tuple(range(length))), batch_size, progress
    )


def _detector_scores(detector: Detector, features: xr.Dataset, false_alarms: float) -> MethodScores:
    scores, statistic = step_scores(detector, features), step_statistics(detector, features)
    threshold = detector.threshold(false_alarms)
    return MethodScores(scores.astype(np.float64), statistic.astype(np.float64), threshold, True, "detector")


def _sign(scores: Float[np.ndarray, "paragraph k"], recites: Bool[np.ndarray, " paragraph"]) -> float:
    """With which a baseline separates best, mean over the steps: a baseline must not lose by its sign."""
    if recites.all() or not recites.any():
        return 1.0
    one = np.ones((1, len(scores)), dtype=np.float32)
    areas = [weighted_auroc(column.astype(np.float64), recites, one)[0] for column in scores.T]
    return 1.0 if np.mean(areas) >= 0.5 else -1.0


def _rows(method: MethodScores, rows: np.ndarray) -> MethodScores:
    statistic = None if method.statistic is None else method.statistic[rows]
    return replace(method, scores=method.scores[rows], statistic=statistic)


def _per_paragraph(
    first: MethodScores, features: xr.Dataset, recites: Bool[np.ndarray, " paragraph"], clear: np.ndarray
) -> xr.Dataset:
    """Of the first detector, at every step, for pictures of single texts."""
    assert first.statistic is not None and first.threshold is not None
    ks = tuple(features.k.values.tolist())
    thresholds = np.full(len(first.scores), first.threshold)
    flags = first_flags(first.statistic, thresholds, ks, features.sizes["pos"])
    label = np.where(clear, recites.astype(int), -1)
    score = {"units": "1", "higher": "more likely recited", "long_name": "probability at even odds"}
    flag = {"units": "tokens", "long_name": "own tokens said at the first flag; -1: never"}
    found: dict[str, Any] = {
        "score": (("paragraph", "step"), first.scores, score),
        "first_flag": ("paragraph", flags.first, flag),
        "label": ("paragraph", label, {"long_name": "1 recited, 0 not, -1 between"}),
        "em": features.em.variable,
        "said": features.said.variable,
    }
    step = ("step", list(ks), {"units": "tokens", "long_name": "own tokens said"})
    coords = {"paragraph": features.paragraph.values, "pos": features.pos.values, "step": step}
    return xr.Dataset(found, coords)
