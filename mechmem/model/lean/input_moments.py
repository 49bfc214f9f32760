"""What goes into every weight matrix: second moments of its inputs over some text."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.lean.trainable import MATRICES

# Tokens of one forward, about.
TOKENS = 4096


class InputMoments(LeanModel):
    """A forward that adds up x x^T of every matrix' inputs x, over all positions."""

    def __init__(self, model: HookedTransformer):
        super().__init__(model)
        self.sums: dict[int, Float[Tensor, "d_in d_in"]] = {}

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product x @ weight + bias, after noting x."""
        flat = x.flatten(0, -2).double()
        moment = flat.T @ flat
        if id(weight) in self.sums:
            moment += self.sums[id(weight)]
        self.sums[id(weight)] = moment
        return super().affine(x, weight, bias)


@torch.no_grad()
def input_moments(model: HookedTransformer, tokens: Tensor, names: list[str]) -> dict[str, Float[Tensor, "d_in d_in"]]:
    """Second moments of the inputs of some attention and MLP weights, mean over all tokens, not centred; in float64.

    Args:
        model: without hooks; an architecture that has a lean forward.
        tokens: ids [paragraph, pos].
        names: parameters, `blocks.0.attn.W_Q` for example. W_Q, W_K and W_V
            have the same inputs, and one tensor here; those of W_O are the
            outputs of all heads side by side.

    Raises:
        InputError: an architecture without a lean forward, or hooks on the model.
    """
    forward = InputMoments(model)
    rows = max(1, TOKENS // tokens.shape[1])
    with fast_float32(forward.device):
        for start in range(0, len(tokens), rows):
            forward.forward(tokens[start : start + rows])
    for moment in forward.sums.values():
        moment /= tokens.numel()
    found = {}
    for name in names:
        _, number, _, weight = name.split(".")
        found[name] = forward.sums[id(getattr(forward.layers[int(number)], MATRICES[weight.removeprefix("W_")]))]
    return found
