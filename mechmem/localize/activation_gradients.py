"""How the NLL of paragraphs leans on activations, by layer, head and position."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from einops import reduce
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.model.forward import check_fit, residual_before, unembed_columns
from mechmem.model.hooks import Hook, frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, NEURON_SITES, SITES
from mechmem.model.load import HookedTransformer

Kind = Literal["gradient", "gradient_x_activation", "integrated"]
UNITS = {"gradient": "nats per token per unit of activation"}


def activation_gradients(
    model: HookedTransformer,
    paras: Paragraphs,
    *,
    site: str = "v",
    target: int | None = None,
    kind: Kind = "gradient",
    steps: int = 8,
    average: bool = True,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> xr.DataArray:
    """Size of d NLL / d activation in every cell (Stoehr et al. 2024, arXiv 2403.19851, section 5 and figure 6).

    Each paragraph's own NLL is differentiated with respect to its own activations.

    Args:
        model: left as it is.
        paras: whose NLL is meant.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, q, k, v, z, pattern (row of the query at that
            position) or mlp_post.
        target: position of the one token whose NLL is meant; None: the mean over the continuation.
        kind: "gradient": the largest |gradient| in the cell, over d_head (the paper's), d_model or keys; of mlp_post
            over the layer's neurons. "gradient_x_activation": their product, summed over the cell: to first order what
            setting it to zero takes off the NLL. "integrated": the activation times the mean gradient while one layer's
            site is scaled from 0 to its value (Sundararajan et al. 2017), summed over the cell: over all cells of a
            layer these add up to what setting the whole site to zero takes off. Not for the residual stream itself:
            its norm is divided out, so nothing changes until the very end of that path.
        steps: points of "integrated", at the middles of as many equal parts.
        average: mean over paragraphs; False keeps the dimension `paragraph`.
        batch_size: paragraphs of one forward and backward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [layer, head, pos], or [layer, pos] for sites without heads. "gradient": never below zero, higher: the
        NLL leans more on the cell. The other two are signed, in nats per token: below zero: the activation makes the
        text more likely, so taking it away raises the NLL.

    Raises:
        InputError: an unknown site or kind, a site that the model does not have, a target that nothing predicts, fewer
            than one step, or paragraphs that do not fit.
        FloatingPointError: the NLL or a gradient is not finite.
    """
    _check(model, paras, site, target, kind, steps)
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(model.cfg.n_layers)]
    parts = []
    with frozen(model), fast_float32(model.W_E.device):
        for start in range(0, len(paras), batch_size):
            tokens = paras.tokens[start : start + batch_size].to(model.cfg.device)
            if kind == "integrated":
                values = _integrated(model, tokens, paras.prefix_len, target, names, steps)
            else:
                found, activations = _gradients(model, tokens, paras.prefix_len, target, names, {"hook_embed": _leaf})
                values = found if kind == "gradient" else [g * a for g, a in zip(found, activations, strict=True)]
            parts.append(torch.stack([_cells(value, site, kind) for value in values], 1).double().cpu().numpy())
            if progress is not None:
                progress(min(start + batch_size, len(paras)), len(paras))
    result = np.concatenate(parts)
    if not np.isfinite(result).all():
        raise FloatingPointError("the NLL or a gradient is not finite; look at the weights")
    dims = ["paragraph", "layer", "head", "pos"][: result.ndim - 1] if site in HEAD_SITES else ["paragraph", "layer"]
    dims = [*dims[:3], "pos"]
    coords = {name: np.arange(size) for name, size in zip(dims, result.shape, strict=True)}
    higher = "the NLL leans more on the cell" if kind == "gradient" else "the activation raises the NLL"
    attrs = {
        "site": site,
        "kind": kind,
        "target": "continuation" if target is None else f"position {target}",
        "units": UNITS.get(kind, "nats per token"),
        "higher": higher,
        "paragraphs": len(paras),
    }
    array = xr.DataArray(result, coords, dims, kind, attrs)
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
        loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, targets].flatten(), reduction="sum")
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


def _cells(value: Tensor, site: str, kind: str) -> Tensor:
    """[paragraph, head, pos], or [paragraph, pos]: the largest size in a cell, or the sum."""
    how = "max" if kind == "gradient" else "sum"
    value = value.abs() if kind == "gradient" else value
    if site == "pattern":
        return reduce(value, "paragraph head query_pos key_pos -> paragraph head query_pos", how)
    if site in HEAD_SITES:
        return reduce(value, "paragraph pos head d_head -> paragraph head pos", how)
    return reduce(value, "paragraph pos d -> paragraph pos", how)


def _check(model: HookedTransformer, paras: Paragraphs, site: str, target: int | None, kind: str, steps: int) -> None:
    check_fit(model, paras)
    if site not in SITES or (site in NEURON_SITES and model.cfg.attn_only):
        raise InputError(f"site is {site!r}; need one of {', '.join(SITES)}, if the model has it")
    if site == "resid_mid" and model.cfg.parallel_attn_mlp:
        raise InputError("the model runs attention and MLP side by side, so it has no 'resid_mid'; need another site")
    if kind not in get_args(Kind) or steps < 1:
        raise InputError(f"kind is {kind!r} with {steps} steps; need one of {', '.join(get_args(Kind))}, 1 or more")
    if target is not None and not 1 <= target < paras.tokens.shape[1]:
        raise InputError(
            f"target is {target}; need a token position from 1 to {paras.tokens.shape[1] - 1}: the first token is "
            "predicted by nothing"
        )
