import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import score
from mechmem.truth.injected import inject, random_neurons
from mechmem.weights.masks import Mask
from mechmem.weights.support import changed_weights, verify_support
from mechmem.weights.training import Training


@pytest.fixture(scope="module")
def paras() -> Paragraphs:
    return Paragraphs(torch.randint(0, 61, (2, 14), generator=torch.Generator().manual_seed(8)), prefix_len=6)


def test_what_is_injected_is_memorized_and_sits_in_the_mask(tiny_model, paras):
    neurons = random_neurons(tiny_model, 0.1, seed=0)
    mask = Mask.neurons(tiny_model, neurons)
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    seen = []
    injected, history = inject(
        tiny_model,
        paras,
        mask,
        training=Training(steps=400, learning_rate=0.01),
        learned_nll=0.8,
        progress=lambda *done: seen.append(done),
    )
    assert (score(injected, paras).em == 8).all() and (score(tiny_model, paras).em < 8).all()
    assert history.em.values[-1] == 8 and history.nll.values[-1] <= 0.8 < history.nll.values[0]
    verify_support(tiny_model, injected, mask)
    assert 0 < changed_weights(tiny_model, injected) <= mask.count
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in tiny_model.parameters())
    assert len(seen) == history.sizes["step"] - 1 and seen[0] == (1, 400) != seen[-1]


def test_too_few_steps_are_said_by_the_history(tiny_model, paras):
    mask = Mask.neurons(tiny_model, [(0, 3)])
    _, history = inject(tiny_model, paras, mask, training=Training(steps=2))
    assert history.sizes["step"] == 3 and history.em.values[-1] < 8


def test_random_neurons_are_distinct_and_of_the_asked_number(tiny_model):
    chosen = random_neurons(tiny_model, 0.1, seed=1)
    assert len(set(chosen)) == len(chosen) == round(0.1 * 4 * 44) and chosen == sorted(chosen)
    assert random_neurons(tiny_model, 0.1, seed=1) == chosen != random_neurons(tiny_model, 0.1, seed=2)
    assert len(random_neurons(tiny_model, 1e-9, seed=0)) == 1
    for fraction in (0.0, 1.5):
        with pytest.raises(InputError, match="need a finite number above 0 and at most 1"):
            random_neurons(tiny_model, fraction, seed=0)


def test_neurons_and_heads_as_masks(tiny_model):
    mask = Mask.neurons(tiny_model, [(2, 5), (0, 43), (2, 5)])
    assert mask.count == 2 * 2 * 21
    assert mask.indices["blocks.2.mlp.W_in"].tolist() == [row * 44 + 5 for row in range(21)]
    assert mask.indices["blocks.0.mlp.W_out"].tolist() == list(range(43 * 21, 44 * 21))
    heads = Mask.heads(tiny_model, [(3, 1)])
    assert set(heads.indices) == {f"blocks.3.attn.W_{letter}" for letter in "QKVO"}
    assert all(np.array_equal(i, np.arange(147, 294)) for i in heads.indices.values())
    assert heads.shapes == mask.shapes and heads.total == mask.total
    for make, sentence in (
        (lambda: Mask.neurons(tiny_model, [(0, 44)]), r"got neurons \[\(0, 44\)\]; need \(layer, neuron\)"),
        (lambda: Mask.heads(tiny_model, []), r"got heads \[\]"),
        (lambda: Mask.heads(tiny_model, [(4, 0)]), "layer below 4 and head below 3"),
    ):
        with pytest.raises(InputError, match=sentence):
            make()


def test_a_mask_of_another_model_is_refused(tiny_model, small_model, paras):
    other = Mask.neurons(small_model(), [(0, 1)])
    with pytest.raises(InputError, match="the mask is of another model"):
        inject(tiny_model, paras, other)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        inject(tiny_model, paras, Mask.neurons(tiny_model, [(0, 1)]), training=Training(learning_rate=1e30))
