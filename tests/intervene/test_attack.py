"""Hiding a text must look different from removing it."""

import copy
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.attack import AttackSizes, attack
from mechmem.intervene.attacks.depth import depth_score
from mechmem.intervene.attacks.prompts import near_duplicate_attack, perturbed_prefix_attack, prefix_length_attack
from mechmem.intervene.attacks.quantize import quantization_attack
from mechmem.intervene.attacks.relearn import relearning_attack
from mechmem.intervene.attacks.sampling import sampling_attack
from mechmem.intervene.baseline import Baseline
from mechmem.measure.scores import score
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.truth.injected import inject
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training

# Of 8 continuation tokens.
OPTIONS: dict[str, Any] = {"sizes": AttackSizes(steps=40, learning_rate=1e-3, draws=4, samples=10)}


@pytest.fixture(scope="module")
def case(small_model) -> SimpleNamespace:
    """A model that knows 20 paragraphs by heart, one in which 5 of them are hidden and one that never knew any.

    To hide them, the last layer's W_out gets one direction added to all its rows: the body before it is untouched.
    """
    never = small_model(n_layers=3, n_heads=4, d_model=48, d_head=12, d_vocab=61)
    tokens = torch.randint(0, 61, (21, 14), generator=torch.Generator().manual_seed(11))
    # Two words' difference: the last row is a near-duplicate of the first.
    tokens[20] = tokens[0]
    tokens[20, [1, 9]] = (tokens[0, [1, 9]] + 1) % 61
    paras = Paragraphs(tokens, 6).with_columns(cluster=[0, 1, 1, 2, 3, *range(4, 19), 0])
    mask = Mask.neurons(never, [(layer, neuron) for layer in range(3) for neuron in range(192)])
    knows, history = inject(never, paras.select(np.arange(20)), mask, training=Training(learning_rate=0.01, steps=250))
    assert history.em[-1] == 8
    hidden, half_hidden = (_shifted(knows, size) for size in (0.3, 0.1))
    targets, other, near = (paras.select(rows) for rows in (np.arange(5), np.arange(5, 20), [20]))
    return SimpleNamespace(
        never=never, knows=knows, hidden=hidden, half_hidden=half_hidden, targets=targets, other=other, near=near
    )


