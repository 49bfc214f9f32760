"""RMU: terms of a layer's residual stream instead of the predictions."""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.objectives import Steering
from mechmem.model.lean.model import LeanModel, fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.weights.masks import Mask

# What drift of the keep set counts against steering at a keep_weight of 1; Li et al. use 1200 for 7 billion weights.
HELD = 100.0
# Paragraphs of one forward.
CHUNK = 4


class SteeringTerms:
    """Squared distances of the residual stream from where it shall be (RMU: Li et al. 2024, arXiv 2403.03218).

    With s the root of the mean squared length of the targets' residual stream in the original model, at the positions
    that score the continuation, and u a random direction of length 1:

        target term: mean over positions of |h - coefficient * s * u|^2 / s^2
        keep term:   HELD * mean over positions of |h - h_0|^2 / s^2

    Lengths are measured in s so that a coefficient means the same in every model and layer. u is drawn from a normal
    distribution: entries between 0 and 1, as in the paper, make a vector that lies mostly along the constant one, which
    the next LayerNorm removes.
    """

    def __init__(self, lean: LeanModel, steering: Steering, targets: Paragraphs, seed: int) -> None:
        self._layer, self._lean = steering.layer, lean
        total = torch.zeros((), dtype=torch.float64, device=lean.device)
        for start in range(0, len(targets), CHUNK):
            total += self.original(targets[start : start + CHUNK]).double().square().sum()
        self._square = float(total) / (len(targets) * targets.continuation_len)
        direction = torch.randn(lean.d_model, generator=torch.Generator().manual_seed(seed))
        goal = steering.coefficient * self._square**0.5 * direction / direction.norm()
        self._goal = goal.to(lean.device, lean.dtype)

    @torch.no_grad()
    def original(self, part: Paragraphs) -> Float[Tensor, "paragraph continuation_pos d_model"]:
        """The original model's residual stream at the positions that score the continuation."""
        with fast_float32(self._lean.device):
            return self._lean.residual_after(self._layer, part.tokens, part.prefix_len)[:, -part.continuation_len :]

    def target(self, residual: Float[Tensor, "paragraph continuation_pos d_model"]) -> Float[Tensor, " paragraph"]:
        """The term of paragraphs to change."""
        return (residual - self._goal).square().sum(-1).mean(-1) / self._square

    def keep(
        self,
        residual: Float[Tensor, "paragraph continuation_pos d_model"],
        original: Float[Tensor, "paragraph continuation_pos d_model"],
    ) -> Float[Tensor, " paragraph"]:
        """The term of paragraphs to hold."""
        return HELD * (residual - original).square().sum(-1).mean(-1) / self._square


def steered_layer(model: HookedTransformer, layer: int | None, mask: Mask | None) -> int:
    """The layer that is steered: the middle one where none is named.

    Raises:
        InputError: a layer that the model does not have, or a mask that has no weight in it or before it.
    """
    depth = model.cfg.n_layers
    chosen = (depth - 1) // 2 if layer is None else layer
    if chosen >= depth:
        raise InputError(f"got layer {chosen}; need one below {depth}, counted from zero: the model has {depth}")
    reached = [int(re.findall(r"\d+", name)[0]) for name in ([] if mask is None else mask.indices)]
    if mask is not None and min(reached) > chosen:
        raise InputError(
            f"the mask's first weight is in layer {min(reached)}, and no weight behind layer {chosen} changes what is "
            f"steered there; need layer {min(reached)} or a later one, or a mask with earlier weights"
        )
    return chosen
