"""Weights that are dropped little by little: each step drops a larger share of what a method found."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Row
from mechmem.measure.scores import kl, score
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask

# Share in (0, 1] of what a method drops at most -> parameter name -> its new weights, for the parameters that change.
Schedule = Callable[[float], dict[str, Tensor]]


def dropped_rows(model: HookedTransformer, name: str, gain: Tensor, limit: float) -> Schedule:
    """A schedule that zeroes rows of one kind of matrix, those of the largest gain first.

    Args:
        model: whose weights; left as it is.
        name: the matrix within a layer; its first axis is what is dropped.
        gain: [layer, row]; rows of equal gain go in order.
        limit: share of all rows that is gone at share 1.
    """
    order = torch.argsort(gain.flatten(), descending=True, stable=True).tolist()
    parameters = editable_parameters(model)

    def schedule(share: float) -> dict[str, Tensor]:
        new: dict[str, Tensor] = {}
        for flat in order[: round(share * limit * len(order))]:
            layer, row = divmod(flat, gain.shape[1])
            key = f"blocks.{layer}.{name}"
            if key not in new:
                new[key] = parameters[key].detach().clone()
            new[key][row] = 0
        return new

    return schedule


class GradualDrop:
    """An updater of `run_loop`: step k has share k / steps."""

    can_diverge = False

    def __init__(
        self,
        model: HookedTransformer,
        edited: HookedTransformer,
        schedule: Schedule,
        mask: Mask | None,
        targets: Paragraphs,
        keep: Paragraphs,
        steps: int,
    ) -> None:
        self._model, self._edited, self._schedule, self._mask = model, edited, schedule, mask
        self._targets, self._keep, self._steps = targets, keep, steps
        self._at = 0

    def measure(self, *, last: bool) -> Row:  # noqa: ARG002 - there is no gradient to save
        """Values of both sets, whole."""
        scored = score(self._edited, self._targets)
        nll, em = float(scored.nll.mean()), float(scored.em.mean())
        cost = 0.0 if self._at == 0 else float(kl(self._model, self._edited, self._keep).mean())
        return {"memorized_nll": nll, "memorized_em": em, "keep_kl": cost, "objective": cost - nll}

    def advance(self) -> None:
        """One step further."""
        self.restore(self._at + 1)

    def snapshot(self) -> int:
        """The current step."""
        return self._at

    @torch.no_grad()
    def restore(self, snapshot: int) -> None:
        """Stand at another step; 0 is the original model."""
        self._at = snapshot
        original, now = editable_parameters(self._model), editable_parameters(self._edited)
        new = self._schedule(snapshot / self._steps) if snapshot else {}
        for name, parameter in now.items():
            parameter.copy_(original[name])
            if name not in new:
                continue
            if self._mask is None:
                parameter.copy_(new[name])
            elif name in self._mask.indices:
                index = self._mask.indices[name].to(parameter.device)
                parameter.view(-1)[index] = new[name].reshape(-1)[index].to(parameter.dtype)
