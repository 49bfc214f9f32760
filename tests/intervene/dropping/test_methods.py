import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.dropping.curvature import LIMIT, curvature_factors, kfac
from mechmem.intervene.dropping.gradual import dropped_rows
from mechmem.intervene.dropping.methods import DROPPING, HEADS, NEURONS, TIMES, head_drop, neuron_drop, task_arithmetic
from mechmem.intervene.dropping.trained_masks import SHARE, balanced_subnet, hard_concrete
from mechmem.intervene.loop import Stop
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters
from mechmem.truth.injected import inject, random_neurons
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings
from mechmem.weights.masks import Mask
from mechmem.weights.support import verify_support
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Five paragraphs that the model says by itself after their prefix, and seven random ones."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (12, 16), generator=torch.Generator().manual_seed(1))
    for pos in range(8, 16):
        with torch.no_grad():
            tokens[:5, pos] = tiny_model(tokens[:5, :pos])[:, -1].argmax(-1)
    return Paragraphs(tokens[:5], 8), Paragraphs(tokens[5:], 8)


@pytest.fixture(scope="module")
def truth():
    """A hand-set model: one head and known neurons hold everything that it says."""
    return planted(PlantedSettings())


def gone(path, model, strength: float) -> dict[str, set[int]]:
    """Flat indices of the weights that a strength makes zero."""
    new, old = path(strength), editable_parameters(model)
    return {
        name: set(((tensor == 0) & (old[name] != 0)).flatten().nonzero().flatten().tolist())
        for name, tensor in new.items()
    }


@pytest.mark.parametrize("name", ["neuron_drop", "head_drop", "balanced_subnet", "hard_concrete"])
def test_what_a_strength_drops_a_greater_one_drops_too_and_no_other_weight_changes(tiny_model, sets, name):
    path = DROPPING[name](tiny_model, *sets, mask=None, seed=0)
    before = {n: p.clone() for n, p in editable_parameters(tiny_model).items()}
    few, more = gone(path, tiny_model, 0.5), gone(path, tiny_model, 1.0)
    assert sum(map(len, few.values())) < sum(map(len, more.values()))
    for key, dropped in few.items():
        assert dropped <= more[key]
    for key, tensor in path(1.0).items():
        assert bool(((tensor == 0) | (tensor == before[key])).all())
        assert torch.equal(editable_parameters(tiny_model)[key], before[key]), "the model given is left alone"


def test_the_shares_at_full_strength_are_those_stated(tiny_model, sets):
    cfg = tiny_model.cfg
    neurons = gone(neuron_drop(tiny_model, *sets, mask=None, seed=0), tiny_model, 1.0)
    heads = gone(head_drop(tiny_model, *sets, mask=None, seed=0), tiny_model, 1.0)
    weights = gone(balanced_subnet(tiny_model, *sets, mask=None, seed=0), tiny_model, 1.0)
    total = sum(p.numel() for p in editable_parameters(tiny_model).values())
    assert sum(map(len, neurons.values())) == round(NEURONS * cfg.n_layers * cfg.d_mlp) * cfg.d_model
    assert sum(map(len, heads.values())) == round(HEADS * cfg.n_layers * cfg.n_heads) * cfg.d_head * cfg.d_model
    assert sum(map(len, weights.values())) == pytest.approx(SHARE * total, abs=2)


def test_rows_go_in_the_order_of_their_gain(tiny_model):
    gain = torch.zeros(4, 3)
    gain[2, 1], gain[0, 2] = 2.0, 1.0
    path = dropped_rows(tiny_model, "attn.W_O", gain, limit=1.0)
    assert set(path(1 / 12)) == {"blocks.2.attn.W_O"} and set(path(2 / 12)) == {
        "blocks.2.attn.W_O",
        "blocks.0.attn.W_O",
    }
    dropped = path(2 / 12)["blocks.0.attn.W_O"]
    assert not bool(dropped[2].any()) and bool(dropped[:2].any())


