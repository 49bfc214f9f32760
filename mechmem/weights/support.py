"""Proof that an edit stayed inside its mask."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masks import Mask


class SupportError(AssertionError):
    """A weight outside the mask moved: the edit is not what it says it is."""


@public("refuse")
def verify_support(model: HookedTransformer, edited: HookedTransformer, mask: Mask) -> None:
    """Compare every parameter and buffer bit by bit and return only if nothing outside the mask differs.

    Bits are compared, not values: -0.0 for 0.0 and another NaN count as a change.

    Raises:
        SupportError: names the first tensor with a change outside the mask and counts its moved weights.
        InputError: the two models do not have the same tensors.
    """
    for name, before, after in tensor_pairs(model, edited):
        differ = moved(before, after)
        if name in mask.indices:
            differ[mask.indices[name].to(differ.device)] = False
        if bool(differ.any()):
            raise SupportError(
                f"{int(differ.sum())} of {differ.numel()} weights of '{name}' moved outside the mask; the edit is not "
                "sparse: keep the optimizer, its weight decay included, to the masked weights"
            )


def changed_weights(model: HookedTransformer, edited: HookedTransformer) -> int:
    """How many single weights differ in at least one bit."""
    return sum(int(moved(before, after).sum()) for _, before, after in tensor_pairs(model, edited))


def moved_outside(model: HookedTransformer, edited: HookedTransformer, mask: Mask) -> int:
    """How many single weights that the mask did not choose differ in at least one bit."""
    count = 0
    for name, before, after in tensor_pairs(model, edited):
        differ = moved(before, after)
        if name in mask.indices:
            differ[mask.indices[name].to(differ.device)] = False
        count += int(differ.sum())
    return count


def tensor_pairs(model: HookedTransformer, edited: HookedTransformer) -> list[tuple[str, Tensor, Tensor]]:
    """Name, tensor before and tensor after, for every parameter and buffer.

    Raises:
        InputError: the two models do not have the same tensors.
    """
    before, after = model.state_dict(), edited.state_dict()
    if before.keys() != after.keys() or any(before[n].shape != after[n].shape for n in before):
        raise InputError("the two models have different tensors; compare a model with an edit of itself")
    return [(name, before[name], after[name]) for name in before]


def moved(before: Tensor, after: Tensor) -> Bool[Tensor, " weight"]:
    """Which of a tensor's values differ in at least one bit, flat."""
    # Reading the same bytes as integers compares bits.
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[before.element_size()]
    left, right = (tensor.detach().contiguous().view(-1).view(integers) for tensor in (before, after))
    return left != right.to(left.device)
