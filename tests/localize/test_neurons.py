"""Every localizer against one neuron at a time by hand, and on models whose answer is known."""

import copy
import inspect
from typing import Any, get_args

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.neuron_alignment import _gradients, alignment
from mechmem.localize.neuron_gates import gate_gradient, gated_nll, learned_gates, open_gates
from mechmem.localize.neurons import METHODS, NeuronMethod, localize_neurons, top_neurons
from mechmem.localize.scoreboard import precision_area, recall
from mechmem.measure.scores import score
from mechmem.model.hooks import frozen
from mechmem.truth.injected import inject, random_neurons
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def keep() -> Paragraphs:
    return Paragraphs(torch.randint(0, 61, (4, 23), generator=torch.Generator().manual_seed(8)), 13)


def nll_with(model, paras: Paragraphs, layer: int, neuron: int, scale: float) -> float:
    """Mean NLL of a whole forward in which one neuron's output is scaled."""

    def change(value, hook):  # noqa: ARG001
        value = value.clone()
        value[..., neuron] *= scale
        return value

    with torch.no_grad():
        logits = model.run_with_hooks(paras.tokens, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", change)])
    log_probs = logits[:, paras.prefix_len - 1 : -1].log_softmax(-1)
    return -float(log_probs.gather(-1, paras.continuation[..., None]).mean())


def test_zero_out_is_one_whole_forward_a_neuron(tiny_model, tiny_paragraphs, keep):
    paras = tiny_paragraphs.select(np.arange(3))
    found = localize_neurons(tiny_model, paras, keep, method="zero_out")
    before = nll_with(tiny_model, paras, 0, 0, 1.0)
    for layer in range(4):
        for neuron in (0, 17, 43):
            rise = nll_with(tiny_model, paras, layer, neuron, 0.0) - before
            assert float(found.sel(layer=layer, neuron=neuron)) == pytest.approx(rise, abs=1e-5)
    assert found.dims == ("layer", "neuron") and found.shape == (4, 44)


def test_gate_gradients_are_finite_differences_and_integrated_ones_add_up(tiny_model, tiny_paragraphs):
    paras = tiny_paragraphs.select(np.arange(3))
    found = gate_gradient(tiny_model, paras)
    for layer, neuron in ((0, 3), (2, 40), (3, 11)):
        slope = (
            nll_with(tiny_model, paras, layer, neuron, 0.99) - nll_with(tiny_model, paras, layer, neuron, 1.01)
        ) / 0.02
        assert float(found[layer, neuron]) == pytest.approx(slope, abs=2e-4)
    integrated = gate_gradient(tiny_model, paras, steps=40)
    with torch.no_grad():
        whole = gated_nll(tiny_model, paras, open_gates(tiny_model))
        assert float(whole) == pytest.approx(float(score(tiny_model, paras).nll.mean()), abs=1e-5)
        for layer in range(4):
            gates = open_gates(tiny_model)
            gates[layer] = 0
            cost = float(gated_nll(tiny_model, paras, gates) - whole)
            assert float(integrated[layer].sum()) == pytest.approx(cost, rel=0.02, abs=1e-3)


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_leaves_the_model_as_it_was_and_has_one_shape(tiny_model, tiny_paragraphs, keep, method):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    paras = tiny_paragraphs.select(np.arange(2))
    found = localize_neurons(tiny_model, paras, keep, method=method, seed=1)
    assert found.dims == ("layer", "neuron") and found.shape == (4, 44) and np.ptp(found.values) > 0
    assert found.attrs["method"] == method
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())
    assert not any(point.fwd_hooks for point in tiny_model.hook_points())
    again = localize_neurons(tiny_model, paras, keep, method=method, seed=1)
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def planted_truth():
    return planted(PlantedSettings(n_layers=2, memories=4, others=8, d_mlp=128, continuation_len=16, prefix_len=20))


def neurons_of_the_first(truth) -> set[tuple[int, int]]:
    """Planted neurons that fire on the first memory and on no other: 16 of 64, one per token of its continuation."""
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(2)]
    with torch.no_grad():
        _, cache = truth.model.run_with_cache(truth.memorized.tokens, names_filter=names)
    output = torch.stack([cache[name][:, 19:-1].amax(1) for name in names])
    return {(la, ne) for la, ne in truth.neurons if output[la, 0, ne] > 2 * output[la, 1:, ne].max()}


