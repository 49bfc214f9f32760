"""The bound on false alarms is exact for exchangeable clusters, and two ways to lose it do lose it."""

import math

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.detect.probes.conformal import conformal_p_value, conformal_threshold


@pytest.mark.parametrize(("count", "rate", "rank"), [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (19, 0.1, 18)])
def test_the_threshold_is_the_ranked_value(count, rate, rank):
    null = np.random.default_rng(0).permutation(count).astype(float)
    assert conformal_threshold(null, rate) == rank - 1


def test_too_few_texts_never_raise_an_alarm():
    assert conformal_threshold(np.zeros(98), 0.01) == math.inf
    assert conformal_threshold(np.zeros(99), 0.01) == 0.0


def test_p_values_agree_with_thresholds_at_every_rate():
    rng = np.random.default_rng(1)
    null = np.sort(rng.integers(0, 40, 57)).astype(np.float32)
    statistic = rng.integers(-3, 44, 80).astype(np.float32)
    p = conformal_p_value(torch.from_numpy(null), torch.from_numpy(statistic)).numpy()
    slow = [(1 + (null >= one).sum()) / 58 for one in statistic]
    np.testing.assert_allclose(p, slow, rtol=1e-6)
    for rate in (0.03, 0.1, 0.35, 0.7):
        assert ((p <= rate + 1e-6) == (statistic > conformal_threshold(null, rate))).all()


def test_a_rate_must_be_a_level():
    with pytest.raises(InputError, match="as false_alarms; need"):
        conformal_threshold(np.zeros(5), 1.0)


def drawn_clusters(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Statistics of clusters of unequal size whose members are nearly alike."""
    return [rng.normal() + 0.1 * rng.normal(size=rng.choice([1, 1, 2, 30])) for _ in range(count)]


def rate_of(seed: int, rate: float, take: str) -> float:
    """How often the text of a new cluster exceeds the threshold, over many draws."""
    rng, false, total = np.random.default_rng(seed), 0, 0
    for _ in range(1500):
        null, new = drawn_clusters(rng, 39), drawn_clusters(rng, 4)
        values = [rng.choice(c) for c in null] if take == "one a cluster" else np.concatenate(null)
        threshold = conformal_threshold(np.array(values), rate)
        false += sum(float(rng.choice(cluster)) > threshold for cluster in new)
        total += len(new)
    return false / total


def test_one_text_of_each_cluster_gives_exactly_the_rate():
    # 0.05 * 40 is whole, so that the bound is reached: 2 of 40 ranks.
    assert rate_of(0, 0.05, "one a cluster") == pytest.approx(0.05, abs=0.008)


def test_texts_one_by_one_do_not_where_clusters_are_unequal():
    # Control: a large cluster counts as thirty texts, and the rank means nothing.
    assert rate_of(0, 0.05, "all") > 0.06


def test_scores_of_training_texts_break_the_bound():
    """Control: a probe of 40 noisy features, fitted on the very texts whose scores give the threshold."""
    from mechmem.detect.probes.logistic import fit_logistic

    rng, false, honest = np.random.default_rng(2), [], []
    for _ in range(40):
        features, truth = rng.normal(size=(120, 40)), np.arange(120) < 60
        features[truth, 0] += 1
        fit = fit_logistic(features, truth, 100.0, np.full(40, 40))
        held, new = rng.normal(size=(59, 40)), rng.normal(size=(200, 40))
        odds = fit.log_odds(new)
        false.append((odds > conformal_threshold(fit.log_odds(features[~truth]), 0.05)).mean())
        honest.append((odds > conformal_threshold(fit.log_odds(held), 0.05)).mean())
    assert np.mean(honest) == pytest.approx(0.05, abs=0.02)
    assert np.mean(false) > 0.1
