"""An optimizer that knows the chosen weights alone, so that no other can move."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.lean.trainable import TrainableModel
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.mask_choice import check_shapes
from mechmem.weights.masks import Mask
from mechmem.weights.null_space import NullSpace
from mechmem.weights.stored_copy import copied
from mechmem.weights.training import Training


class MaskedWeights:
    """The chosen weights of a model and an optimizer over them: AdamW unless another one is given.

    The weights are gathered from their tensors, and written back after each step. Gradients and the optimizer's state
    are as small as the mask, so neither momentum nor weight decay nor clipping can reach another weight.
    """

    def __init__(
        self, model: HookedTransformer, mask: Mask | None, training: Training, null_space: NullSpace | None = None
    ) -> None:
        """Choose the weights; the model's are written in place.

        Args:
            model: to be edited; it must have no hooks, as `continuation_logits` does not run them.
            mask: weights that may move; None for all attention and MLP weights.
            training: the optimizer, its learning rate and weight decay, and the norm to clip to.
            null_space: onto which each step's update is projected; None: as it is.

        Raises:
            InputError: an architecture that has no lean forward, or AdamW without a learning rate.
        """
        names = list(editable_parameters(model)) if mask is None else list(mask.indices)
        self._forward = TrainableModel(model, names, None if mask is None else mask.indices)
        self._values = list(self._forward.values.values())
        self._optimizer = training.make_optimizer(self._values)
        self._max_norm = training.max_norm
        self._null_space, self._indices = null_space, None if mask is None else mask.indices
        self._shapes = {name: tuple(parameter.shape) for name, parameter in editable_parameters(model).items()}

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
        together: int = 1,
    ) -> None:
        """Add the gradients of some paragraphs' losses to those of the step.

        Logits are made for a few paragraphs at a time, and the loss goes back through them at once: those of a batch,
        and what is made of them on the way, would take more memory and time than the body.

        Args:
            tokens: all go through the body together.
            prefix_len: tokens that are only context.
            loss: (logits [paragraph, continuation_pos, d_vocab], which paragraphs) -> their share of the loss.
            train: False: show the logits to `loss` and leave the gradients alone.
            together: `loss` is given multiples of as many paragraphs.
        """
        with torch.set_grad_enabled(train):
            hidden = self._forward.continuation_hidden(tokens, prefix_len)
            cut = hidden.detach().requires_grad_(train)
            for rows in self._forward.rows_at_once(cut, together):
                value = loss(self._forward.unembed_trainable(cut[rows]), rows)
                if train:
                    value.backward(inputs=[cut])
            if train:
                torch.autograd.backward(hidden, cut.grad, inputs=self._values)

    def accumulate_inside(
        self,
        layer: int,
        tokens: Int[Tensor, "paragraph pos"],
        prefix_len: int,
        loss: Callable[[Tensor], Tensor],
        see: Callable[[Tensor, slice], None],
        *,
        train: bool = True,
    ) -> None:
        """Add the gradients of a loss of the residual stream after a layer; no weight behind it gets one.

        Args:
            layer: after which.
            tokens: all go through the body together.
            prefix_len: tokens that are only context.
            loss: of the residual stream [paragraph, continuation_pos, d_model], at the positions that score.
            see: is shown the logits as `loss` is by `accumulate`, to measure them.
            train: False: leave the gradients alone.
        """
        with torch.set_grad_enabled(train):
            residual = self._forward.residual_after(layer, tokens, prefix_len)
            value = loss(residual[:, -(tokens.shape[1] - prefix_len) :])
            if train:
                value.backward(inputs=self._values)
        with torch.no_grad():
            hidden = self._forward.hidden_from(layer, residual.detach(), prefix_len)
            for rows in self._forward.rows_at_once(hidden):
                see(self._forward.unembed_trainable(hidden[rows]), rows)

    @contextmanager
    def uphill(self, radius: float) -> Iterator[None]:
        """In the block the weights stand `radius` further along the accumulated gradients, which begin anew there.

        The distance is Euclidean, over all chosen weights. After the block the weights are what they were, to the bit,
        and the gradients are those that were accumulated in it. Gradients that are zero or not finite lead nowhere.
        """
        before = [value.detach().clone() for value in self._values]
        gradients = [value.grad for value in self._values]
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if bool(norm > 0) and bool(norm.isfinite()):
            with torch.no_grad():
                for value, gradient in zip(self._values, gradients, strict=True):
                    if gradient is not None:
                        value.add_(gradient, alpha=radius / float(norm))
            self._forward.write()
        self._optimizer.zero_grad()
        try:
            yield
        finally:
            self.restore(before)

    def step(self) -> None:
        """One step down the accumulated gradients."""
        if self._max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._values, self._max_norm)
        before = None if self._null_space is None else [value.detach().clone() for value in self._values]
        self._optimizer.step()
        self._optimizer.zero_grad()
        if before is not None:
            self._project(before)
        self._forward.write()

    @torch.no_grad()
    def _project(self, before: list[Tensor]) -> None:
        """Take back the part of a step that the null space does not hold."""
        assert self._null_space is not None
        for (name, value), old in zip(self._forward.values.items(), before, strict=True):
            if self._indices is None:
                update = self._null_space.project(name, value - old)
            else:
                index = self._indices[name].to(value.device)
                update = self._null_space.project_chosen(name, value - old, index, self._shapes[name])
            value.copy_(old + update)

    def update(self, loss: Float[Tensor, ""]) -> None:
        """One step down the loss, which must come from `continuation_logits`."""
        loss.backward(inputs=self._values)
        self.step()

    def snapshot(self) -> Iterable[Tensor]:
        """A copy of the chosen weights; a large one is on disk."""
        return copied(self._values)

    @torch.no_grad()
    def restore(self, snapshot: Iterable[Tensor]) -> None:
        """Put the chosen weights back to what they were."""
        for value, before in zip(self._values, snapshot, strict=True):
            value.copy_(before)
        self._forward.write()

    def optimizer_settings(self) -> list[Any]:
        """The optimizer's class and the settings of its groups: whatever decides how weights move."""
        kind = type(self._optimizer)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._optimizer.param_groups]
        return [f"{kind.__module__}.{kind.__qualname__}", groups]

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


def check_mask(model: HookedTransformer, mask: Mask, *, all_allowed: bool = False) -> None:
    """Refuse a mask through which this model cannot be changed.

    Args:
        model: whose weights.
        mask: weights that may move.
        all_allowed: whether the mask may choose every weight; an edit through such a mask proves nothing.

    Raises:
        InputError: it is empty, chooses every weight, or is of another model.
    """
    if mask.count == 0:
        raise InputError("the mask is empty, so no weight could move; choose a larger fraction")
    check_shapes({name: mask.shapes[name] for name in mask.indices}, model)
    total = sum(parameter.numel() for parameter in editable_parameters(model).values())
    if mask.count == total and not all_allowed:
        raise InputError(
            f"the mask chooses all {mask.count} attention and MLP weights, so it proves nothing; give mask=None for an "
            "edit of all of them, or a smaller fraction"
        )
