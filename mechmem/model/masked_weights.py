"""An optimizer that knows the chosen weights alone, so that no other can move."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.masks import Mask
from mechmem.model.sites import editable_parameters


class MaskedWeights:
    """AdamW over the masked weights, gathered from their tensors and scattered back after each step.

    Its state is as small as the mask: neither momentum nor weight decay nor clipping can reach another weight.

    Attributes:
        parameters: the tensors that hold chosen weights; their gradients are wanted.
    """

    def __init__(
        self, model: HookedTransformer, mask: Mask | None, *, learning_rate: float, weight_decay: float = 0.0
    ) -> None:
        """Switch on the gradients of the tensors that hold chosen weights; None: of all attention and MLP weights."""
        parameters = editable_parameters(model)
        names = list(parameters) if mask is None else list(mask.indices)
        self.parameters = [parameters[name].requires_grad_() for name in names]
        self._indices = [None if mask is None else mask.indices[name].to(parameters[name].device) for name in names]
        self._values = [
            self._gather(parameter.detach(), index).clone()
            for parameter, index in zip(self.parameters, self._indices, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(self._values, lr=learning_rate, weight_decay=weight_decay)

    @staticmethod
    def _gather(tensor: Tensor, index: Int[Tensor, " chosen"] | None) -> Tensor:
        return tensor if index is None else tensor.reshape(-1)[index]

    @torch.no_grad()
    def update(self, loss: Float[Tensor, ""]) -> None:
        """One step down the loss."""
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss, self.parameters)
        for value, gradient, index in zip(self._values, gradients, self._indices, strict=True):
            value.grad = self._gather(gradient, index)
        self._optimizer.step()
        for parameter, value, index in zip(self.parameters, self._values, self._indices, strict=True):
            if index is None:
                parameter.copy_(value)
            else:
                parameter.view(-1)[index] = value


def check_mask(model: HookedTransformer, mask: Mask) -> None:
    """Refuse a mask that this model cannot be edited through.

    Raises:
        InputError: it is empty, or of another model.
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
