"""Gradients of single paragraphs with respect to every weight, from one forward and backward of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.localize.gradients import weight_gradients
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit, continuation_logits, token_nll
from mechmem.model.hooks import frozen, recording, with_hooks
from mechmem.model.lean.model import fast_float32
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import Reduction, component_names, editable_parameters

Contrast = Literal["plain", "fisher", "difference"]


@public("run", renamed={"paras": "paragraphs"})
def paragraph_gradients(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    reduction: Reduction = "max",
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """Size of each paragraph's own gradient in every component, so that intervals by cluster exist.

    As `parameter_gradients`, but of every paragraph's NLL alone: the mean over paragraphs of these sizes is not the
    size of the mean gradient, in which paragraphs cancel.

    Args:
        model: left as it is.
        paragraphs: the NLL of each is differentiated by itself.
        reduction: "max": largest |gradient| in the component; "sum": of |gradient|; "norm": Euclidean.
        batch_size: paragraphs of one forward and backward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [paragraph, layer, component] in nats per token per unit of weight, never below zero; higher: the
        paragraph's NLL depends more on the component.

    Raises:
        InputError: as `weight_gradients`, or an unknown reduction.
        NotFiniteError: a gradient is not finite.
    """
    check_choice("reduction", reduction, Reduction)
    names = component_names(model)
    result = np.zeros((len(paragraphs), model.cfg.n_layers, len(names)))
    for rows, name, inner, outer in _factors(model, paragraphs, batch_size, progress):
        layer, part = int(name.split(".")[1]), name.rsplit("_", 1)[1]
        first = names.index(f"{part}0" if ".attn." in name else f"mlp_{part}")
        found = torch.stack([_sizes(*pair, reduction) for pair in zip(inner, outer, strict=True)])
        result[rows, layer, first : first + found.shape[1]] = found.cpu().numpy()
    if not np.isfinite(result).all():
        raise NotFiniteError("a gradient is not finite; look at the weights")
    coords = {"paragraph": paragraphs.ids, "layer": np.arange(model.cfg.n_layers), "component": names}
    attrs = {
        "units": "nats per token per unit of weight",
        "higher": "the paragraph's NLL depends more on the component",
        "reduction": reduction,
    }
    return xr.DataArray(result, coords, ("paragraph", "layer", "component"), "gradient", attrs)


def squared_gradients(
    model: HookedTransformer, paragraphs: Paragraphs, *, batch_size: int | None = None, progress: ProgressLike = None
) -> dict[str, Float[Tensor, " *weight"]]:
    """Mean over paragraphs of each one's squared gradient: the diagonal of the empirical Fisher information.

    Parameter name -> value of each weight, never below zero; higher: the paragraphs' likelihood depends more on the
    weight. The arguments are those of `paragraph_gradients`.
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in editable_parameters(model).items()}
    for _, name, gradient in _gradients(model, paragraphs, batch_size, progress):
        total[name] += gradient.square().sum(0) / len(paragraphs)
    return total


