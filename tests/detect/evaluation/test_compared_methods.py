"""Methods on texts whose truth is known: what separates, what cannot, and what only knows the kind of text."""

import contextlib
import warnings

import jaxtyping
import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.detect.evaluation.compared_methods import (
    GENERATION_VALUES,
    STEP_VALUES,
    EvaluationSettings,
    MethodScores,
    compare_methods,
    largest_so_far,
)
from mechmem.detect.evaluation.roc import held_out_rates, weighted_auroc
from mechmem.detect.probes.examples import cluster_folds
from tests.detect.reciting import edited, reciting, together

KS = (0, 1, 2, 3)
SETTINGS = EvaluationSettings(ks=(0, 2), folds=3, draws=200, false_alarms=0.1)


def texts(count: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    return np.arange(count) < count // 3, np.repeat(np.arange(count // 2), 2), rng


def compared(methods, recites, clusters, **changes):
    return compare_methods(methods, recites, clusters, KS, generation_len=10, settings=SETTINGS, **changes)


def test_what_separates_is_perfect_and_noise_is_at_chance():
    recites, clusters, rng = texts()
    perfect = rng.random((120, 4)) / 4 + 0.7 * recites[:, None]
    methods = {"perfect": MethodScores(perfect)}
    methods |= {f"noise {at}": MethodScores(rng.random((120, 4))) for at in range(25)}
    found = compared(methods, recites, clusters)
    of_it, noise = found.sel({"method": "perfect"}), found.isel(method=slice(1, None))
    assert (of_it.auroc == 1).all() and (of_it.tpr_at_1 != of_it.tpr_at_1).all(), "80 others give no rate of 1 %"
    assert of_it.flagged == 1 and of_it.flagged_early == 1 and of_it.lead_time == 10
    assert 0.85 < ((noise.auroc_low < 0.5) & (noise.auroc_high > 0.5)).mean() < 1, "of 95 % intervals"
    assert noise.false_alarm_rate.mean() < 0.13 and np.isnan(of_it.calibration_error).all()


def test_shuffled_labels_hold_one_half():
    recites, clusters, rng = texts(240)
    scores = rng.normal(size=(240, 4)) + 2 * recites[:, None]
    # Of clusters, since near-duplicates share their truth.
    shuffled = np.repeat(rng.permutation(recites[::2]), 2)
    found = compared({"method": MethodScores(scores)}, shuffled, clusters)
    assert ((found.auroc_low < 0.5) & (found.auroc_high > 0.5)).all()
    honest = compared({"method": MethodScores(scores)}, recites, clusters)
    assert (honest.auroc_low > 0.8).all()


def test_what_knows_the_kind_alone_is_at_chance_on_matched_kinds():
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 200)
    clusters = np.arange(400)
    scores = np.repeat((kind + 0.1 * rng.normal(size=400))[:, None], 4, 1)
    leaking = rng.random(400) < np.where(kind == 1, 0.8, 0.2)
    matched = np.tile([True, False], 200)
    values = {name: compared({"kind": MethodScores(scores)}, truth, clusters) for name, truth in
              (("leaking", leaking), ("matched", matched))}  # fmt: skip
    assert (values["leaking"].auroc_low > 0.7).all()
    assert ((values["matched"].auroc_low < 0.5) & (values["matched"].auroc_high > 0.5)).all()


def test_values_are_those_of_their_parts_and_lie_between_their_bounds():
    recites, clusters, rng = texts(300, 1)
    scores = rng.normal(size=(300, 4)) + recites[:, None]
    found = compared({"method": MethodScores(scores)}, recites, clusters, base_rate=0.01)
    one = np.ones((1, 300), dtype=np.float32)
    fold = cluster_folds(recites, clusters, 3, 0)
    for at, k in enumerate((0, 2)):
        row = found.isel(method=0, k=at)
        assert row.auroc.item() == weighted_auroc(scores[:, k], recites, one)[0]
        true, false = (rates[0, 0] for rates in held_out_rates(scores[:, k], recites, fold, (0.01,), one))
        assert (row.tpr_at_1, row.fpr_at_1) == (true, false)
        assert row.precision.item() == pytest.approx(0.01 * true / (0.01 * true + 0.99 * max(false, 0.01)))
    for name in (*STEP_VALUES, *GENERATION_VALUES):
        value, low, high = (found[name + end].values for end in ("", "_low", "_high"))
        known = np.isfinite(low)
        assert (low[known] <= value[known] + 1e-9).all() and (value[known] <= high[known] + 1e-9).all(), name
        assert found[name].attrs["units"] and found[name].attrs["long_name"]
    assert found.attrs["base_rate"] == 0.01 and found.attrs["others"] == 200


def test_intervals_by_cluster_are_wider_than_by_text():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 10)
    recites = clusters < 10
    common = rng.normal(size=30)[clusters]
    scores = np.repeat((common + 0.1 * rng.normal(size=300) + recites)[:, None], 4, 1)
    widths = []
    for labels in (clusters, np.arange(300)):
        found = compared({"method": MethodScores(scores)}, recites, labels)
        widths.append((found.auroc_high - found.auroc_low).values[0, 0])
    assert widths[0] > 2 * widths[1]


