"""Quantization: rounding the weights can undo an edit that moved them less than a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.measure.scores import score
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import editable_parameters

Scheme = Literal["float16", "bfloat16", "int8", "int4"]


@public("refuse")
def quantize(model: HookedTransformer, scheme: Scheme) -> HookedTransformer:
    """A copy whose attention and MLP weights went through fewer bits and back to their own type.

    Args:
        model: left as it is; embeddings, norms and biases are not rounded.
        scheme: "float16", "bfloat16": cast there and back. "int8", "int4": to the nearest of the levels -127 ... 127 or
            -7 ... 7, times the largest absolute weight of the output channel over the highest level (symmetric, one
            scale for each output; ties to even).

    Raises:
        InputError: an unknown scheme, or a model whose layers are of another make.
    """
    check_choice("scheme", scheme, Scheme)
    quantized = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in editable_parameters(quantized).items():
            parameter.copy_(ROUNDINGS[scheme](parameter, input_dims(name)))
    return quantized


@public("refuse", renamed={"paras": "paragraphs"})
def quantization_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    schemes: tuple[Scheme, ...] = get_args(Scheme),
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Score the targets on rounded copies of the model.

    An edit of small steps leaves most weights within half a level of where they were, so rounding returns them and the
    text with them (Zhang et al. 2024, "Catastrophic failure of LLM unlearning via quantization", arXiv 2410.16454).

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know.
        schemes: see `quantize`.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs), over all schemes.

    Returns:
        Dataset [scheme, paragraph]: em (tokens, higher: more of the text is still there), nll (nats per token).

    Raises:
        InputError: an unknown scheme or none, or paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    unknown = [scheme for scheme in schemes if scheme not in get_args(Scheme)]
    if unknown or not schemes:
        raise InputError(f"got schemes {unknown or list(schemes)}; need some of {', '.join(get_args(Scheme))}")
    rows = []
    count, total = len(paragraphs), len(schemes) * len(paragraphs)
    for done, scheme in enumerate(schemes):
        report = between(progress, done * count, (done + 1) * count, total)
        rows.append(score(quantize(model, scheme), paragraphs, batch_size=batch_size, progress=report))
    both = ("scheme", "paragraph")
    variables = {
        "em": (both, np.stack([row.em.values for row in rows]), {"units": "tokens", "higher": "more is still there"}),
        "nll": (
            both,
            np.stack([row.nll.values for row in rows]),
            {"units": "nats per token", "higher": "less is still there"},
        ),
    }
    return xr.Dataset(variables, {"scheme": list(schemes), "paragraph": paragraphs.ids})


def input_dims(name: str) -> tuple[int, ...]:
    """The axes of a weight that are summed over in its product; the others number its outputs."""
    # Heads of W_O write into the same d_model outputs; those of W_Q, W_K and W_V have outputs of their own.
    return {"W_Q": (1,), "W_K": (1,), "W_V": (1,), "W_O": (0, 1), "W_in": (0,), "W_out": (0,)}[name.rsplit(".", 1)[1]]


def _cast(weight: Float[Tensor, "*dims"], dims: tuple[int, ...], dtype: torch.dtype) -> Float[Tensor, "*dims"]:  # noqa: ARG001
    return weight.to(dtype).to(weight.dtype)


def _levels(weight: Float[Tensor, "*dims"], dims: tuple[int, ...], highest: int) -> Float[Tensor, "*dims"]:
    # In float32 at least: sixteen bits hold neither the scale nor the products.
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = wide.abs().amax(dims, keepdim=True) / highest
    # A channel of zeros stays zero.
    scale = scale.where(scale > 0, 1.0)
    return ((wide / scale).round() * scale).to(weight.dtype)


ROUNDINGS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "float16": partial(_cast, dtype=torch.float16),
    "bfloat16": partial(_cast, dtype=torch.bfloat16),
    "int8": partial(_levels, highest=127),
    "int4": partial(_levels, highest=7),
}