@public("run", renamed={"contrast": "method"})
def contrastive_gradients(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    method: Contrast = "fisher",
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> dict[str, Float[Tensor, " *weight"]]:
    """Which weights memorized paragraphs depend on and others do not: scores for `Mask.top`.

    The gradient of NLL(memorized) with KL(p_0 || p) on the keep set, as Stoehr et al. 2024 (arXiv 2403.19851, section
    5) write it, is the plain gradient: the KL term has none at the starting weights. So the keep set must come in
    otherwise.

    1. "plain": |gradient of memorized|, the paper's.
    2. "fisher": the same over the root of the keep set's mean squared gradient, plus that root's own mean, so that a
       weight on which no paragraph depends does not win by a zero in the denominator.
    3. "difference": |gradient of memorized - gradient of keep|, the direction of gradient difference (Liu et al.
       2022): high where either set depends on the weight, unless both do alike.

    Args:
        model: left as it is.
        memorized: paragraphs whose weights are to be found.
        keep: paragraphs that those weights should not matter to.
        method: how the keep set comes in.
        batch_size: paragraphs of one forward and backward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs) for the memorized set, then the keep set.

    Returns:
        Parameter name -> score of each weight, never below zero; higher: choose it first. For "fisher" without a unit.

    Raises:
        InputError: an unknown method, or as `weight_gradients`.
    """
    check_choice("method", method, Contrast)
    found = weight_gradients(model, memorized, batch_size=batch_size, progress=progress)
    if method == "plain":
        return {name: gradient.abs() for name, gradient in found.items()}
    if method == "difference":
        other = weight_gradients(model, keep, batch_size=batch_size, progress=progress)
        return {name: (gradient - other[name]).abs() for name, gradient in found.items()}
    scale = fisher_scale(model, keep, batch_size=batch_size)
    return {name: gradient.abs() / scale[name] for name, gradient in found.items()}


def fisher_scale(
    model: HookedTransformer, keep: Paragraphs, *, batch_size: int | None = None
) -> dict[str, Float[Tensor, " *weight"]]:
    """What "fisher" divides by: the root of the keep set's mean squared gradient, plus that root's mean.

    Raises:
        InputError: it is zero everywhere.
    """
    roots = {name: value.sqrt() for name, value in squared_gradients(model, keep, batch_size=batch_size).items()}
    count = sum(root.numel() for root in roots.values())
    mean = sum(float(root.sum(dtype=torch.float64)) for root in roots.values()) / count
    if mean == 0:
        raise InputError(
            "the keep set's gradient is zero everywhere; need paragraphs that the model predicts by its weights"
        )
    return {name: root.add_(mean) for name, root in roots.items()}


# Weight -> (activation that goes in, activation that comes out, shapes as einsum words).
_PRODUCTS: dict[str, tuple[str, str, str]] = {
    **{
        f"attn.W_{letter}": (
            "ln1.hook_normalized",
            f"attn.hook_{letter.lower()}",
            "row pos i, row pos head o -> row head i o",
        )
        for letter in "QKV"
    },
    "attn.W_O": ("attn.hook_z", "hook_attn_out", "row pos head i, row pos o -> row head i o"),
    "mlp.W_in": ("ln2.hook_normalized", "mlp.hook_pre", "row pos i, row pos o -> row i o"),
    "mlp.W_out": ("mlp.hook_post", "hook_mlp_out", "row pos i, row pos o -> row i o"),
}


def _sizes(
    inner: Float[Tensor, "pos ..."], outer: Float[Tensor, "pos ..."], reduction: Reduction
) -> Float[Tensor, " part"]:
    """The size of one paragraph's gradient of a weight, inner^T outer, in each head, or in the whole of an MLP's.

    The gradient is made in tiles that stay in the cache and is never held: writing it to memory and reading it again
    takes longer than the products.
    """
    # Heads are on one side or on neither; sizes are the same of the transposed gradient.
    left, right = (outer, inner) if outer.ndim > 2 else (inner, outer)
    heads, right = left.ndim > 2, right.contiguous()
    rows = max(1, TILE.get(left.device.type, OTHERWISE) // right.shape[1])
    if heads:
        # A tile holds whole heads.
        rows = max(1, rows // left.shape[2]) * left.shape[2]
    reduce, combine = _TILES[reduction]
    found = []
    for some in left.flatten(1).T.split(rows):
        tile = some @ right
        found.append(reduce(tile.view(len(tile) // left.shape[2] if heads else 1, -1)).double())
    sizes = torch.cat(found) if heads else combine(torch.stack(found))
    return sizes.sqrt() if reduction == "norm" else sizes


# Weights of a gradient that are held at once, on a CPU and elsewhere: 2 MB of float32.
TILE = {"cpu": 2**19}
OTHERWISE = 2**26
# (tile [part, weight], written over) -> [part], and [tile, part] -> [part].
_TILES: dict[Reduction, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "max": (lambda tile: tile.abs_().amax(-1), lambda found: found.amax(0)),
    "sum": (lambda tile: tile.abs_().sum(-1), lambda found: found.sum(0)),
    "norm": (lambda tile: tile.square_().sum(-1), lambda found: found.sum(0)),
}


def _gradients(
    model: HookedTransformer, paragraphs: Paragraphs, batch_size: int | None, progress: ProgressLike
) -> Iterator[tuple[slice, str, Tensor]]:
    """Batch by batch and weight by weight: which paragraphs, which weight, and their gradients [paragraph, *weight]."""
    for rows, name, inner, outer in _factors(model, paragraphs, batch_size, progress):
        yield rows, name, einsum(inner, outer, _PRODUCTS[name.split(".", 2)[2]][2])


def _factors(
    model: HookedTransformer, paragraphs: Paragraphs, batch_size: int | None, progress: ProgressLike
) -> Iterator[tuple[slice, str, Tensor, Tensor]]:
    """Batch by batch and weight by weight: which paragraphs, which weight, and the two factors of their gradients.

    A weight's gradient is the product of its layer's input and the gradient of its output, summed over positions. Both
    are kept by paragraph, so one backward pass to the activations is enough, and no weight needs a gradient.
    """
    check_fit(model, paragraphs)
    weights = list(editable_parameters(model))
    products = {name: _PRODUCTS[name.split(".", 2)[2]] for name in weights}
    points = {name: [f"blocks.{name.split('.')[1]}.{end}" for end in words[:2]] for name, words in products.items()}
    size = chosen_batch_size(batch_size, model.W_E.device, 4)
    for rows in batches(len(paragraphs), size, progress):
        tokens = paragraphs.tokens[rows]
        with frozen(model), fast_float32(model.W_E.device):
            with torch.enable_grad(), with_hooks(model, {"hook_embed": _leaf}):
                with recording(model, {name for pair in points.values() for name in pair}) as recorded:
                    logits = continuation_logits(model, tokens, paragraphs.prefix_len)
                loss = token_nll(logits, paragraphs.continuation[rows]).sum() / paragraphs.continuation_len
                outputs = list(dict.fromkeys(pair[1] for pair in points.values()))
                found = torch.autograd.grad(loss, [recorded[name] for name in outputs])
            gradients = dict(zip(outputs, found, strict=True))
            del loss, logits, found
            with torch.no_grad():
                for name, (into, out) in points.items():
                    inner = norm_output(model, into, recorded[into].detach())
                    yield rows, name, inner, gradients[out]


def norm_output(model: HookedTransformer, point: str, value: Tensor) -> Tensor:
    """TransformerLens' norms show what they give before their own weight and bias."""
    if not point.endswith("hook_normalized"):
        return value
    norm = model.get_submodule(point.removesuffix(".hook_normalized"))
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    return value if weight is None or bias is None else value * weight + bias


def _leaf(value: Tensor, hook: object) -> Tensor:  # noqa: ARG001 - TransformerLens passes both
    """Gradients begin at the embeddings: no weight asks for one."""
    return value.detach().requires_grad_()
