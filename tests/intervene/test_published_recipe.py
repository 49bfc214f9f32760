"""The study's fine-tuning against a loop that is written out, and what its decay does to the rest of the model."""

import copy

import pytest
import torch
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.published_recipe import Recipe, published_recipe
from mechmem.localize.gradients import weight_gradients
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask
from mechmem.weights.support import changed_weights, moved, tensor_pairs, verify_support


@pytest.fixture(scope="module")
def sets(tiny_paragraphs):
    return tiny_paragraphs[:4], tiny_paragraphs[4:]


@pytest.fixture(scope="module")
def mask(tiny_model, sets):
    return Mask.top(weight_gradients(tiny_model, sets[0]), fraction=0.01)


def outside(model, edited, mask: Mask) -> int:
    count = 0
    for name, before, after in tensor_pairs(model, edited):
        differ = moved(before, after)
        differ[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = False
        count += int(differ.sum())
    return count


def by_hand(model, targets: Paragraphs, keep: Paragraphs, mask: Mask | None, recipe: Recipe, labels=None):
    """One whole-model Adam; every logit of every position."""
    edited = copy.deepcopy(model)
    parameters = editable_parameters(edited)
    adam = torch.optim.Adam(parameters.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    columns = slice(targets.prefix_len - 1, -1)
    wanted = targets.continuation if labels is None else labels
    reference = model(keep.tokens)[:, columns].detach().log_softmax(-1)
    for _ in range(recipe.steps):
        nll = functional.cross_entropy(edited(targets.tokens)[:, columns].flatten(0, 1), wanted.flatten())
        held = edited(keep.tokens)[:, columns].log_softmax(-1)
        kl = functional.kl_div(held, reference, log_target=True, reduction="none").sum(-1).mean()
        gradients = torch.autograd.grad(kl + (nll if labels is not None else -nll), list(parameters.values()))
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            parameter.grad = gradient
            if mask is not None:
                allowed = torch.zeros(gradient.numel())
                allowed[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1
                parameter.grad = gradient * allowed.view(gradient.shape)
        adam.step()
    return edited


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("relabelled", [False, True])
def test_it_is_the_published_loop(tiny_model, sets, mask, masked, relabelled):
    targets, keep = sets
    labels = targets.continuation.roll(1, 0) if relabelled else None
    # A large rate, so that three steps move the KL away from zero.
    recipe = Recipe(steps=3, learning_rate=1e-3, weight_decay=0.5)
    chosen = mask if masked else None
    found = published_recipe(tiny_model, targets, keep, mask=chosen, labels=labels, recipe=recipe)
    for name, before, after in tensor_pairs(by_hand(tiny_model, targets, keep, chosen, recipe, labels), found):
        torch.testing.assert_close(after, before, atol=2e-5, rtol=0, msg=name)


def test_coupled_decay_moves_weights_outside_the_mask_and_only_it_does(tiny_model, sets, mask):
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    free = sum(p.numel() for p in editable_parameters(tiny_model).values()) - mask.count
    dense = published_recipe(tiny_model, *sets, mask=mask, recipe=Recipe(steps=2))
    assert outside(tiny_model, dense, mask) > 0.99 * free
    # Adam normalises the decay: each weight moves by the rate a step, whatever its size.
    name = next(name for name in mask.shapes if name not in mask.indices or len(mask.indices[name]) < 5)
    change = (editable_parameters(dense)[name] - editable_parameters(tiny_model)[name]).abs().flatten()
    assert change.median().item() == pytest.approx(2e-5, rel=0.05)
    # Controls: without decay, or with an optimizer that knows the mask, nothing else moves.
    for recipe in (Recipe(steps=2, weight_decay=0.0), Recipe(steps=2, decay_everywhere=False)):
        edited = published_recipe(tiny_model, *sets, mask=mask, recipe=recipe)
        verify_support(tiny_model, edited, mask)
        assert changed_weights(tiny_model, edited) > 0.9 * mask.count
    assert all(torch.equal(value, state[name]) for name, value in tiny_model.state_dict().items())


def test_labels_of_another_length_are_refused(tiny_model, sets, mask):
    with pytest.raises(InputError, match="need one label for each continuation token"):
        published_recipe(tiny_model, *sets, mask=mask, labels=sets[0].tokens)
