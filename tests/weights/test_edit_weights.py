"""Whole matrices of chosen heads and layers, written where they are."""

import copy

import pytest
import torch
from jaxtyping import TypeCheckError

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.weights.edit_weights import edit_weights
from mechmem.weights.support import SupportError, verify_support


def test_a_heads_matrix_is_changed_and_nothing_else(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    edited, mask = edit_weights(tiny_model, {"W_V": 0.0, "W_O": lambda w: 2 * w}, heads=["L1H2", (0, 1)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
    expected = copy.deepcopy(before)
    for layer, head in ((1, 2), (0, 1)):
        expected[f"blocks.{layer}.attn.W_V"][head] = 0.0
        expected[f"blocks.{layer}.attn.W_O"][head] *= 2.0
    assert all(torch.equal(tensor, expected[name]) for name, tensor in edited.state_dict().items())
    verify_support(tiny_model, edited, mask)
    assert mask.count == 2 * (before["blocks.0.attn.W_V"][0].numel() + before["blocks.0.attn.W_O"][0].numel())
    with torch.no_grad():
        edited.blocks[1].attn.W_V[1, 0, 0] += 1.0
    with pytest.raises(SupportError, match="blocks.1.attn.W_V"):
        verify_support(tiny_model, edited, mask)


def test_layers_alone_mean_all_their_heads_and_their_mlps(tiny_model):
    new = torch.arange(44.0)
    edited, mask = edit_weights(tiny_model, {"W_Q": 0, "b_in": new, "W_out": lambda w: w.flip(0)}, layers=[3])
    after, before = edited.state_dict(), tiny_model.state_dict()
    assert not after["blocks.3.attn.W_Q"].any() and torch.equal(after["blocks.3.mlp.b_in"], new)
    assert torch.equal(after["blocks.3.mlp.W_out"], before["blocks.3.mlp.W_out"].flip(0))
    assert set(mask.indices) == {"blocks.3.attn.W_Q", "blocks.3.mlp.b_in", "blocks.3.mlp.W_out"}
    verify_support(tiny_model, edited, mask)


def test_the_trap_it_replaces(tiny_model):
    """`model.W_V[1, 2] = 0` writes to a copy; this does not."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.W_V[1, 2] = 0
    assert model.blocks[1].attn.W_V[2].any()
    edited, _ = mm.edit_weights(model, {"W_V": 0}, heads=["L1H2"])
    assert not edited.W_V[1, 2].any()


def test_a_function_cannot_reach_the_model(tiny_model):
    kept = tiny_model.blocks[0].attn.W_V[0].clone()

    def spoil(weights):
        weights.zero_()
        return weights + 1

    edited, _ = edit_weights(tiny_model, {"W_V": spoil}, heads=["L0H0"])
    assert torch.equal(tiny_model.blocks[0].attn.W_V[0], kept) and bool((edited.blocks[0].attn.W_V[0] == 1).all())


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {"heads": ["L0H0"]}, "got changes of nothing; need some of W_Q"),
        ({"W_X": 0}, {"heads": ["L0H0"]}, r"got changes of \['W_X'\]"),
        ({"W_V": 0}, {}, "got neither heads nor layers"),
        ({"W_V": 0}, {"heads": ["L4H0"]}, "need .layer, head. pairs or names"),
        ({"W_V": 0}, {"layers": [4]}, r"got layers \[4\]; need numbers from 0 to 3"),
        ({"W_V": 0}, {"layers": []}, r"got layers \[\]"),
        ({"W_V": 0}, {"layers": [True]}, r"got True as layers\[0\]; need a whole number"),
        ({"W_in": 0}, {"heads": ["L0H0"]}, "W_in belong to a layer, not to a head"),
        ({"W_V": "zero"}, {"heads": ["L0H0"]}, "got str for W_V of L0H0; need a factor|Mapping"),
        ({"W_V": True}, {"heads": ["L0H0"]}, "got bool for W_V"),
        ({"W_V": lambda w: None}, {"heads": ["L0H0"]}, "the function for W_V of L0H0 gave NoneType"),  # noqa: ARG005
        ({"W_V": lambda w: w.T}, {"heads": ["L0H0"]}, r"got new values of shape \[7, 21\] for W_V of L0H0"),
        ({"W_V": float("nan")}, {"heads": ["L0H0"]}, "the new values for W_V of L0H0 are NaN"),
        ({"b_out": torch.zeros(3)}, {"layers": [1]}, r"shape \[3\] for b_out of layer 1; need \[21\]"),
    ],
)
def test_what_cannot_be_changed_is_refused(tiny_model, changes, options, said):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    # Annotations are enforced in tests, before the function sees the argument.
    with pytest.raises((InputError, TypeCheckError), match=said):
        edit_weights(tiny_model, changes, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


def test_a_model_without_mlps_has_none_to_change(small_model):
    with pytest.raises(InputError, match="the model has no blocks.0.mlp.W_in"):
        edit_weights(small_model(attn_only=True), {"W_in": 0}, layers=[0])