def test_a_threshold_of_its_own_is_used_and_steps_without_text_do_not_count():
    recites, clusters, _ = texts()
    statistic = np.repeat(recites[:, None] * 1.0, 4, 1)
    kept = MethodScores(statistic, statistic, 0.5, kind="detector")
    never = MethodScores(statistic, statistic, np.inf)
    found = compared({"kept": kept, "never": never}, recites, clusters)
    assert found.flagged.values.tolist() == [1.0, 0.0] and found.kind.values.tolist() == ["detector", "baseline"]
    scores = np.array([[0.0, -3.0, -1.0], [0.0, -2.0, -4.0]])
    assert largest_so_far(scores).tolist() == [[-4.0, -3.0, -1.0], [-4.0, -2.0, -2.0]]


def test_too_few_clusters_and_other_shapes_are_sentences():
    recites, clusters, _ = texts()
    scores = MethodScores(np.zeros((120, 4)))
    with pytest.raises(InputError, match="got 1 cluster of recited paragraphs.*need at least 2"):
        compared({"method": scores}, np.arange(120) < 2, clusters)
    with pytest.raises(InputError, match="got 0 clusters of other paragraphs"):
        compared({"method": scores}, np.ones(120, dtype=bool), clusters)
    with pytest.raises(InputError, match=r"got scores of 'method' of shape \[120, 3\]; need finite numbers"):
        compared({"method": MethodScores(np.zeros((120, 3)))}, recites, clusters)
    with pytest.raises(InputError, match="got statistic of 'method'"):
        compared({"method": MethodScores(np.zeros((120, 4)), np.full((120, 4), np.nan))}, recites, clusters)


@contextlib.contextmanager
def without_checks_of_annotations():
    """As users run it: the checks that tests switch on would answer before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def trained(tiny_model):
    settings = mm.DetectorSettings(ks=(0, 2, 5), folds=2, penalties=(1.0,))
    return mm.train_detector(tiny_model, *reciting(tiny_model, 40), method="logistic", settings=settings)


def test_a_whole_evaluation(tiny_model, trained):
    new = together(*reciting(tiny_model, 12, seed=7))
    few = EvaluationSettings(ks=(0, 5), draws=30, folds=2, false_alarms=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = mm.evaluate_detector(
            {"first": trained, "second": trained}, tiny_model, new, counts=np.arange(61) + 1, settings=few
        )
    first, second = (found.sel({"method": name}) for name in ("first", "second"))
    assert first.auroc.equals(second.auroc.assign_coords(first.auroc.coords))
    assert {"nll", "entropy", "margin", "mink", "minkpp", "zlib", "distinct", "rarity", "prefix_nll"} <= set(
        found.method.values.tolist()
    )
    assert found.kind.values[:3].tolist() == ["detector", "detector", "baseline"]
    assert found.sizes["step"] == 10 and found.label.values.tolist() == [1] * 12 + [0] * 12
    assert found.attrs["base_rate"] == 0.5 and found.attrs["left_out"] == 0
    # Baselines are taken with the sign that serves them.
    assert (found.auroc.sel({"method": "prefix_nll"}) >= 0.5).all() and set(found.sign.values) <= {-1.0, 1.0}
    flagged = (found.first_flag.values[:12] >= 0).mean()
    assert flagged == first.flagged


def test_an_edited_model_is_judged_by_what_it_says_itself(tiny_model, trained):
    other = edited(tiny_model)
    new = together(*reciting(other, 8, seed=5))
    found = mm.evaluate_detector(trained, other, new, settings=EvaluationSettings(ks=(0,), draws=20, folds=2))
    assert found.attrs["recitations"] == 8


def test_evaluations_that_would_mislead_are_refused(tiny_model, bundled_model, trained):
    memorized, other = reciting(tiny_model, 40)
    with pytest.raises(InputError, match="paragraphs that 'detector' was trained on among 80; need others"):
        mm.evaluate_detector(trained, tiny_model, together(memorized, other))
    with pytest.raises(InputError, match="got a detector of a model with 4 layers"):
        mm.evaluate_detector(trained, bundled_model, memorized)
    with without_checks_of_annotations(), pytest.raises(InputError, match="got str as detector; need a mechmem.Detect"):
        mm.evaluate_detector("detector", tiny_model, memorized)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="got none as detector"):
        mm.evaluate_detector({}, tiny_model, memorized)
    with pytest.raises(InputError, match="judged at every step"):
        mm.evaluate_detector(trained, tiny_model, memorized, decoding=mm.DecodingSettings(ks=(0,)))
    with pytest.raises(InputError, match="got 0 clusters of other paragraphs"):
        mm.evaluate_detector(trained, tiny_model, reciting(tiny_model, 6, seed=8)[0])
