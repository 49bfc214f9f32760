"""Gradient of the paragraphs' NLL with respect to the weights, element by element and by component."""

from __future__ import annotations

from collections.abc import Callable

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit, continuation_logits, token_nll
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import Reduction, editable_parameters, reduce_by_component


@public("run", renamed={"paras": "paragraphs"})
def weight_gradients(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> dict[str, Float[Tensor, " *weight"]]:
    """Gradient of the mean NLL with respect to every attention and MLP weight, element by element.

    The loss is the mean over paragraphs of the mean over the continuation of -log p(token | true tokens before it)
    (Stoehr et al. 2024, arXiv 2403.19851, section 4), from logit columns prefix_len - 1 ... n - 2. Batches are summed,
    so their size changes rounding alone.

    Args:
        model: left as it is: weights, `.grad`, `requires_grad`, hooks.
        paragraphs: the set whose mean NLL is differentiated.
        batch_size: paragraphs of one forward and backward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Parameter name (`blocks.0.attn.W_Q` ...) -> d NLL / d weight, in nats per token per unit of weight, in the
        weight's shape. Positive: raising the weight raises the NLL, so it makes the paragraphs less memorized.

    Raises:
        InputError: the paragraphs do not fit the model, or its layers are not those that `editable_parameters` knows.
    """
    return mean_gradients(model, paragraphs, _nll_sum, batch_size=batch_size, progress=progress)


def kl_gradients(
    model: HookedTransformer,
    reference: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: int | None = None,
    progress: ProgressLike = None,
) -> dict[str, Float[Tensor, " *weight"]]:
    """Gradient of the mean KL(p_reference || p) on the continuations; all zero, but for rounding, from equal weights.

    Arguments and result are those of `weight_gradients`; `reference` is the model that predictions are held to.
    """

    def held(model: HookedTransformer, tokens: Tensor, prefix_len: int) -> Float[Tensor, ""]:
        with torch.no_grad():
            known = continuation_logits(reference, tokens, prefix_len).log_softmax(-1)
        log_probs = continuation_logits(model, tokens, prefix_len).log_softmax(-1)
        return (known.exp() * (known - log_probs)).sum(-1).mean(-1).sum()

    return mean_gradients(model, paragraphs, held, batch_size=batch_size, progress=progress)


def mean_gradients(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    loss: Callable[[HookedTransformer, Tensor, int], Float[Tensor, ""]],
    *,
    batch_size: int | None,
    progress: ProgressLike,
) -> dict[str, Float[Tensor, " *weight"]]:
    """Gradient of a mean over paragraphs; `loss` gives the sum over some: (model, their tokens, prefix_len)."""
    check_fit(model, paragraphs)
    size = chosen_batch_size(batch_size, model.W_E.device, 16)
    parameters = editable_parameters(model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with frozen(model), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_()
        for batch in batches(len(paragraphs), size, progress):
            value = loss(model, paragraphs.tokens[batch], paragraphs.prefix_len) / len(paragraphs)
            gradients = torch.autograd.grad(value, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient
    return {name: gradient.detach() for name, gradient in total.items()}


def _nll_sum(model: HookedTransformer, tokens: Tensor, prefix_len: int) -> Float[Tensor, ""]:
    """Sum over paragraphs of the mean over the continuation."""
    logits = continuation_logits(model, tokens, prefix_len)
    continuation = tokens[:, prefix_len:]
    # Paragraphs have one length, so the sum over all tokens divided by it is the sum of the paragraphs' means.
    total = token_nll(logits, continuation).sum()
    return total / continuation.shape[1]


@public("run", renamed={"paras": "paragraphs"})
def parameter_gradients(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    reduction: Reduction = "max",
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """Size of the gradient of the mean NLL in every component (Stoehr et al. 2024, section 4 and figure 3).

    The gradient is taken once for the whole set, then reduced: it is the gradient of the mean and not the mean of
    single paragraphs' gradients.

    Args:
        model: left as it is.
        paragraphs: the set whose mean NLL is differentiated.
        reduction: "max": largest |gradient| in the component (the paper's); "sum": of |gradient|; "norm": Euclidean.
        batch_size: paragraphs of one forward and backward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [layer, component] in nats per token per unit of weight, never below zero. Higher: the set's NLL
        depends more on this component. Memorized sets have smaller gradients everywhere; compare shares between layers.

    Raises:
        InputError: as `weight_gradients`, or an unknown reduction.
    """
    gradients = weight_gradients(model, paragraphs, batch_size=batch_size, progress=progress)
    result = reduce_by_component(model, gradients, reduction).rename("gradient")
    return result.assign_attrs(
        units="nats per token per unit of weight",
        higher="the NLL depends more on the component",
        paragraphs=len(paragraphs),
    )


def layer_shares(grads: xr.DataArray) -> xr.DataArray:
    """Each layer's share of the component scores' sum.

    Args:
        grads: [..., layer, component], as `parameter_gradients` gives; further dimensions are kept apart.

    Returns:
        [..., layer], summing to 1 over layers; higher: more of the gradient is in this layer.
    """
    layers = grads.sum("component")
    attrs = {"units": "1", "higher": "more of the gradient is in the layer"}
    return (layers / layers.sum("layer")).rename("layer_share").assign_attrs(attrs)
