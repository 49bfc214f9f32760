import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.neurons import localize_neurons, top_neurons
from mechmem.localize.scoreboard import (
    PROTOCOLS,
    deletion_board,
    injected_weights,
    injection_board,
    precision_area,
    ranking_area,
    recall,
    without_neurons,
)
from mechmem.measure.scores import score
from mechmem.truth.injected import inject, random_neurons
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def rows() -> Paragraphs:
    return Paragraphs(torch.randint(0, 61, (6, 23), generator=torch.Generator().manual_seed(3)), 13)


def test_recall_and_area_of_orders_known_by_hand(tiny_model, rows):
    scores = localize_neurons(tiny_model, rows, rows, method="random")
    scores.values[:] = 0
    truth = [(0, 1), (2, 5), (3, 7), (1, 9)]
    for rank, (layer, neuron) in enumerate(truth[:3]):
        scores[layer, neuron] = 10 - rank
    scores[0, 0] = 11
    # 4 of 176: the wrong one first, then three of four.
    assert recall(scores, truth, 4 / 176) == 0.75
    assert recall(scores, truth, 1.0) == 1
    scores[1, 9] = 5
    assert precision_area(scores, truth) == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5) / 4)
    # Of 4 true and 172 other neurons, one other is above all four.
    assert ranking_area(scores, truth) == pytest.approx(171 / 172)


def test_the_top_of_every_layer_is_counted_by_hand(tiny_model, rows):
    scores = localize_neurons(tiny_model, rows, rows, method="random")
    truth = [(0, 1), (0, 2), (3, 7), (1, 9)]
    scores.values[:] = 0
    scores[0, 1], scores[0, 2], scores[0, 3], scores[3, 7] = 50, 40, 30, 1
    # Of 44 neurons of a layer one: 0.1, 3.7 and the first of layers 1 and 2, which have equal scores.
    assert recall(scores, truth, 1 / 44, "layer") == 0.5
    # Of the model's 176 four: the three of layer 0 and 3.7.
    assert recall(scores, truth, 4 / 176, "model") == 0.75


def test_the_published_protocol_trains_out_weights_and_counts_by_layer(tiny_model, rows, monkeypatch):
    short = replace(PROTOCOLS["out-weights"], training=Training(steps=30, learning_rate=1e-2))
    monkeypatch.setitem(PROTOCOLS, "out-weights", short)
    targets, keep = rows.select(np.arange(1)), rows.select(np.arange(2, 4))
    neurons = random_neurons(tiny_model, 0.4, 0)
    mask = injected_weights(tiny_model, neurons, "out-weights")
    assert {name.rsplit(".")[-1] for name in mask.indices} == {"W_out"}
    assert mask.count == len(neurons) * tiny_model.cfg.d_model
    found = injection_board(
        tiny_model, targets, keep, methods=("alignment",), protocol="out-weights", fraction=0.4, seed=0
    )
    model, _ = inject(tiny_model, targets, mask, training=PROTOCOLS["out-weights"].training)
    scores = localize_neurons(model, targets, keep, method="alignment")
    need = recall(scores, neurons, 0.05, "layer")
    assert float(found.recall.sel(fraction=0.05).squeeze()) == pytest.approx(need) and need > 0
    assert float(found.auroc.squeeze()) == pytest.approx(ranking_area(scores, neurons), abs=1e-6)
    with pytest.raises(InputError, match="got protocol 'magic'; need one of whole neurons, out-weights"):
        inspect.unwrap(injection_board)(tiny_model, targets, keep, protocol="magic")


def test_neurons_are_gone_in_the_block_and_back_after_it(tiny_model, rows):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.no_grad():
        need = tiny_model.run_with_hooks(
            rows.tokens,
            fwd_hooks=[
                ("blocks.1.mlp.hook_post", lambda v, hook: v * (torch.arange(44) != 7)),  # noqa: ARG005
                ("blocks.2.mlp.hook_post", lambda v, hook: v * (torch.arange(44) != 0)),  # noqa: ARG005
            ],
        )
        with pytest.raises(RuntimeError, match="inside"), without_neurons(tiny_model, [(1, 7), (2, 0)]) as model:
            assert torch.allclose(model(rows.tokens), need, atol=1e-5)
            raise RuntimeError("inside")
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_boards_have_a_number_for_every_method_and_target(tiny_model, rows):
    seen: list[str] = []
    targets, keep = rows.select(np.arange(2)), rows.select(np.arange(2, 4))
    injected = injection_board(
        tiny_model,
        targets,
        keep,
        methods=("gate_gradient", "random"),
        fraction=0.1,
        progress=lambda what, *_: seen.append(what),
    )
    assert injected.recall.dims == ("method", "target", "fraction") and injected.recall.shape == (2, 2, 3)
    # Computed once more by hand for one target: its neurons, the injection, the localizer, the share found.
    truth = random_neurons(tiny_model, 0.1, 1)
    model, history = inject(
        tiny_model,
        targets.select(np.array([1])),
        Mask.neurons(tiny_model, truth),
        training=PROTOCOLS["whole neurons"].training,
    )
    scores = localize_neurons(model, targets.select(np.array([1])), keep, method="gate_gradient", seed=1)
    ours = injected.sel({"method": "gate_gradient", "target": 1})
    for fraction in (0.01, 0.02, 0.05):
        order = np.argsort(-scores.values, axis=None)[: round(fraction * scores.size)]
        found = {divmod(int(flat), 44) for flat in order} & set(truth)
        assert float(ours.recall.sel(fraction=fraction)) == pytest.approx(len(found) / len(truth))
    assert float(ours.recall.sel(fraction=0.05)) > 0, "the case was to have something to find"
    assert float(ours.auprc) == pytest.approx(precision_area(scores, truth), abs=1e-6)
    assert float(injected.em.sel(target=1)) == float(history.em[-1])
    assert seen == ["injected, gate_gradient", "injected, random"] * 2


def test_a_deletion_is_measured_as_the_model_without_those_neurons(tiny_model, rows):
    targets, others, keep = (rows.select(part) for part in ([0], [1, 2], [3, 4, 5]))
    board = deletion_board(tiny_model, targets, others, keep, methods=("zero_out",)).isel({"method": 0, "target": 0})
    top = top_neurons(localize_neurons(tiny_model, targets, keep, method="zero_out"), 0.005)
    before = [score(tiny_model, paras) for paras in (targets, others, keep)]
    with without_neurons(tiny_model, top):
        after = [score(tiny_model, paras) for paras in (targets, others, keep)]
    at = board.sel(dropped=0.005)
    for name, index in (("target_accuracy", 0), ("other_accuracy", 1)):
        change = 100 * float(after[index].match.mean() - before[index].match.mean())
        assert float(at[name]) == pytest.approx(change)
    change = float(np.exp(after[2].nll.mean()) - np.exp(before[2].nll.mean()))
    assert float(at.perplexity) == pytest.approx(change, rel=1e-4) and change != 0


def test_unknown_methods_are_refused_before_anything_is_injected(tiny_model, rows):
    for board in (
        lambda: inspect.unwrap(injection_board)(tiny_model, rows, rows, methods=("magic",)),
        lambda: inspect.unwrap(deletion_board)(tiny_model, rows, rows, rows, methods=("magic",)),
    ):
        with pytest.raises(InputError, match=r"got methods \['magic'\]; need some of alignment, hard_concrete"):
            board()
