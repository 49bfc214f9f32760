"""The study's own fine-tuning, slips included, so that its table can be repeated and each slip measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.bounds import Amount, Count, Rate, check_fields
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.intervene.descent import CHUNK, Reference
from mechmem.intervene.objectives import hold_kl, lower_nll, raise_nll
from mechmem.intervene.train import check_sets
from mechmem.model.hooks import frozen
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import editable_parameters
from mechmem.weights.mask_choice import size
from mechmem.weights.masked_weights import MaskedWeights, check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training


@dataclass(frozen=True)
class Recipe:
    """The published fine-tuning: Adam with coupled weight decay, on gradients that are zero outside a mask.

    Attributes:
        steps: of Adam; the paper says 10, its code takes 5.
        learning_rate: of Adam.
        weight_decay: coupled: it is added to the gradient, and Adam normalises the sum.
        decay_everywhere: True: the optimizer holds every attention and MLP weight and only the gradient is masked, as
            in the public code, so that decay moves the weights outside the mask too. False: it holds the masked weights
            alone.
    """

    steps: Count = 10
    learning_rate: Rate = 1e-5
    weight_decay: Amount = 1.0
    decay_everywhere: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@public("refuse")
def published_recipe(
    model: HookedTransformer,
    targets: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,
    labels: Int[Tensor, "paragraph continuation_pos"] | None = None,
    recipe: Recipe | None = None,
    progress: ProgressLike = None,
) -> HookedTransformer:
    """A copy fine-tuned as Stoehr et al. 2024 (arXiv 2403.19851, section 5) and their code do, all of a set a step.

    Each step goes down the gradient of

        -NLL(targets) + KL(p_0 || p on keep)          without labels (their unlearning)
        NLL(labels | targets) + KL(p_0 || p on keep)  with labels (their editing)

    `mechmem.unlearn` and `mechmem.edit` are the ways to do this right; this one is for comparing with them.

    Args:
        model: folded weights for the study's numbers; left as it is.
        targets: paragraphs that are read, prefix and continuation.
        keep: paragraphs whose predictions are held.
        mask: weights whose gradient is used; None: all attention and MLP weights.
        labels: tokens that the columns of the targets' continuation are to predict. The study took them from a
            perturbed paragraph while the model read the memorized one.
        recipe: None: `Recipe()`.
        progress: called with (steps done, steps).

    Returns:
        The edited copy. With `decay_everywhere`, weights outside the mask have moved.

    Raises:
        InputError: an empty set, a paragraph in both sets, labels of another shape, or a mask that is empty or of
            another model.
    """
    recipe = recipe or Recipe()
    check_sets(model, targets, keep, "targets")
    if mask is not None:
        check_mask(model, mask)
    if labels is not None and labels.shape != targets.continuation.shape:
        raise InputError(
            f"got labels of shape {list(labels.shape)} for continuations of {list(targets.continuation.shape)}; need "
            "one label for each continuation token"
        )
    target = (raise_nll, targets.continuation) if labels is None else (lower_nll, labels)
    report, edited = as_callback(progress, "published_recipe"), copy.deepcopy(model)
    dense = mask is None or recipe.decay_everywhere
    with frozen(edited), fast_float32(edited.W_E.device):
        make = _optimizer(edited, mask if dense else None, recipe)
        weights = MaskedWeights(edited, None if dense else mask, Training(steps=recipe.steps, optimizer=make))
        reference = Reference(model)
        for step in range(recipe.steps):
            _accumulate(weights, reference, targets, *target, "target")
            # At the starting weights KL(p_0 || p) is zero, and so is its gradient.
            if step > 0:
                _accumulate(weights, reference, keep, hold_kl, keep.continuation, "keep")
            weights.step()
            if report is not None:
                report(step + 1, recipe.steps)
    return edited


def _optimizer(
    model: HookedTransformer, mask: Mask | None, recipe: Recipe
) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    """Adam over the tensors it is given; with a mask, over all attention and MLP weights, their gradients masked."""
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if mask is None:
        return lambda tensors: torch.optim.Adam(tensors, **settings)
    allowed = []
    for name, parameter in editable_parameters(model).items():
        chosen = torch.zeros(size(mask.shapes[name]), dtype=torch.bool)
        chosen[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = True
        allowed.append(chosen.view(parameter.shape).to(parameter.device))
    return lambda tensors: _MaskedGradients(tensors, allowed, settings)


class _MaskedGradients(torch.optim.Adam):
    """Adam whose gradients are set to zero outside a mask before the step; its decay is not."""

    def __init__(self, tensors: list[Tensor], allowed: list[Tensor], settings: dict[str, Any]) -> None:
        super().__init__(tensors, **settings)
        self._allowed = allowed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for tensor, allowed in zip(self.param_groups[0]["params"], self._allowed, strict=True):
            if tensor.grad is not None:
                tensor.grad *= allowed
        return super().step(closure)


def _accumulate(
    weights: MaskedWeights,
    reference: Reference,
    paragraphs: Paragraphs,
    term: Callable[[Tensor, Tensor, Tensor], Tensor],
    true: Int[Tensor, "paragraph continuation_pos"],
    kind: str,
) -> None:
    """Add the gradients of a term's mean over a set."""
    for start, part in _parts(paragraphs):
        labels = true[start : start + len(part)].to(reference.device)
        known = reference((kind, 0, start), part) if term is hold_kl else torch.empty(len(part), 0)

        def loss(logits: Tensor, rows: slice, labels: Tensor = labels, known: Tensor = known) -> Tensor:
            return term(logits.log_softmax(-1), labels[rows], known[rows]).sum() / len(paragraphs)

        weights.accumulate(part.tokens, part.prefix_len, loss)


def _parts(paragraphs: Paragraphs) -> Iterator[tuple[int, Paragraphs]]:
    for start in range(0, len(paragraphs), CHUNK):
        yield start, paragraphs[start : start + CHUNK]