@pytest.mark.parametrize("name", ["neuron_drop", "head_drop"])
def test_a_planted_memory_is_lost_with_its_neurons_or_its_head_and_not_with_others(truth, name):
    model, memorized, other = truth.model, truth.memorized, truth.other
    edited, history = unlearn(
        model, memorized, other, method=name, training=Training(steps=10), stop=Stop(target_em=20.0)
    )
    assert history.ended == "stop rule" and float(score(edited, memorized).em.mean()) <= 20
    # The control: as many rows, none of them among those that were dropped.
    kind = "mlp.W_out" if name == "neuron_drop" else "attn.W_O"
    after = [edited.get_parameter(f"blocks.{layer}.{kind}").flatten(1) for layer in range(model.cfg.n_layers)]
    dropped = torch.stack([(rows == 0).all(1) for rows in after])
    control = copy.deepcopy(model)
    spared = (~dropped).flatten().nonzero().flatten()
    chosen = spared[torch.randperm(len(spared), generator=torch.Generator().manual_seed(0))[: int(dropped.sum())]]
    with torch.no_grad():
        for flat in chosen.tolist():
            layer, row = divmod(flat, dropped.shape[1])
            control.get_parameter(f"blocks.{layer}.{kind}")[row] = 0
    assert float(score(control, memorized).em.mean()) > 25


def test_curvature_factors_are_sums_over_tokens_of_what_goes_in_and_of_gradients_of_what_comes_out(tiny_model, sets):
    """Slow oracle: each weight's gradient for each paragraph, by autograd, from the same drawn labels."""
    keep = sets[1].select([0])
    found = curvature_factors(tiny_model, keep, seed=3)
    model = copy.deepcopy(tiny_model)
    logits = model(keep.tokens)[:, 7:-1]
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).flatten()
    for name, factors in found.items():
        parameter = model.get_parameter(name)
        bias = model.get_parameter(name.replace("W_", "b_"))
        loss = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        weight, outputs = torch.autograd.grad(loss, [parameter, bias], retain_graph=True)
        # One paragraph: the weight's gradient is the sum of a g^T, the bias' that of g.
        layer = int(name.split(".")[1])
        with torch.no_grad():
            _, cache = model.run_with_cache(keep.tokens)
        norm = model.blocks[layer].ln2
        a = (
            cache[f"blocks.{layer}.ln2.hook_normalized"][0] * norm.w + norm.b
            if name.endswith("W_in")
            else cache[f"blocks.{layer}.mlp.hook_post"][0]
        )
        assert torch.allclose(factors.inputs, a.T @ a / 16, atol=1e-5), name
        gradients = _output_gradients(model, keep, labels, layer, name.endswith("W_in"))
        assert torch.allclose(factors.outputs, gradients.T @ gradients / 16, atol=1e-5), name
        assert torch.allclose(a.T @ gradients, weight, atol=1e-4) and torch.allclose(
            gradients.sum(0), outputs, atol=1e-4
        )


def _output_gradients(model, keep, labels, layer: int, into: bool) -> torch.Tensor:
    point = f"blocks.{layer}.mlp.hook_pre" if into else f"blocks.{layer}.hook_mlp_out"
    kept: list[torch.Tensor] = []

    def hook(value, hook):  # noqa: ARG001 - TransformerLens passes both
        kept.append(value)
        return value

    logits = model.run_with_hooks(keep.tokens, fwd_hooks=[(point, hook)])[:, 7:-1]
    loss = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
    return torch.autograd.grad(loss, kept[0])[0][0]


