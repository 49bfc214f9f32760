"""An optimizer that knows the chosen weights alone, so that no other can move."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.lean.trainable import TrainableModel
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask

# Makes an optimizer of the vectors of chosen weights.
MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class MaskedWeights:
    """The chosen weights of a model and an optimizer over them, whichever: AdamW unless another is given.

    The weights are gathered from their tensors, and written back after each step. Gradients and the optimizer's state
    are as small as the mask, so neither momentum nor weight decay nor clipping can reach another weight.
    """

    def __init__(
        self,
        model: HookedTransformer,
        mask: Mask | None,
        *,
        learning_rate: float,
        weight_decay: float = 0.0,
        optimizer: MakeOptimizer | None = None,
        max_norm: float | None = None,
    ) -> None:
        """Choose the weights; the model's are written in place.

        Args:
            model: to be edited; hooks on it do not take part in `continuation_logits`.
            mask: weights that may move; None for all attention and MLP weights.
            learning_rate: of AdamW.
            weight_decay: of AdamW, decoupled.
            optimizer: another optimizer, made from the list of tensors to optimize.
            max_norm: clip the gradient to this Euclidean norm, over all chosen weights together.

        Raises:
            InputError: an architecture that has no lean forward.
        """
        names = list(editable_parameters(model)) if mask is None else list(mask.indices)
        self._forward = TrainableModel(model, names, None if mask is None else mask.indices)
        self._values = list(self._forward.values.values())
        make = optimizer or (
            lambda values: torch.optim.AdamW(values, lr=learning_rate, weight_decay=weight_decay, fused=True)
        )
        self._optimizer = make(self._values)
        self._max_norm = max_norm

    def continuation_logits(
        self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
    ) -> Float[Tensor, "paragraph continuation_pos d_vocab"]:
        """Logits that score the continuation, of the weights as they are now; gradients flow to the chosen ones."""
        return self._forward.continuation_logits(tokens, prefix_len)

    def accumulate(
        self,
        tokens: Int[Tensor, "paragraph pos"],
        prefix_len: int,
        loss: Callable[[Tensor, slice], Tensor],
        *,
        train: bool = True,
    ) -> None:
        """Add the gradients of some paragraphs' losses to those of the step.

        Logits are made for a few paragraphs at a time, and the loss goes back through them at once: those of a batch,
        and what is made of them on the way, would take more memory and time than the body.

        Args:
            tokens: all go through the body together.
            prefix_len: tokens that are only context.
            loss: (logits [paragraph, continuation_pos, d_vocab], which paragraphs) -> their share of the loss.
            train: False: show the logits to `loss` and leave the gradients alone.
        """
        with torch.set_grad_enabled(train):
            hidden = self._forward.continuation_hidden(tokens, prefix_len)
            cut = hidden.detach().requires_grad_(train)
            for rows in self._forward.rows_at_once(cut):
                value = loss(self._forward.unembed_trainable(cut[rows]), rows)
                if train:
                    value.backward(inputs=[cut])
            if train:
                torch.autograd.backward(hidden, cut.grad, inputs=self._values)

    def step(self) -> None:
        """One step down the accumulated gradients."""
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._values, self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._forward.write()

    def update(self, loss: Float[Tensor, ""]) -> None:
        """One step down the loss, which must come from `continuation_logits`."""
        loss.backward(inputs=self._values)
        self.step()

    def snapshot(self) -> list[Tensor]:
        """A copy of the chosen weights."""
        return [value.detach().clone() for value in self._values]

    @torch.no_grad()
    def restore(self, snapshot: list[Tensor]) -> None:
        """Put the chosen weights back to what they were."""
        for value, before in zip(self._values, snapshot, strict=True):
            value.copy_(before)
        self._forward.write()

    def state(self) -> tuple[dict[str, Tensor], str]:
        """Everything that going on later needs: tensors, and the rest as JSON.

        Raises:
            InputError: the optimizer keeps something that neither a tensor nor JSON can hold.
        """
        kept = self._optimizer.state_dict()
        tensors = {f"value.{i}": value.detach() for i, value in enumerate(self._values)}
        plain: dict[str, Any] = {}
        for i, entries in kept["state"].items():
            for key, entry in entries.items():
                (tensors if isinstance(entry, Tensor) else plain)[f"state.{i}.{key}"] = entry
        try:
            return tensors, json.dumps({"plain": plain, "groups": kept["param_groups"]})
        except TypeError as error:
            raise InputError(
                f"the optimizer's state cannot be written ({error}); need tensors and numbers: use one of torch's "
                "optimizers, or run without a checkpoint"
            ) from error

    def load_state(self, tensors: Mapping[str, Tensor], rest: str) -> None:
        """Go on from what `state` gave, on a model and mask of the same kind."""
        self.restore([tensors[f"value.{i}"] for i in range(len(self._values))])
        read = json.loads(rest)
        state: dict[int, dict[str, Any]] = {}
        for name, entry in {**tensors, **read["plain"]}.items():
            kind, number, *key = name.split(".", 2)
            if kind == "state":
                state.setdefault(int(number), {})[key[0]] = entry
        self._optimizer.load_state_dict({"state": state, "param_groups": read["groups"]})


def check_mask(model: HookedTransformer, mask: Mask) -> None:
    """Refuse a mask that this model cannot be edited through.

    Raises:
        InputError: it is empty, chooses every weight, or is of another model.
    """
    if mask.count == 0:
        raise InputError("the mask is empty, so no weight could move; choose a larger fraction")
    shapes = {name: tuple(parameter.shape) for name, parameter in editable_parameters(model).items()}
    for name in mask.indices:
        if shapes.get(name) != tuple(mask.shapes[name]):
            raise InputError(
                f"the mask's '{name}' has shape {mask.shapes[name]} and the model's {shapes.get(name)}; "
                "the mask is of another model: make it from this model's gradients"
            )
    if mask.count == sum(torch.Size(shape).numel() for shape in shapes.values()):
        raise InputError(
            f"the mask chooses all {mask.count} attention and MLP weights, so it proves nothing; give mask=None for an "
            "edit of all of them, or a smaller fraction"
        )