def _shifted(model, size: float):
    edited = copy.deepcopy(model)
    direction = torch.randn(48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        edited.blocks[2].mlp.get_parameter("W_out").add_(size * direction)
    return edited


def test_both_look_alike_from_outside(case):
    for model in (case.hidden, case.never):
        assert score(model, case.targets).em.max() <= 1


def test_depth_tells_them_apart(case):
    hidden = depth_score(case.knows, case.hidden, case.targets)
    removed = depth_score(case.knows, case.never, case.targets)
    assert (hidden.em.sel(boundary=2) == 8).all() and np.allclose(hidden.depth, 2, atol=1e-3)
    assert removed.em.sel(boundary=2).mean() <= 1 and (removed.depth < 1.2).all()


def test_relearning_tells_them_apart(case):
    options = {"every": 5, "training": Training(steps=40, learning_rate=1e-3)}
    hidden = relearning_attack(case.hidden, case.targets, case.other, **options)
    removed = relearning_attack(case.never, case.targets, case.other, **options)
    mean = hidden.em.mean("paragraph")
    assert 0 < hidden.attrs["steps_until"] <= 30 and hidden.attrs["steps_until"] == hidden.step[mean >= 4].min()
    assert "steps_until" not in removed.attrs and removed.em.mean("paragraph").max() <= 1
    # Both were trained: the model that never knew learned the other text as well.
    assert hidden.other_nll[-1] < 1 and removed.other_nll[-1] < 1 < removed.other_nll[0]


def test_the_table_tells_them_apart(case):
    hidden = attack(case.knows, case.hidden, case.targets, case.other, **OPTIONS)
    removed = attack(case.knows, case.never, case.targets, case.other, **OPTIONS)
    for row in ("relearning", "late layers"):
        assert hidden.em_after.sel(attack=row) >= 4 and hidden.em_after_low.sel(attack=row) > 0.4
    assert removed.em_after.max() <= 1.5 and removed.em_after_low.max() == 0, removed.em_after_high
    assert hidden.em_before.sel(attack="none") == 8 and (hidden.em_before.sel(attack="relearning") == 8).all()
    # Hiding nothing: the attacks on an unchanged model find what they find on the original.
    same = attack(case.knows, copy.deepcopy(case.knows), case.targets, case.other, **OPTIONS)
    assert same.em_before.values.tolist() == same.em_after.values.tolist()


def test_rows_are_the_attacks_one_by_one(case):
    seen = []
    found = attack(
        case.knows, case.half_hidden, case.targets, case.other, near=case.near, seed=3,
        progress=lambda *done: seen.append(done), **OPTIONS,
    )  # fmt: skip
    targets, clusters = case.targets, case.targets.column("cluster")
    for model, column in ((case.knows, "em_before"), (case.half_hidden, "em_after")):
        lengths = prefix_length_attack(model, targets).em.max("given")
        training = {"training": Training(steps=40, learning_rate=1e-3, batch_size=8), "every": 8, "seed": 3}
        relearned = relearning_attack(model, targets, case.other, **training).em.mean("paragraph").max()
        late = depth_score(case.knows, model, targets).em
        near = near_duplicate_attack(model, targets, case.near).target_em_best[0]
        expected = {
            "none": score(model, targets).em.mean(),
            "perturbed prefix": perturbed_prefix_attack(model, targets, draws=4, seed=3).em_best.mean(),
            "prefix length": lengths.mean(),
            "sampling": sampling_attack(model, targets, draws=(10,)).em_best.mean(),
            "near-duplicates": near,
            "quantization": quantization_attack(model, targets).em.max("scheme").mean(),
            "relearning": relearned,
            "late layers": late.sel(boundary=[2, 3]).max("boundary").mean(),
        }
        assert set(found.attack.values) == set(expected)
        for name, value in expected.items():
            assert float(found[column].sel(attack=name)) == pytest.approx(float(value), abs=1e-6), name
    # The mean over schemes is not the best of them here.
    by_scheme = quantization_attack(case.half_hidden, targets).em
    assert by_scheme.max("scheme").mean() > by_scheme.mean() + 0.1
    late = depth_score(case.knows, case.half_hidden, targets).em[-2:].max("boundary").values.astype(float)
    interval = [float(found[f"em_after_{end}"].sel(attack="late layers")) for end in ("low", "high")]
    assert interval == pytest.approx(cluster_bootstrap(late, clusters))
    sampled = sampling_attack(case.half_hidden, targets, draws=(10,)).em_best.values[:, 0]
    interval = [float(found[f"em_after_{end}"].sel(attack="sampling")) for end in ("low", "high")]
    assert interval == pytest.approx(cluster_bootstrap(sampled, clusters))
    assert interval != pytest.approx(cluster_bootstrap(sampled, np.arange(5)))
    assert found.paragraphs.values.tolist() == [5, 5, 5, 5, 1, 5, 5, 5]
    assert len({total for _, total in seen}) == 1 and seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len(seen) > 60
    assert (found.seconds > 0).all()
    assert all(found[name].attrs["units"] == "tokens" for name in ("em_before", "em_after", "em_after_low"))


def test_relearning_is_judged_by_one_model_for_all_paragraphs(case):
    em = relearning_attack(
        case.half_hidden, case.targets, case.other, every=8, training=Training(steps=40, learning_rate=1e-2)
    ).em
    # Every paragraph at its own best step is more than any single step has.
    assert em.max("step").mean() > em.mean("paragraph").max() + 0.1
    sizes = AttackSizes(steps=40, learning_rate=1e-2)
    found = attack(case.knows, case.half_hidden, case.targets, case.other, sizes=sizes, attacks=["relearning"])
    assert found.em_after.sel(attack="relearning") == pytest.approx(float(em.mean("paragraph").max()))


def test_bad_input_is_refused_before_any_work(case, tiny_model):
    def refuse(*_: int) -> None:
        raise AssertionError("work was done")

    cases: list[tuple[Any, dict[str, Any], str]] = [
        ((case.knows, tiny_model, case.targets, case.other), {}, "need a model and an edit of it"),
        ((case.knows, case.hidden, case.targets, case.targets), {}, "5 continuations stand in both"),
        ((case.knows, case.hidden, case.targets, case.other), {"near": case.other}, "none of 15 near-duplicates"),
        ((case.knows, case.hidden, case.targets, case.other), {"attacks": []}, "got no attack; need at least one"),
    ]
    for arguments, options, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            attack(*arguments, **options, progress=refuse)


def test_sizes_are_one_object_and_old_keywords_go_into_it(case):
    with pytest.raises(InputError, match="got 0 as steps; need a whole number of at least 1"):
        AttackSizes(steps=0)
    chosen: Any = {"attacks": ["perturbed prefix"]}
    need = attack(case.knows, case.hidden, case.targets, case.other, sizes=AttackSizes(draws=2), **chosen)
    old: Any = {"draws": 2}
    with pytest.warns(DeprecationWarning, match=r"write sizes=mechmem\.AttackSizes\(draws="):
        found = attack(case.knows, case.hidden, case.targets, case.other, **chosen, **old)
    assert found.drop_vars("seconds").identical(need.drop_vars("seconds"))


def test_only_the_attacks_asked_for_run_and_the_original_is_attacked_once(case, monkeypatch):
    calls = []
    original = prefix_length_attack

    def counting(model, *arguments, **options):
        calls.append(model)
        return original(model, *arguments, **options)

    monkeypatch.setattr("mechmem.intervene.attack.prefix_length_attack", counting)
    baseline, chosen = Baseline(case.knows), cast(Any, ("prefix length", "none"))
    first = attack(case.knows, case.hidden, case.targets, case.other, attacks=chosen, baseline=baseline)
    second = attack(case.knows, case.never, case.targets, case.other, attacks=chosen, baseline=baseline)
    assert first.attack.values.tolist() == ["none", "prefix length"]
    assert [model is case.knows for model in calls] == [True, False, False]
    assert first.em_before.equals(second.em_before)
    with pytest.raises(InputError, match="no near-duplicates; give some with near="):
        attack(case.knows, case.hidden, case.targets, case.other, attacks=["near-duplicates"])
