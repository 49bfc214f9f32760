"""The detection experiment: its truth, its sets and its rates against slow ways to them, and the script run small."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mechmem as mm


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3 == 0
    # A coarse grid, so that there are ties.
    scores = np.round(rng.normal(size=90) + labels, 1)
    return scores, labels, rng.integers(0, 25, 90)


def test_the_area_is_that_of_scikit_learn_on_the_drawn_rows(script, scored):
    module = script("detection_statistics")
    scores, labels, clusters = scored
    weights = module.cluster_weights(clusters, 20, seed=1)
    found = module.auroc(scores, labels, weights)
    assert len(found) == 21 and (weights[0] == 1).all()
    for value, drawn in zip(found, weights, strict=True):
        assert value == pytest.approx(roc_auc_score(labels, scores, sample_weight=drawn), abs=1e-6)
    # A cluster is drawn whole or not at all.
    assert all(len(np.unique(weights[3, clusters == label])) == 1 for label in np.unique(clusters))


def test_thresholds_come_from_the_other_half(script, scored):
    module = script("detection_statistics")
    scores, labels, clusters = scored
    first = module.half_of(clusters)
    assert not set(clusters[first]) & set(clusters[~first]) and first.any() and (~first).any()
    weights = module.cluster_weights(clusters, 8)
    for rate in (0.05, 0.2):
        hits, alarms = module.tpr_at(scores, labels, clusters, weights, rate)
        for draw, drawn in enumerate(weights.astype(int)):
            flagged = np.zeros(90, dtype=bool)
            for here, there in ((first, ~first), (~first, first)):
                null = np.repeat(scores[there & ~labels], drawn[there & ~labels])
                least = min(t for t in [*null.tolist(), np.inf] if (null > t).mean() <= rate + 1e-9)
                flagged |= here & (scores > least)
            for found, rows in ((hits, labels), (alarms, ~labels)):
                assert found[draw] == pytest.approx(np.average(flagged[rows], weights=drawn[rows]), abs=1e-6)


def test_calibrated_scores_have_no_calibration_error(script):
    module = script("detection_statistics")
    rng = np.random.default_rng(0)
    scores = rng.random(40_000)
    labels = rng.random(40_000) < scores
    one = np.ones((1, 40_000))
    assert module.calibration_error(scores, labels, one)[0] < 0.01
    assert module.calibration_error(scores**3, labels, one)[0] > 0.05


def test_precision_follows_the_base_rate(script):
    module = script("detection_statistics")
    assert module.precision(0.8, 0.01, 0.5) == pytest.approx(0.8 / 0.81)
    assert module.precision(0.8, 0.01, 0.001) == pytest.approx(0.0008 / (0.0008 + 0.00999))


def test_what_is_said_is_looked_up_word_for_word(script):
    module = script("detection_sets")
    rng = np.random.default_rng(0)
    corpus = [rng.integers(0, 40, size=length) for length in (120, 300, 77)]
    other = rng.integers(0, 40, size=(3, 50))
    half = np.r_[other[1, :20], corpus[1][40:70]]
    joint = np.r_[corpus[0][-25:], corpus[1][:25]]
    said = np.stack([corpus[1][200:250], other[0], half, joint, other[2]])
    texts = [" ".join(map(str, document.tolist())) for document in corpus]
    for length in (10, 25, 50):
        slow = [
            [any(f" {' '.join(map(str, row[at : at + length].tolist()))} " in f" {text} " for text in texts)
             for at in range(51 - length)]
            for row in said
        ]  # fmt: skip
        assert module.occurs(said, corpus, length).tolist() == slow
    # Where the two documents meet, no single one holds the text.
    found = module.truth(np.array([3, 0, 0, 0, 50]), said, corpus)
    assert found.elsewhere.tolist() == [True, False, False, False, False]
    assert found.partly.tolist() == [False, False, True, True, False]
    assert found.other.tolist() == [False, True, False, False, False]
    assert found.recites.tolist() == [False] * 4 + [True] and not found.between.any()


def test_matched_sets_share_kinds_and_no_cluster_and_confounds_see_what_is_planted(script, model, paragraphs):
    module = script("detection_sets")
    some = module.with_ease(model, paragraphs.select(np.random.default_rng(0).permutation(len(paragraphs))[:300]))
    row = some[7]
    text = model.tokenizer.decode(row.prefix[0].tolist())
    assert (
        row.column("characters")[0] == len(text) and row.column("distinct")[0] == len(set(row.prefix[0].tolist())) / 50
    )
    recites = some.column("count") > 16
    chosen = module.matched(some, recites, ~recites, ("source", "rarity"))
    kinds, clusters = some.column("source"), some.clusters
    for kind in np.unique(kinds):
        assert (chosen & recites & (kinds == kind)).sum() == (chosen & ~recites & (kinds == kind)).sum()
    assert chosen.any() and not set(clusters[chosen & recites]) & set(clusters[chosen & ~recites])
    easy = some.column("rarity") > np.median(some.column("rarity"))
    value, low, high = module.confound_auc(some, easy.astype(int), draws=50)
    assert value > 0.95 and low <= value <= high
    labels = np.random.default_rng(1).permutation(easy).astype(int)
    assert abs(module.confound_auc(some, labels, draws=10)[0] - 0.5) < 0.15


def test_predictable_texts_repeat_themselves_and_are_nowhere_in_the_training_text(script, model):
    module = script("detection_texts")
    sets = script("detection_sets")
    corpus = sets.training_text(model)
    found = module.predictable(model, corpus, 1)
    assert len(found) == len(module.FAMILIES) and len(np.unique(found.clusters)) == len(found)
    assert not sets.occurs(found.tokens.numpy(), corpus, 25).any()
    kinds = found.column("source")
    for family in ("repeated sentence", "constant table", "refrain"):
        row = found.tokens.numpy()[kinds == f"predictable: {family}"][0]
        # The continuation stands in the text before it, at a fixed distance.
        assert any((row[50:] == row[50 - lag : 100 - lag]).all() for lag in range(1, 51)), family
    assert mm.score(model, found).em.values.max() < 50


def test_the_script_compares_and_goes_on_where_it_was(script, model, tmp_path):
    module = script("detection")
    settings = module.Settings(
        seeds=(0, 1),
        candidates=100,
        predictable=1,
        localized=2,
        penalties=(0.1,),
        inner_folds=2,
        only=("output", "shuffled labels"),
        sections=("truth", "compared"),
        draws=5,
        out=tmp_path / "r",
        page=tmp_path / "p.md",
    )
    pictures = []
    page = __import__("detection_page")
    page.photograph = lambda _, path: pictures.append(path.name)
    results = module.main(settings, model)
    counts = {name: part[0] for name, part in results["rows"].items()}
    own = [counts[name] for name in ("recites", "other", "elsewhere", "partly", "between", "predictable")]
    assert sum(own) == 100 + 6
    every = results["compared"]["all"]
    # A recitation is much surer of what it says; a probe that never saw the truth is not.
    assert every["output"]["AUROC"][16][0] > 0.95 and every["free: nll"]["AUROC"][16][0] > 0.95
    assert 0.2 < every["shuffled labels"]["AUROC"][0][0] < 0.8
    text = (tmp_path / "p.md").read_text()
    assert f"{results['compared']['matched']['output']['AUROC'][4][0]:.3f} [" in text
    assert pictures == ["detection-step.png", "detection-depth.png"] * (len(pictures) // 2)
    # Nothing is decoded or fitted again.
    kept = [*(tmp_path / "r/rows").iterdir(), *(tmp_path / "r/folds").iterdir()]
    times = [path.stat().st_mtime_ns for path in kept]
    again = module.main(replace(settings, sections=("compared",)), model)
    assert len(kept) == 7 and times == [path.stat().st_mtime_ns for path in kept]
    assert again["compared"]["all"]["output"] == every["output"]
