"""Gradient of the paragraphs' NLL with respect to activations, by layer, head and position."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import reduce
from torch import Tensor

from mechmem.data.bounds import Count, Index
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit, residual_before, token_nll, unembed_columns
from mechmem.model.hooks import Hook, frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.lean.trace import HEAD_SITES, HOOKS
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

Method = Literal["gradient", "gradient_x_activation", "integrated"]
UNITS = {"gradient": "nats per token per unit of activation"}


@public("run", renamed={"paras": "paragraphs", "kind": "method"})
@public("run", renamed={"paras": "paragraphs", "kind": "method"})
def activation_gradients(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    site: Site | str = "v",
    target: Index | None = None,
    method: Method = "gradient",
    steps: Count = 8,
    average: bool = True,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """Size of d NLL / d activation in every cell (Stoehr et al. 2024, arXiv 2403.19851, section 5 and figure 6).

    Each paragraph's own NLL is differentiated with respect to its own activations.

    Args:
        model: left as it is.
        paragraphs: whose NLL is differentiated.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, pattern (row of the query at that
            position) or mlp_post.
        target: position of the one token whose NLL is differentiated; None: the mean over the continuation.
        method: "gradient": the largest |gradient| in the cell, over d_head (the paper's), d_model or keys; of mlp_post
            over the layer's neurons. "gradient_x_activation": their product, summed over the cell: to first order the
            fall of the NLL when the cell is set to zero. "integrated": the activation times the mean gradient while one
            layer's site is scaled from 0 to its value (Sundararajan et al. 2017), summed over the cell: over all cells
            of a layer these add up to the fall of the NLL when the whole site is set to zero. Not for the residual
            stream: layer norm cancels its scale, so nothing changes until the very end of that path.
        steps: points of "integrated", at the middles of as many equal parts.
        average: mean over paragraphs; False keeps the dimension `paragraph`.
        batch_size: paragraphs of one forward and backward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [layer, head, pos], or [layer, pos] for sites without heads. "gradient": never below zero, higher: the
        NLL depends more on the cell. The other two are signed, in nats per token: below zero: the activation makes the
        text more likely, so taking it away raises the NLL.

    Raises:
        InputError: an unknown site or method, a site that the model does not have, a target that nothing predicts,
            fewer than one step, or paragraphs that do not fit.
        NotFiniteError: the NLL or a gradient is not finite.
    """
    check_fit(model, paragraphs)
    site = site_of(model, site)
    _check(paragraphs, target, method)
    size = chosen_batch_size(batch_size, model.W_E.device, 8)
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(model.cfg.n_layers)]
    parts = []
    with frozen(model), fast_float32(model.W_E.device):
        for rows in batches(len(paragraphs), size, progress):
            tokens = paragraphs.tokens[rows].to(model.cfg.device)
            if method == "integrated":
                values = _integrated(model, tokens, paragraphs.prefix_len, target, names, steps)
            else:
                leaf: dict[str, Hook] = {"hook_embed": _leaf}
                found, activations = _gradients(model, tokens, paragraphs.prefix_len, target, names, leaf)
                values = found if method == "gradient" else [g * a for g, a in zip(found, activations, strict=True)]
            parts.append(torch.stack([_cells(value, site, method) for value in values], 1).double().cpu().numpy())
    result = np.concatenate(parts)
    if not np.isfinite(result).all():
        raise NotFiniteError("the NLL or a gradient is not finite; look at the weights")
    dims = ["paragraph", "layer", "head", "pos"][: result.ndim - 1] if site in HEAD_SITES else ["paragraph", "layer"]
    dims = [*dims[:3], "pos"]
    coords = {name: np.arange(length) for name, length in zip(dims, result.shape, strict=True)}
    coords["paragraph"] = paragraphs.ids
    higher = "the NLL depends more on the cell" if method == "gradient" else "the activation raises the NLL"
    attrs = {
        "site": site,
        "method": method,
        "target": "continuation" if target is None else f"position {target}",
        "units": UNITS.get(method, "nats per token"),
        "higher": higher,
        "paragraphs": len(paragraphs),
    }
    array = xr.DataArray(result, coords, dims, method, attrs)
    return array.mean("paragraph", keep_attrs=True) if average else array


def _gradients(
    model: HookedTransformer,
    tokens: Tensor,
    prefix_len: int,
    target: int | None,
    names: list[str],
    hooks: dict[str, Hook],
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradient of the sum of the paragraphs' NLL, and the activations, of each hook point."""
    targets = torch.arange(prefix_len, tokens.shape[1]) if target is None else torch.tensor([target])
    targets = targets.to(tokens.device)
    with torch.enable_grad(), with_hooks(model, hooks):
        with recording(model, names) as recorded:
            residual = residual_before(model, tokens, model.cfg.n_layers)
            logits = unembed_columns(model, residual[:, targets - 1])
        loss = token_nll(logits, tokens[:, targets]).sum()
    activations = [recorded[name] for name in names]
    return list(torch.autograd.grad(loss / len(targets), activations)), [value.detach() for value in activations]


def _integrated(
    model: HookedTransformer, tokens: Tensor, prefix_len: int, target: int | None, names: list[str], steps: int
) -> list[Tensor]:
    """Activation times the mean gradient on the way from zero, one layer's site scaled at a time."""
    result = []
    for name in names:
        total: Tensor | None = None
        activation: Tensor | None = None
        for step in range(steps):
            scale = (step + 0.5) / steps
            hooks = {"hook_embed": _leaf, name: _scaled(scale)}
            (gradient,), (scaled,) = _gradients(model, tokens, prefix_len, target, [name], hooks)
            total = gradient if total is None else total + gradient
            activation = scaled / scale
        assert total is not None and activation is not None
        result.append(total / steps * activation)
    return result


def _leaf(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
    """Gradients begin at the embeddings: no weight asks for one."""
    return value.detach().requires_grad_()


def _scaled(scale: float) -> Hook:
    def hook_function(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
        return value * scale

    return hook_function


def _cells(value: Tensor, site: str, method: str) -> Tensor:
    """[paragraph, head, pos], or [paragraph, pos]: the largest size in a cell, or the sum."""
    how = "max" if method == "gradient" else "sum"
    value = value.abs() if method == "gradient" else value
    if site == "pattern":
        return reduce(value, "paragraph head query_pos key_pos -> paragraph head query_pos", how)
    if site in HEAD_SITES:
        return reduce(value, "paragraph pos head d_head -> paragraph head pos", how)
    return reduce(value, "paragraph pos d -> paragraph pos", how)


def _check(paragraphs: Paragraphs, target: int | None, method: str) -> None:
    check_choice("method", method, Method)
    if target is not None and not 1 <= target < paragraphs.tokens.shape[1]:
        raise InputError(
            f"got target {target}; need a token position from 1 to {paragraphs.tokens.shape[1] - 1}: the first token "
            "is predicted by nothing"
        )
