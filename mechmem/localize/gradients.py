"""Which weights the NLL of paragraphs leans on: its gradient, element by element and by component."""

from __future__ import annotations

from typing import Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.model.forward import check_fit, continuation_logits
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters, reduce_by_component


def weight_gradients(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Float[Tensor, " *weight"]]:
    """Gradient of the mean NLL with respect to every attention and MLP weight, element by element.

    The loss is the mean over paragraphs of the mean over the continuation of -log p(token | true tokens before it)
    (Stoehr et al. 2024, arXiv 2403.19851, section 4), from logit columns prefix_len - 1 ... n - 2. Batches are summed,
    so their size changes rounding alone.

    Args:
        model: left as it is: weights, `.grad`, `requires_grad`, hooks.
        paras: the set whose NLL is meant.
        batch_size: paragraphs of one forward and backward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Parameter name (`blocks.0.attn.W_Q` ...) -> d NLL / d weight, in nats per token per unit of weight, in the
        weight's shape. Positive: raising the weight raises the NLL, so it makes the paragraphs less memorized.

    Raises:
        InputError: the paragraphs do not fit the model, or its layers are not built as `editable_parameters` wants.
    """
    check_fit(model, paras)
    parameters = editable_parameters(model)
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with frozen(model), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_()
        for start in range(0, len(paras), batch_size):
            batch = slice(start, start + batch_size)
            loss = _nll_sum(model, paras.tokens[batch], paras.prefix_len) / len(paras)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient
            if progress is not None:
                progress(min(start + batch_size, len(paras)), len(paras))
    return {name: gradient.detach() for name, gradient in total.items()}


def _nll_sum(model: HookedTransformer, tokens: Tensor, prefix_len: int) -> Float[Tensor, ""]:
    """Sum over paragraphs of the mean over the continuation."""
    logits = continuation_logits(model, tokens, prefix_len)
    continuation = tokens[:, prefix_len:].to(logits.device)
    # Paragraphs have one length, so the sum over all tokens divided by it is the sum of the paragraphs' means.
    total = functional.cross_entropy(logits.flatten(0, 1), continuation.flatten(), reduction="sum")
    return total / continuation.shape[1]


def parameter_gradients(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    reduction: Literal["max", "sum", "norm"] = "max",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Size of the gradient of the mean NLL in every component (Stoehr et al. 2024, section 4 and figure 3).

    The gradient is taken once for the whole set, then reduced: it is the gradient of the mean and not the mean of
    single paragraphs' gradients.

    Args:
        model: left as it is.
        paras: the set whose NLL is meant.
        reduction: "max": largest |gradient| in the component (the paper's); "sum": of |gradient|; "norm": Euclidean.
        batch_size: paragraphs of one forward and backward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [layer, component] in nats per token per unit of weight, never below zero. Higher: the set's NLL
        leans more on this component. Memorized sets have smaller gradients everywhere; compare shares between layers.

    Raises:
        InputError: as `weight_gradients`, or an unknown reduction.
    """
    gradients = weight_gradients(model, paras, batch_size=batch_size, progress=progress)
    result = reduce_by_component(model, gradients, reduction).rename("gradient")
    return result.assign_attrs(
        units="nats per token per unit of weight", higher="the NLL leans more on the component", paragraphs=len(paras)
    )


def layer_shares(grads: xr.DataArray) -> xr.DataArray:
    """Each layer's share of the component scores' sum.

    Args:
        grads: [..., layer, component], as `parameter_gradients` gives; further dimensions are kept apart.

    Returns:
        [..., layer], summing to 1 over layers; higher: more of what the set leans on sits in this layer.
    """
    layers = grads.sum("component")
    attrs = {"units": "1", "higher": "more of the gradient sits in the layer"}
    return (layers / layers.sum("layer")).rename("layer_share").assign_attrs(attrs)
