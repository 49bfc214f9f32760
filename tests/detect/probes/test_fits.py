"""Probes and calibration against scikit-learn, slow loops and distributions that are known."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mechmem.detect.probes.boosting import TreeProbes, copied_trees, fit_boosting
from mechmem.detect.probes.buckets import BUCKETS, bucket_of, buckets_with_steps
from mechmem.detect.probes.calibration import CalibrationPart, IsotonicCalibration, PlattCalibration
from mechmem.detect.probes.logistic import LogisticProbes, fit_logistic, group_sizes


def problem(rows: int = 300, columns: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-3, 4, columns) + rng.normal(size=columns)
    hidden = (features[:, 0] - features[:, 0].mean()) / features[:, 0].std()
    return features.astype(np.float32), hidden + 0.7 * rng.normal(size=rows) > 0.4


@pytest.mark.parametrize("seed", range(3))
def test_stored_trees_equal_scikit_learns(seed):
    features, truth = problem(400, 6, seed)
    # Ties with thresholds, which lie between values: integers give exact halves.
    features[:, 3] = np.random.default_rng(seed).integers(0, 5, 400)
    models = [GradientBoostingClassifier(n_estimators=25, max_depth=d, random_state=seed) for d in (1, 3, 4)]
    weights = np.where(truth, 2.0, 1.0)
    for model in models:
        model.fit(features, truth, sample_weight=weights)
        probes = TreeProbes.stack([copied_trees(model)])
        new, _ = problem(500, 6, seed + 10)
        new[:, 3] = np.random.default_rng(seed + 1).integers(0, 5, 500) - 0.5 * (seed % 2)
        for rows in (features, new):
            found = torch.sigmoid(probes.log_odds(torch.from_numpy(rows), 0)).numpy()
            np.testing.assert_allclose(found, model.predict_proba(rows)[:, 1], atol=1e-6)


def test_stacked_trees_keep_their_buckets():
    fits = [fit_boosting(*problem(seed=seed), trees=5, depth=depth, seed=0) for seed, depth in ((0, 3), (1, 1))]
    features, _ = problem(50, seed=9)
    for bucket, fit in enumerate(fits):
        found = TreeProbes.stack(fits).log_odds(torch.from_numpy(features), bucket)
        np.testing.assert_allclose(found.numpy(), fit.log_odds(features), atol=1e-6)
    assert TreeProbes.stack(fits).depth == 3


def test_logistic_of_one_group_is_scikit_learns_on_standardized_columns():
    features, truth = problem()
    wide = (features - features.mean(0, dtype=np.float64)) / features.std(0, dtype=np.float64)
    reference = LogisticRegression(C=0.3 / 7, class_weight="balanced", tol=1e-8, max_iter=5000).fit(wide, truth)
    # More than 32 columns would be a large group; of a small one C is its own.
    fit = fit_logistic(features, truth, 30.0, np.full(7, 7))
    small = LogisticRegression(C=30.0 / 7, class_weight="balanced", tol=1e-8, max_iter=5000).fit(wide, truth)
    np.testing.assert_allclose(fit.log_odds(features), small.decision_function(wide), atol=0.02)
    assert np.abs(fit.log_odds(features) - reference.decision_function(wide)).max() > 0.1
    stacked = LogisticProbes.stack([fit, fit]).log_odds(torch.from_numpy(features), 1)
    np.testing.assert_allclose(stacked.numpy(), fit.log_odds(features), atol=1e-3)


def test_a_column_that_does_not_vary_gets_no_weight():
    features, truth = problem()
    features[:, 2] = 3.0
    assert fit_logistic(features, truth, 1.0, np.full(7, 7)).weight[2] == 0


def test_many_columns_of_noise_do_not_drown_a_few_that_tell():
    rng = np.random.default_rng(0)
    truth, new_truth = np.arange(200) < 100, np.arange(400) < 200
    told = [np.where(t, 1.5, -1.5)[:, None] + rng.normal(size=(len(t), 1)) for t in (truth, new_truth)]
    whole = [np.concatenate([few, rng.normal(size=(len(few), 300))], 1) for few in told]
    losses = {}
    for name, sizes in (("apart", np.r_[1, np.full(300, 300)]), ("together", np.full(301, 301))):
        odds = fit_logistic(whole[0], truth, 3.0, sizes).log_odds(whole[1])
        losses[name] = log_loss(new_truth, 1 / (1 + np.exp(-odds)))
    assert losses["apart"] < 0.7 * losses["together"]


def test_groups_of_columns_by_their_names():
    names = ("output:entropy", "output:margin", "residual3:0", "residual3:1", "residual3:2", "residual4:0")
    names += ("L1H2:norm", "L10H0:norm", "neuron3.17", "neuron0.1", "prefix:mink")
    assert group_sizes(names).tolist() == [2, 2, 3, 3, 3, 1, 2, 2, 2, 2, 1]


def test_platt_finds_the_line_of_known_probabilities():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=40_000) * 2
    truth = rng.random(40_000) < 1 / (1 + np.exp(-(0.5 * odds + 0.3)))
    found = PlattCalibration.fit([CalibrationPart(odds, truth)])
    # At even odds: the offset loses the log odds of the sample.
    prior = np.log(truth.mean() / (1 - truth.mean()))
    assert found.slope.item() == pytest.approx(0.5, abs=0.02)
    assert found.offset.item() == pytest.approx(0.3 - prior, abs=0.03)


def test_platt_of_classes_that_do_not_overlap_is_as_sure_as_the_rows_allow():
    odds = np.r_[np.full(20, -5.0), np.full(20, 5.0)]
    found = PlattCalibration.fit([CalibrationPart(odds, odds > 0)])
    score = found.score(torch.tensor([-5.0, 5.0]), 0)
    np.testing.assert_allclose(score.numpy(), [1 / 22, 21 / 22], atol=1e-3)


def test_a_probe_that_is_worse_than_chance_is_not_turned_around():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=500)
    assert PlattCalibration.fit([CalibrationPart(odds, odds + rng.normal(size=500) < 0)]).slope.item() == 0


def test_isotonic_follows_a_curve_that_is_no_line():
    rng = np.random.default_rng(0)
    odds = rng.uniform(-3, 3, 60_000)
    true = 0.5 + 0.4 * np.tanh(3 * odds) * (np.abs(odds) > 1)
    found = IsotonicCalibration.fit([CalibrationPart(odds, rng.random(60_000) < true)])
    places = np.array([-2.5, -1.5, 0.0, 0.5, 1.5, 2.5])
    score = found.score(torch.from_numpy(places).float(), 0).numpy()
    np.testing.assert_allclose(score, np.interp(places, [-1.01, -1, 1, 1.01], [0.1, 0.5, 0.5, 0.9]), atol=0.03)
    assert (np.diff(found.score(torch.linspace(-9, 9, 500), 0).numpy()) >= 0).all()


def test_every_step_has_a_bucket():
    assert [bucket_of(k) for k in (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 100, 10_000)] == [
        0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6,
    ]  # fmt: skip
    assert len(BUCKETS) == 7
    assert buckets_with_steps((0, 3, 9)) == (0, 2, 8)
    assert buckets_with_steps((5, 6)) == (0,)
