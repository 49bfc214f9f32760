"""Select weights by the scores of the neurons or heads that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters

Kind = Literal["neuron", "head"]
Unit = tuple[int, int]


def ranked_units(model: HookedTransformer, scores: xr.DataArray, fraction: float) -> tuple[Kind, list[Unit], int, int]:
    """The units with the highest scores, as many as hold a share of all attention and MLP weights.

    Returns:
        The kind of the units; (layer, unit) pairs, the highest first and of equal scores the lower one; how many of
        them are taken wholly; and how many weights of the one after these.

    Raises:
        InputError: other dimensions, scores of another model, NaN, or a share that the units do not have.
    """
    kind: Kind | None = next((each for each in get_args(Kind) if set(scores.dims) == {"layer", each}), None)
    if kind is None:
        raise InputError(
            f"got scores with dimensions {list(scores.dims)}; need layer and neuron, or layer and head: take the mean "
            "or sum over the others first"
        )
    cfg = model.cfg
    width, each = (cfg.d_mlp or 0, 2 * cfg.d_model) if kind == "neuron" else (cfg.n_heads, 4 * cfg.d_model * cfg.d_head)
    values = scores.transpose("layer", kind).values.astype(np.float64)
    if values.shape != (cfg.n_layers, width):
        raise InputError(
            f"got scores of {values.shape[0]} layers x {values.shape[1]} {kind}s, and the model has {cfg.n_layers} x "
            f"{width}: compute them from this model"
        )
    if np.isnan(values).any():
        raise InputError(f"the scores hold NaN; {kind}s cannot be ranked: fill or drop them")
    total = sum(parameter.numel() for parameter in editable_parameters(model).values())
    count = max(1, round(fraction * total))
    if count > each * values.size:
        raise InputError(
            f"got fraction {fraction:g}, which is {count:,} weights, and all {kind}s have {each * values.size:,}; need "
            f"at most {each * values.size / total:.3g}"
        )
    order = np.argsort(-values, axis=None, kind="stable").tolist()
    return kind, [divmod(place, width) for place in order], *divmod(count, each)


def largest_within(
    indices: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None, count: int
) -> dict[str, Int[Tensor, " chosen"]]:
    """Of some weights the `count` with the largest absolute scores; without scores, or of equal ones, the first.

    Raises:
        InputError: no score, or scores of other shapes or NaN, for a weight that is asked for.
    """
    found: list[Tensor] = []
    for name, index in indices.items():
        if weights is None:
            found.append(torch.zeros(len(index)))
            continue
        if name not in weights or weights[name].numel() <= int(index.max()):
            raise InputError(f"the weights' scores have none for '{name}'; compute them from this model")
        found.append(weights[name].detach().reshape(-1).cpu()[index].float().abs())
    every = torch.cat(found)
    if bool(every.isnan().any()):
        raise InputError("the weights' scores hold NaN; weights cannot be ranked: find where the loss broke")
    taken = torch.zeros(len(every), dtype=torch.bool)
    taken[torch.argsort(every, descending=True, stable=True)[:count]] = True
    parts = taken.split([len(index) for index in indices.values()])
    return {name: index[part] for (name, index), part in zip(indices.items(), parts, strict=True)}