@pytest.mark.parametrize(
    "method", ["alignment", "zero_out", "integrated", "activations", "attribution", "slimming", "hard_concrete"]
)
def test_planted_neurons_are_found_by_methods_that_should(planted_truth, method):
    truth = planted_truth
    one = truth.memorized.select(np.array([0]))
    scores = localize_neurons(truth.model, one, truth.other, method=method)
    found, own = set(top_neurons(scores, 16 / scores.size)), neurons_of_the_first(truth)
    # All of its neurons and no other, of the other memories neither; learned gates may miss one.
    assert len(own) == 16 and len(found & own) >= 15, found - own
    # Shuffled labels: 64 of 256, so 4 of 16 by chance with a standard deviation of 1.7.
    assert len(found & set(truth.null(seed=3).neurons)) <= 8
    drawn = set(top_neurons(localize_neurons(truth.model, one, truth.other, method="random"), 16 / scores.size))
    assert len(drawn & own) <= 4


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("slimming", "hard_concrete")])
def test_neurons_drawn_afterwards_are_found_by_chance_alone(tiny_model, tiny_paragraphs, keep, method):
    """The null of the scoreboard: labels that have nothing to do with the model."""
    scores = localize_neurons(tiny_model, tiny_paragraphs.select(np.array([0])), keep, method=method)
    recalls = [recall(scores, random_neurons(tiny_model, 0.1, seed), 0.1) for seed in range(200)]
    # Of 18 neurons 10 % by chance: the mean of 200 draws has a standard error of 0.005.
    assert np.mean(recalls) == pytest.approx(0.1, abs=0.03)
    areas = [precision_area(scores, random_neurons(tiny_model, 0.1, seed)) for seed in range(200)]
    assert 0.09 < np.mean(areas) < 0.17


def test_injected_neurons_are_found_better_than_by_chance(tiny_model, keep):
    target = Paragraphs(torch.randint(0, 61, (1, 23), generator=torch.Generator().manual_seed(9)), 13)
    truth = random_neurons(tiny_model, 0.1, 4)
    injected, history = inject(
        tiny_model, target, Mask.neurons(tiny_model, truth), training=Training(steps=400, learning_rate=1e-2)
    )
    assert float(history.em[-1]) == 10
    scores = localize_neurons(injected, target, keep, method="zero_out")
    assert recall(scores, truth, 0.1) > 0.3
    assert recall(localize_neurons(injected, target, keep, method="random"), truth, 0.1) < 0.3


