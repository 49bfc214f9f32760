"""A model that never read the targets is known by construction: the planted one without what was written for them."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.intervene.baseline import Baseline
from mechmem.intervene.costs import Reader
from mechmem.intervene.forget_quality import area_above, forget_quality, truth_ratios, wrong_rows
from mechmem.measure.outputs import outputs_of
from mechmem.model.lean.model import LeanModel
from mechmem.model.load import HookedTransformer

SIZES = mm.PlantedSettings(memories=6, others=12, d_mlp=256, prefix_len=12, continuation_len=10, n_ctx=32)


def without(model: HookedTransformer, neurons) -> HookedTransformer:
    """The model without what these neurons write."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in neurons:
            edited.blocks[layer].mlp.get_parameter("W_out")[neuron] = 0.0
    return edited


def shaken(model: HookedTransformer, seed: int) -> HookedTransformer:
    """Another training's model: the same with small differences everywhere."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def truth():
    return mm.planted(SIZES)


@pytest.fixture(scope="module")
def models(truth):
    """The original, the exact edit, a wrong one, the oracle and another training of the original."""
    drawn = np.random.default_rng(0).permutation([(1, n) for n in range(200) if (1, n) not in truth.neurons])[:20]
    return {
        "original": truth.model,
        "exact": without(truth.model, truth.neurons),
        "wrong": without(truth.model, drawn),
        "oracle": without(truth.model, truth.neurons),
        "scale": shaken(truth.model, 1),
    }


@pytest.fixture(scope="module")
def sets(truth):
    return {"targets": truth.memorized, "other": truth.other[:6], "never seen": truth.other[6:]}


def judge(models, sets, name: str, **options):
    return mm.evaluate(models["original"], models[name], sets, oracle=models["oracle"], **options)


def test_the_exact_edit_is_the_oracle_and_a_wrong_one_is_not(models, sets):
    exact, wrong = (judge(models, sets, name, oracle_scale=models["scale"]) for name in ("exact", "wrong"))
    assert exact.model.values.tolist() == ["before", "after", "oracle"]
    assert not exact.oracle_kl.sel(model="after").any() and not exact.oracle_distance.sel(model="after").any()
    assert (exact.oracle_distance.sel(set="targets", model="before") > 1).item()
    assert exact.em.sel(set="targets").values.tolist() == [10, 0, 0]
    assert exact.p_extractable.sel(set="targets").values[0] > 0.5 > exact.p_extractable.sel(set="targets").values[2]
    # Nothing tells the exact edit from the oracle; the model before it, and the wrong edit, are told at once.
    assert exact.forget_quality.values.tolist() == pytest.approx([2 / math.comb(12, 6), 1, 1])
    assert exact.privacy_leakage.sel(model=["after", "oracle"]).values.tolist() == [0, 0]
    assert exact.privacy_leakage.sel(model="before") < -0.5, "targets look read"
    for name in ("oracle_kl", "oracle_distance", "p_extractable"):
        both = [found[name].sel(set="targets", model="after").item() for found in (wrong, exact)]
        assert both[0] > both[1] + 0.1, name
    assert wrong.forget_quality.sel(model="after") < 0.01 and wrong.privacy_leakage.sel(model="after") < -0.5
    assert wrong.em.sel(set="targets", model="after") == 10


def test_the_numbers_are_those_of_one_measure_at_a_time(models, sets):
    found = judge(models, sets, "wrong", oracle_scale=models["scale"])
    for name, paragraphs in sets.items():
        one = found.sel(set=name)
        unit = float(mm.kl(models["original"], models["scale"], paragraphs).mean())
        assert one.oracle_scale.item() == pytest.approx(unit, rel=1e-3) and unit > 0
        for row, key in (("before", "original"), ("after", "wrong"), ("oracle", "oracle")):
            here, model = one.sel(model=row), models[key]
            apart = float(mm.kl(model, models["oracle"], paragraphs).mean())
            assert here.oracle_kl.item() == pytest.approx(apart, rel=1e-3, abs=1e-6)
            assert here.oracle_distance.item() == pytest.approx(apart / unit, rel=1e-3, abs=1e-4)
            drawn = mm.sampling_attack(model, paragraphs, draws=(1,), top_k=40)
            assert here.p_extractable.item() == pytest.approx(float(drawn.probability.mean()), rel=1e-3, abs=1e-9)
            scored = mm.score(model, paragraphs)
            assert here.em.item() == scored.em.mean() and here.nll.item() == pytest.approx(
                float(scored.nll.mean()), rel=1e-4, abs=1e-6
            )
            lowest = np.sort(scored.token_nll.values, 1)[:, -2:].mean()
            assert here.min_k_nll.item() == pytest.approx(lowest, rel=1e-4, abs=1e-6)


def slow_ratio(model: HookedTransformer, paragraphs: mm.Paragraphs, row: int, wrong: list[int]) -> float:
    def probability(tokens) -> float:
        with torch.no_grad():
            log_probs = model(tokens[None])[0].double().log_softmax(-1)
        start = paragraphs.prefix_len
        return math.exp(sum(log_probs[pos - 1, tokens[pos]].item() for pos in range(start, len(tokens))) / 10)

    prefix = paragraphs.tokens[row, : paragraphs.prefix_len]
    swapped = [probability(torch.cat([prefix, paragraphs.continuation[other]])) for other in wrong]
    return math.log(np.mean(swapped) / probability(paragraphs.tokens[row]))


def test_truth_ratios_are_their_definition(models, sets):
    targets = sets["targets"].with_columns(cluster=np.array([0, 0, 1, 2, 3, 3]))
    rows = wrong_rows(targets.clusters)
    assert rows[:2].tolist() == [[2, 3, 4, 5], [2, 3, 4, 5]] and rows[5].tolist() == [0, 1, 2, 3]
    for name in ("original", "oracle"):
        fast = truth_ratios(outputs_of(models[name]), targets)
        slow = [slow_ratio(models[name], targets, row, rows[row].tolist()) for row in range(6)]
        np.testing.assert_allclose(fast, slow, rtol=1e-4, atol=1e-4)


def test_a_test_of_clusters_and_not_of_near_duplicates():
    """Control: paragraphs counted one by one make a difference certain that three clusters cannot show."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(3), 20)
    first = np.array([0.0, 1.0, 2.0])[clusters] + 0.01 * rng.random(60)
    second = np.array([3.0, 4.0, 5.0])[clusters] + 0.01 * rng.random(60)
    found: Any = ks_2samp(first, second)
    assert found.pvalue < 1e-10
    assert forget_quality(first, second, clusters) == pytest.approx(2 / math.comb(6, 3))
    assert np.isnan(forget_quality(first, second, np.zeros(60)))
    values, others = rng.integers(0, 5, 7) * 1.0, rng.integers(0, 5, 9) * 1.0
    pairs = [(a > b) + 0.5 * (a == b) for a in values for b in others]
    assert area_above(values, others) == pytest.approx(np.mean(pairs))


