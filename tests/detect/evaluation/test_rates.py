"""AUROC, rates at thresholds from other clusters, and reliability, against slow loops and known answers."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import roc_auc_score

from mechmem.detect.evaluation.cluster_draws import cluster_draws, draw_quantiles, interval
from mechmem.detect.evaluation.reliability import reliability
from mechmem.detect.evaluation.roc import held_out_rates, weighted_auroc
from mechmem.detect.evaluation.whole_generation import Flags, first_flags, held_out_thresholds
from mechmem.detect.probes.conformal import conformal_threshold
from mechmem.detect.probes.examples import cluster_folds
from mechmem.stats.bootstrap import cluster_bootstrap_difference


def texts(count: int = 60, seed: int = 0, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, truths, and clusters of unequal size, some with both classes."""
    rng = np.random.default_rng(seed)
    recites = rng.random(count) < 0.4
    scores = rng.normal(size=count) + recites
    return np.round(scores, 1) if ties else scores, recites, rng.integers(0, count // 3, count)


def one(count: int) -> np.ndarray:
    return np.ones((1, count), dtype=np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_with_ties_and_weights_is_the_count_of_pairs(seed):
    scores, recites, clusters = texts(seed=seed)
    weights = cluster_draws(recites, clusters, 5, seed)
    found = weighted_auroc(scores, recites, weights)
    for draw, value in zip(weights, found, strict=True):
        wins = total = 0.0
        for i in np.flatnonzero(recites):
            for j in np.flatnonzero(~recites):
                pair = float(draw[i]) * float(draw[j])
                wins += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
                total += pair
        assert value == pytest.approx(wins / total, abs=1e-9)
    assert weighted_auroc(scores, recites, one(60))[0] == pytest.approx(roc_auc_score(recites, scores))


def slow_rates(scores, recites, fold, rate, weights):
    """Thresholds by repeating each text as often as it was drawn."""
    right = wrong = 0.0
    for number in np.unique(fold):
        others = np.flatnonzero((fold != number) & ~recites)
        null = np.repeat(scores[others], weights[others].astype(int))
        threshold = conformal_threshold(null, rate)
        threshold = null.max() if math.isinf(threshold) else threshold
        flagged = weights * (fold == number) * (scores > threshold)
        right, wrong = right + flagged[recites].sum(), wrong + flagged[~recites].sum()
    return right / weights[recites].sum(), wrong / weights[~recites].sum()


@pytest.mark.parametrize("seed", range(4))
def test_rates_at_thresholds_of_other_folds_are_the_slow_loops(seed):
    scores, recites, clusters = texts(90, seed)
    fold = cluster_folds(recites, clusters, 3, seed)
    weights = np.concatenate([one(90), cluster_draws(recites, clusters, 6, seed)])
    true, false = held_out_rates(scores, recites, fold, (0.1, 0.3), weights)
    for at, rate in enumerate((0.1, 0.3)):
        for draw, (right, wrong) in enumerate(zip(true[at], false[at], strict=True)):
            assert (right, wrong) == pytest.approx(slow_rates(scores, recites, fold, rate, weights[draw]))


def test_a_rate_that_too_few_texts_can_give_is_not_known():
    scores, recites, clusters = texts(90)
    fold = cluster_folds(recites, clusters, 3, 0)
    true, false = held_out_rates(scores, recites, fold, (0.3, 0.001), one(90))
    assert np.isfinite(true[0]).all() and np.isnan([true[1], false[1]]).all()


def test_realized_false_positives_meet_the_rate_and_those_of_own_thresholds_flatter():
    found = {"others": [], "own": []}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        recites, clusters = np.arange(80) < 20, np.arange(80)
        scores = rng.normal(size=80)
        fold = cluster_folds(recites, clusters, 4, seed)
        found["others"].append(held_out_rates(scores, recites, fold, (0.1,), one(80))[1][0, 0])
        # Control: the threshold of the very texts that are judged.
        own = np.sort(scores[~recites])[-7]
        found["own"].append((scores[~recites] > own).mean())
    assert np.mean(found["others"]) == pytest.approx(0.1, abs=0.03)
    assert np.std(found["own"]) < 1e-9 < np.std(found["others"]), "an own threshold meets its rate by construction"


def test_no_cluster_is_in_two_folds():
    _, recites, clusters = texts(200, 3)
    fold = cluster_folds(recites, clusters, 5, 0)
    assert all(len(np.unique(fold[clusters == label])) == 1 for label in np.unique(clusters))
    assert len(np.unique(fold)) == 5


def test_draws_are_those_of_whole_clusters_and_keep_both_classes():
    _, recites, clusters = texts(40, 1)
    weights = cluster_draws(recites, clusters, 200, 0)
    for label in np.unique(clusters):
        assert (np.ptp(weights[:, clusters == label], 1) == 0).all()
    assert (weights[:, recites].sum(1) > 0).all() and (weights[:, ~recites].sum(1) > 0).all()
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    alone = cluster_draws(np.array([True, False, False]), np.arange(3), 50, 0)
    assert (alone[:, 0] > 0).all()


def test_intervals_of_means_are_those_of_the_bootstrap():
    rng = np.random.default_rng(0)
    recites, clusters = np.arange(80) < 30, rng.integers(0, 30, 80)
    values = rng.normal(size=80)
    weights = cluster_draws(recites, clusters, 4000, 0)
    difference = (weights[:, recites] @ values[recites]) / weights[:, recites].sum(1)
    difference -= (weights[:, ~recites] @ values[~recites]) / weights[:, ~recites].sum(1)
    pair = (values[recites], values[~recites], clusters[recites], clusters[~recites])
    low, high = cluster_bootstrap_difference(*pair, draws=4000, seed=1, statistic=lambda part: part.mean())
    quantiles = draw_quantiles(recites, clusters, 0.95)
    assert quantiles[0] < 0.025 and sum(quantiles) == pytest.approx(1)
    assert interval(difference, quantiles) == pytest.approx((low, high), abs=0.06)
    # Of one cluster a class nothing is known; of many, they are percentiles.
    assert draw_quantiles(recites, recites, 0.95) == (0, 1)
    assert draw_quantiles(np.arange(40_000) < 20_000, np.arange(40_000), 0.95)[0] == pytest.approx(0.025, abs=1e-5)
    assert np.isnan(interval(np.array([0.1, np.nan]), quantiles)).all()


def test_areas_are_covered_at_few_clusters():
    """Of two classes of ten clusters: plain percentiles are too narrow."""
    covered: dict[str, Any] = {"ours": 0, "percentile": 0}
    rng = np.random.default_rng(0)
    for trial in range(250):
        recites, clusters = np.arange(60) < 30, np.arange(60) // 3
        scores = (rng.normal(size=20)[clusters] + 0.5 * rng.normal(size=60)) / 1.25**0.5 + recites
        weights = cluster_draws(recites, clusters, 300, trial)
        above = (scores[recites][:, None] > scores[~recites]).astype(np.float32)
        areas = ((weights[:, recites] @ above) * weights[:, ~recites]).sum(1)
        areas /= weights[:, recites].sum(1) * weights[:, ~recites].sum(1)
        for name, at in (("ours", draw_quantiles(recites, clusters, 0.95)), ("percentile", (0.025, 0.975))):
            low, high = interval(areas, at)
            covered[name] += low <= scipy.stats.norm.cdf(2**-0.5) <= high
    assert covered["ours"] >= 0.9 * 250 and covered["ours"] > covered["percentile"] + 3


def test_calibration_error_of_a_known_distribution():
    rng = np.random.default_rng(0)
    probability = rng.random(200_000)
    honest = rng.random(200_000) < probability
    assert reliability(probability, honest, one(200_000)).error[0] < 0.01
    # Too sure: what says p happens with 0.5 + (p - 0.5)/2, a quarter of |2p - 1| away, an eighth in the mean.
    boast = rng.random(200_000) < 0.5 + (probability - 0.5) / 2
    assert reliability(probability, boast, one(200_000)).error[0] == pytest.approx(0.125, abs=0.01)


def test_calibration_is_at_even_odds():
    rng = np.random.default_rng(1)
    probability = rng.random(300_000)
    truth = rng.random(300_000) < probability
    # Recitations become rare; probabilities at even odds stay right.
    kept = ~truth | (rng.random(300_000) < 0.1)
    assert reliability(probability[kept], truth[kept], one(int(kept.sum()))).error[0] < 0.02


def test_reliability_is_the_slow_loop_and_equal_probabilities_share_a_bin():
    rng = np.random.default_rng(0)
    probability, recites = np.round(rng.random(97), 1), rng.random(97) < 0.5
    # Sorted by truth: cutting a tie in two would put recited and other texts into different bins.
    order = np.argsort(recites, kind="stable")
    found = reliability(probability[order], recites[order], one(97), bins=4)
    again = reliability(probability, recites, one(97), bins=4)
    np.testing.assert_allclose(found.observed, again.observed, atol=1e-6)
    weight = 0.5 / np.where(recites, recites.sum(), (~recites).sum())
    error = 0.0
    bins = np.array([weight[probability < p].sum() + weight[probability == p].sum() / 2 for p in probability])
    for number in range(4):
        inside = (bins * 4).astype(int) == number
        if inside.any():
            mass = weight[inside].sum()
            error += abs((weight * recites)[inside].sum() - (weight * probability)[inside].sum())
            assert found.mass[0, number] == pytest.approx(mass, abs=1e-6)
    assert found.error[0] == pytest.approx(error, abs=1e-6)


def test_flags_over_a_generation_by_hand():
    statistic = np.array([[0, 2, 2, 2], [0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 5, 5], [0, 0, 0, 0]], dtype=float)
    recites = np.array([True, True, True, False, False])
    flags = first_flags(statistic, np.full(5, 1.0), (0, 1, 2, 3), 10)
    assert flags.first.tolist() == [1, 3, -1, 2, -1]
    found = {name: value[0] for name, value in flags.shares(recites, one(5)).items()}
    assert found == pytest.approx({
        "flagged": 2 / 3,
        "flagged_early": 1 / 3,
        "lead_time": 7.0,
        "false_alarm_rate": 0.5,
        "false_alarms_per_1000": 50.0,
    })  # fmt: skip
    nobody = Flags(np.full(5, -1), 10).shares(recites, one(5))
    assert np.isnan(nobody["lead_time"][0]) and nobody["flagged"][0] == 0


def test_a_flag_needs_more_than_the_threshold():
    assert first_flags(np.array([[1.0, 1.0]]), np.array([1.0]), (0, 1), 2).first.tolist() == [-1]


def test_thresholds_of_generations_come_from_other_folds_and_one_text_a_cluster():
    rng = np.random.default_rng(0)
    recites, clusters = np.arange(60) < 20, np.arange(60)
    fold = cluster_folds(recites, clusters, 3, 0)
    statistic = rng.normal(size=60)
    found = held_out_thresholds(statistic, recites, fold, clusters, 0.1, 0)
    for number in range(3):
        null = statistic[~recites & (fold != number)]
        assert (found[fold == number] == conformal_threshold(null, 0.1)).all()
    # A cluster of many equal texts counts once.
    lump = np.where(np.arange(60) < 50, clusters, 99)
    statistic[50:] = 10.0
    assert np.isfinite(statistic).all()
    assert (held_out_thresholds(statistic, recites, cluster_folds(recites, lump, 3, 0), lump, 0.1, 0) < 10).all()