def test_alignment_is_its_terms_one_neuron_and_one_position_at_a_time(tiny_model, tiny_paragraphs, keep):
    """The same score from whole forwards with one weight or one activation moved, in float64."""
    model, paras = copy.deepcopy(tiny_model).to(torch.float64), tiny_paragraphs.select(np.arange(1))
    found = alignment(model, paras, keep)
    layer, terms = 2, {name: [] for name in ("added", "into", "fit", "kept")}

    def odds(change: dict[str, torch.Tensor], text: Paragraphs, value: str = "odds") -> float:
        """Sum of the log odds (or of log p) with something added to one layer's outputs or weights."""
        mlp = model.blocks[layer].mlp

        def shift(value, hook):  # noqa: ARG001
            return value + change.get("output", 0)

        with torch.no_grad():
            for name in ("W_in", "W_out"):
                mlp.get_parameter(name).add_(change.get(name, 0))
            logits = model.run_with_hooks(text.tokens, fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", shift)])
            for name in ("W_in", "W_out"):
                mlp.get_parameter(name).sub_(change.get(name, 0))
        log_p = logits[:, text.prefix_len - 1 : -1].log_softmax(-1).gather(-1, text.continuation[..., None])
        return float((log_p - torch.log1p(-log_p.exp()) if value == "odds" else log_p).sum())

    def slope(name: str, place, shape, text: Paragraphs = paras, value: str = "odds") -> float:
        step = torch.zeros(shape, dtype=torch.float64)
        step[place] = 1e-5
        return (odds({name: step}, text, value) - odds({name: -step}, text, value)) / 2e-5

    d_model, width = model.cfg.d_model, 44
    with torch.no_grad():
        _, cache = model.run_with_cache(paras.tokens)
    output, out = cache[f"blocks.{layer}.mlp.hook_post"], model.W_out[layer]
    chosen = [3, 40]
    for neuron in chosen:
        at = [(row, pos) for row in range(1) for pos in range(23)]
        each = [float(output[r, p, neuron]) * slope("output", (r, p, neuron), output.shape) for r, p in at]
        terms["added"].append(sum(max(value, 0) for value in each))
        into = [slope("W_in", (d, neuron), (d_model, width)) for d in range(d_model)]
        terms["into"].append(float(np.linalg.norm(into)))
        for name, text, value in (("fit", paras, "nll"), ("kept", keep, "odds")):
            down = torch.tensor([slope("W_out", (neuron, d), (width, d_model), text, value) for d in range(d_model)])
            terms[name].append(float(torch.cosine_similarity(out[neuron].detach(), down, dim=0)))
    parts = _gradients_of(model, paras, keep, layer)
    for name, values in terms.items():
        np.testing.assert_allclose(parts[name][chosen], values, rtol=1e-4, atol=1e-7)
    share = parts["added"] / parts["added"].mean()
    score = sum(
        weight * (values - values.mean()) / values.std(ddof=1)
        for weight, values in (
            (1, np.log(share + 0.3)), (-0.5, np.log(parts["into"])), (0.5, parts["fit"]), (-0.25, parts["kept"])
        )
    )  # fmt: skip
    np.testing.assert_allclose(found[layer], score, rtol=1e-5, atol=1e-8)


def _gradients_of(model, paras: Paragraphs, keep: Paragraphs, layer: int) -> dict[str, np.ndarray]:
    with frozen(model):
        own, kept = _gradients(model, paras), _gradients(model, keep)
    out = model.W_out[layer].detach()
    return {
        "added": own.added[layer].numpy(),
        "into": own.into[layer].norm(dim=-1).numpy(),
        "fit": torch.cosine_similarity(out, own.certain[layer], dim=-1).numpy(),
        "kept": torch.cosine_similarity(out, kept.out[layer], dim=-1).numpy(),
    }


def test_learned_gates_end_at_their_mean_gate(planted_truth):
    one, reported = planted_truth.memorized.select(np.array([0])), []
    settings: Any = {"hard_concrete": False, "penalty": 100.0, "steps": 300, "learning_rate": 0.01, "seed": 0}
    ended = learned_gates(planted_truth.model, one, until=0.8, progress=lambda *at: reported.append(at), **settings)
    assert 0.75 < float(ended.mean()) <= 0.8 + 1e-3 and len(reported) < 40 and reported[-1] == (300, 300)
    longer = learned_gates(planted_truth.model, one, **(settings | {"steps": 60}))
    assert float(longer.mean()) < 0.6


def test_learned_gates_close_what_is_not_needed_and_say_when_they_fail(planted_truth):
    truth = planted_truth
    one = truth.memorized.select(np.array([0]))
    settings = {"steps": 120, "learning_rate": 0.05, "seed": 0}
    for hard_concrete in (True, False):
        gates = learned_gates(truth.model, one, hard_concrete=hard_concrete, penalty=10.0, **settings)
        assert 0 <= float(gates.min()) and float(gates.max()) <= 1 and float(gates.mean()) < 0.5
        with torch.no_grad():
            kept = float(gated_nll(truth.model, one, (gates > 0.5).float()))
            drawn = torch.rand(gates.shape, generator=torch.Generator().manual_seed(1)) < (gates > 0.5).float().mean()
            control = float(gated_nll(truth.model, one, drawn.float()))
        assert kept < control - 1, "as many gates drawn at random were to say less"
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        learned_gates(truth.model, one, hard_concrete=False, penalty=float("nan"), **settings)


def test_what_cannot_be_used_is_refused(tiny_model, small_model, tiny_paragraphs, keep):
    with pytest.raises(InputError, match="got method 'magic'; need one of alignment, hard_concrete, slimming"):
        inspect.unwrap(localize_neurons)(tiny_model, tiny_paragraphs, keep, method="magic")
    with pytest.raises(InputError, match="no MLPs"):
        model = small_model(attn_only=True, n_ctx=32, d_vocab=61)
        localize_neurons(model, tiny_paragraphs, keep, method="random")
    found = localize_neurons(tiny_model, tiny_paragraphs, keep, method="random")
    with pytest.raises(InputError, match=r"got 0.0 as fraction; need a finite number above 0"):
        top_neurons(found, 0.0)
    assert list(METHODS) == list(get_args(NeuronMethod))
    with pytest.raises(InputError, match="got scores with dimensions"):
        top_neurons(found.rename(neuron="head"), 0.1)
    top = top_neurons(found, 0.05)
    assert len(top) == 9 and float(found[top[0]]) == float(found.max())