def test_kfac_takes_the_directions_of_least_curvature_first(tiny_model, sets):
    path = kfac(tiny_model, *sets, mask=None, seed=0)
    factors = curvature_factors(tiny_model, sets[1], seed=0)
    for name, tensor in path(1e-9).items():
        assert torch.allclose(tensor, editable_parameters(tiny_model)[name], atol=1e-5), "nothing is taken out"
    name = "blocks.1.mlp.W_in"
    weight = editable_parameters(tiny_model)[name].detach()
    low, inputs = np.linalg.eigh(factors[name].inputs.double().numpy())
    high, outputs = np.linalg.eigh(factors[name].outputs.double().numpy())
    # The quadratic form tr(A D G D^T) of what was taken out, D, against that of as many directions of most curvature.
    taken = (weight - path(0.5)[name]).double().numpy()
    form = np.trace(factors[name].inputs.double().numpy() @ taken @ factors[name].outputs.double().numpy() @ taken.T)
    coefficients = inputs.T @ weight.double().numpy() @ outputs
    curvature = np.maximum(low, 0)[:, None] * np.maximum(high, 0)
    order = np.argsort(curvature, axis=None)
    count = round(0.5 * LIMIT * curvature.size)
    lowest, highest = ((curvature * coefficients**2).ravel()[o[:count]].sum() for o in (order, order[::-1]))
    assert form == pytest.approx(lowest, rel=1e-2, abs=1e-8) and form < 0.1 * highest


def test_kfac_never_looks_at_what_is_memorized(tiny_model, sets):
    one = kfac(tiny_model, sets[0], sets[1], mask=None, seed=0)(0.7)
    two = kfac(tiny_model, sets[1], sets[1], mask=None, seed=0)(0.7)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_task_vector_is_taken_back_in_proportion(tiny_model, sets):
    path = task_arithmetic(tiny_model, *sets, mask=None, seed=0)
    before, half, whole = editable_parameters(tiny_model), path(0.5), path(1.0)
    for name, tensor in whole.items():
        assert torch.allclose(tensor - before[name], 2 * (half[name] - before[name]), atol=1e-5)
    tuned = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name, parameter in editable_parameters(tuned).items():
            parameter.add_((before[name] - whole[name]) / TIMES)
    assert score(tuned, sets[0]).nll.mean() < score(tiny_model, sets[0]).nll.mean(), "towards the targets, then back"


@pytest.mark.filterwarnings("ignore:the edit removed nothing:RuntimeWarning")
@pytest.mark.parametrize("name", list(DROPPING))
def test_every_path_stays_inside_a_mask(tiny_model, sets, name):
    mask = Mask.top(weight_gradients(tiny_model, sets[0]), fraction=0.3)
    edited, history = unlearn(tiny_model, *sets, method=name, mask=mask, training=Training(steps=2), stop=Stop())
    verify_support(tiny_model, edited, mask)
    assert history.sizes["step"] == 2 and history.method == name


@pytest.mark.parametrize("prepare", [balanced_subnet, hard_concrete])
def test_trained_masks_drop_what_was_injected_and_spare_the_rest(tiny_model, sets, prepare):
    neurons = random_neurons(tiny_model, 0.1, 3)
    paragraph = Paragraphs(sets[1].tokens[:1], 8)
    injected, history = inject(
        tiny_model, paragraph, Mask.neurons(tiny_model, neurons), training=Training(steps=300, learning_rate=1e-2)
    )
    assert float(history.em[-1]) == 8
    keep = sets[0]
    path = prepare(injected, paragraph, keep, mask=None, seed=0)
    edited = copy.deepcopy(injected)
    with torch.no_grad():
        for name, tensor in path(1.0).items():
            edited.get_parameter(name).copy_(tensor)
    rise = [float((score(edited, p).nll - score(injected, p).nll).mean()) for p in (paragraph, keep)]
    assert rise[0] > 1.0 and rise[0] > 3 * rise[1]
    # The control: what the same number of random rows or weights does.
    generator = torch.Generator().manual_seed(0)
    control = copy.deepcopy(injected)
    with torch.no_grad():
        for name, dropped in gone(path, injected, 1.0).items():
            flat = control.get_parameter(name).view(-1)
            flat[torch.randperm(len(flat), generator=generator)[: len(dropped)]] = 0
    assert float((score(control, paragraph).nll - score(injected, paragraph).nll).mean()) < 0.7 * rise[0]
