"""Detectors of made-up features: parts share no cluster, the right candidate wins, and the bound holds."""

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.detect.detector_settings import DetectorSettings
from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.probes.examples import cluster_folds, divide
from mechmem.detect.probes.fit import fit_detector, parts_of, step_scores, step_statistics
from tests.detect.example_features import DEEP, IDENTITY, OUTPUT, TREES, made_up

QUICK = DetectorSettings(trees=10, tree_depth=2, folds=2)


@pytest.mark.parametrize("seed", range(3))
def test_parts_share_no_cluster_and_each_has_both_sets(seed):
    examples = made_up(200, seed)
    # One cluster has both kinds of text.
    examples.recites[examples.clusters == examples.clusters[0]] = np.arange((examples.clusters == 0).sum()) % 2 == 0
    parts = parts_of(examples, DetectorSettings(), seed, thirds=True)
    assert sum(len(part) for part in parts) == 200
    for one, part in enumerate(parts):
        assert part.recites.any() and not part.recites.all()
        for other in parts[:one]:
            assert not set(part.clusters) & set(other.clusters)
    sizes = [len(np.unique(part.clusters)) for part in parts]
    assert np.allclose(np.array(sizes) / sum(sizes), (0.5, 0.2, 0.3), atol=0.04)


def test_a_division_by_rows_would_split_clusters():
    # Control for the test above: near-duplicates are in both halves unless clusters are dealt out whole.
    examples = made_up(200)
    rows = np.random.default_rng(0).permutation(200)
    assert set(examples.clusters[rows[:100]]) & set(examples.clusters[rows[100:]])


def test_every_part_gets_a_cluster_while_there_are_enough():
    recites, clusters = np.arange(8) < 3, np.arange(8)
    parts = divide(recites, clusters, (0.9, 0.05, 0.05), 0)
    assert [int(recites[rows].sum()) for rows in parts] == [1, 1, 1]
    assert len(np.unique(cluster_folds(recites, clusters, 50, 0))) == 3


@pytest.mark.parametrize("depth", [0, 2])
def test_the_depth_that_tells_is_chosen(depth):
    detector = fit_detector(made_up(told_at_depth=depth), [OUTPUT, *DEEP, TREES], identity=IDENTITY, settings=QUICK)
    assert detector.choice == FeatureChoice(("output", "residual"), (depth,))
    table = {tuple(row["depths"]): row for row in detector.notes["candidates"] if row["method"] == "logistic"}
    assert table[(depth,)]["auroc"] > 0.9 and 0.3 < table[()]["auroc"] < 0.7


def test_a_feature_that_separates_gives_every_recited_text_more():
    examples, new = (made_up(seed=seed, told_by_output=12.0) for seed in (0, 1))
    for candidate in (OUTPUT, TREES):
        detector = fit_detector(examples, [candidate], identity=IDENTITY, settings=QUICK)
        scores = step_scores(detector, new.features)
        assert scores[new.recites].min() > scores[~new.recites].max()
        assert detector.method == candidate.method


def test_scores_are_those_of_single_steps_and_rows():
    examples = made_up(told_by_output=1.0)
    detector = fit_detector(examples, [DEEP[1]], identity=IDENTITY, settings=QUICK)
    matrix, names = examples.columns(detector.choice)
    assert names == detector.names
    whole, statistic = step_scores(detector, examples.features), step_statistics(detector, examples.features)
    running = detector.statistic(1)
    for at, k in enumerate(examples.ks):
        row = torch.from_numpy(matrix[7:8, at])
        score = detector.score(row, k)
        slow = detector.calibration.score(detector.probes.log_odds(row, at), at)
        assert score.item() == pytest.approx(whole[7, at], abs=1e-5)
        assert score.item() == pytest.approx(slow.item(), abs=1e-5)
        assert running.step(score, k).item() == pytest.approx(statistic[7, at], abs=1e-3)
    # A step that was not trained on has the probe of its bucket.
    assert torch.equal(detector.score(row, 100), detector.score(row, 8))


def false_alarm_rates(rule: str, told: float, alpha: float) -> list[float]:
    """Whole generations of new clusters, one text of each."""
    rates = []
    for seed in range(12):
        settings = DetectorSettings(rule=rule, penalties=(1.0,), conformal=0.4)  # pyright: ignore[reportArgumentType]
        detector = fit_detector(made_up(160, seed, told_by_output=told), [OUTPUT], identity=IDENTITY, settings=settings)
        new = made_up(600, 100 + seed, told_by_output=told)
        _, first = np.unique(new.clusters, return_index=True)
        one = new.select(first)
        statistic = step_statistics(detector, one.select(np.flatnonzero(~one.recites)).features)[:, -1]
        rates.append(float((statistic > detector.threshold(alpha)).mean()))
    return rates


@pytest.mark.parametrize("rule", ["max", "cusum", "sprt"])
def test_false_alarms_of_whole_generations_are_within_the_bound(rule):
    assert np.mean(false_alarm_rates(rule, 1.0, 0.1)) < 0.1 + 0.03


def test_shuffled_labels_teach_nothing():
    detector = fit_detector(made_up(labels="shuffled", told_by_output=3.0), [OUTPUT], identity=IDENTITY, settings=QUICK)
    new = made_up(seed=1)
    assert np.abs(step_scores(detector, new.features) - 0.5).mean() < 0.2


def test_calibration_is_isotonic_where_there_is_enough_or_it_is_asked_for():
    examples = made_up(120, told_by_output=1.0)
    for wanted, kind in (("auto", "Platt"), ("isotonic", "Isotonic")):
        settings = DetectorSettings(calibration=wanted)  # pyright: ignore[reportArgumentType]
        found = fit_detector(examples, [OUTPUT], identity=IDENTITY, settings=settings).calibration
        assert type(found).__name__ == f"{kind}Calibration"


def test_the_same_seed_gives_the_same_detector():
    first, again = (
        fit_detector(made_up(told_by_output=1.0), [OUTPUT, TREES], identity=IDENTITY, settings=QUICK, seed=3)
        for _ in range(2)
    )
    assert np.array_equal(first.null, again.null) and first.notes == again.notes


@pytest.mark.parametrize(
    ("recited", "others", "said"),
    [
        (0, 6, "got no paragraph that the model recites; need at least 2 clusters"),
        (6, 0, "got no other paragraph"),
        (1, 6, "got 1 cluster of memorized paragraphs; need at least 2"),
        (6, 1, "got 1 cluster of other paragraphs; need at least 2"),
        (2, 3, "got 2 clusters of memorized and 3 of other paragraphs; need at least 3 and 4"),
    ],
)
def test_too_few_clusters_are_one_sentence(recited, others, said):
    examples = made_up(200)
    rows = []
    for truth, count in ((True, recited), (False, others)):
        labels = np.unique(examples.clusters[examples.recites == truth])[:count]
        rows.append(np.flatnonzero((examples.recites == truth) & np.isin(examples.clusters, labels)))
    with pytest.raises(InputError, match=said):
        fit_detector(examples.select(np.concatenate(rows)), [OUTPUT], identity=IDENTITY)


def test_features_that_are_not_finite_are_refused():
    examples = made_up(told_by_output=1.0)
    for candidate in (OUTPUT, TREES):
        detector = fit_detector(examples, [candidate], identity=IDENTITY, settings=QUICK)
        features = torch.zeros(2, len(detector.names))
        features[1, 3] = torch.nan
        with pytest.raises(InputError, match="not finite at k = 4"):
            detector.score(features, 4)
        with pytest.raises(InputError, match=r"got features of shape \[2, 3\] for a detector that reads"):
            detector.score(features[:, :3], 0)