def test_what_stays_the_same_is_computed_once(models, sets, monkeypatch):
    options = {"oracle_scale": models["scale"]}
    baseline, alone = Baseline(models["original"]), judge(models, sets, "wrong", **options)
    counts = []
    forward = LeanModel.forward
    monkeypatch.setattr(
        LeanModel, "forward", lambda self, *rest, **more: (counts.append(self), forward(self, *rest, **more))[1]
    )
    first = judge(models, sets, "wrong", baseline=baseline, **options)
    once = len(counts)
    second = judge(models, sets, "wrong", baseline=baseline, **options)
    assert len(counts) - once < once / 2
    assert first.identical(second) and first.identical(alone)


def test_sets_without_targets_and_one_cluster(models, sets):
    found = judge(models, {"other": sets["other"]}, "exact")
    assert "forget_quality" not in found and "oracle_distance" not in found and "oracle_kl" in found
    same = sets["targets"].with_columns(cluster=np.zeros(6, dtype=int))
    assert np.isnan(judge(models, {"targets": same}, "exact").forget_quality).all()
    assert "privacy_leakage" not in judge(models, {"targets": same}, "exact")


def test_what_cannot_be_an_oracle_is_refused(models, sets, small_model, monkeypatch):
    monkeypatch.setattr(Reader, "costs", lambda *_: pytest.fail("work was done"))
    original, edited = models["original"], models["exact"]

    def refused(match: str, **given) -> None:
        with pytest.raises(InputError, match=match):
            mm.evaluate(original, edited, sets, **given)

    refused("got the original model as oracle; need another model of its recipe, trained without", oracle=original)
    refused("got the original model as oracle", oracle=copy.deepcopy(original))
    refused("got the edited model as oracle", oracle=edited)
    refused("got oracle with n_layers .*; need the original's n_layers 4", oracle=small_model(d_vocab=512))
    refused("got oracle_scale without an oracle", oracle_scale=models["scale"])
    refused("got the oracle model as oracle_scale", oracle=models["oracle"], oracle_scale=models["oracle"])
    refused("got the original model as oracle_scale", oracle=models["oracle"], oracle_scale=original)
    refused("got str as oracle; need a HookedTransformer", oracle="folder")
    refused("got the edited model as oracle_scale", oracle=models["oracle"], oracle_scale=edited)


def test_an_oracle_of_another_tokenizer_is_refused(bundled_model, bundled, monkeypatch):
    other = copy.deepcopy(bundled_model)
    with torch.no_grad():
        other.blocks[0].mlp.get_parameter("b_in").add_(1.0)
    monkeypatch.setattr("mechmem.intervene.oracle_check.fingerprint", lambda tokenizer: id(tokenizer))
    other.tokenizer = copy.deepcopy(bundled_model.tokenizer)
    with pytest.raises(InputError, match="got oracle with another tokenizer than the original's"):
        mm.evaluate(bundled_model, copy.deepcopy(bundled_model), {"targets": bundled[:2]}, oracle=other)
