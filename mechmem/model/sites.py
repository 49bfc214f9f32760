"""Where weights sit: the components of a layer and views of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from mechmem.data.errors import InputError

ATTENTION = ("Q", "K", "V", "O")
MLP = ("in", "out")
Reduction = Literal["max", "sum", "norm"]
# Each takes [part, weight] and gives [part]; none is below zero.
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda values: values.abs().amax(-1),
    "sum": lambda values: values.abs().sum(-1),
    "norm": lambda values: values.norm(dim=-1),
}


def component_names(model: HookedTransformer) -> list[str]:
    """The components of a layer: `Q0.. K0.. V0.. O0..`, one per head, `mlp_in`, `mlp_out`; 50 for GPT-Neo 125M.

    Raises:
        InputError: the model's layers do not consist of these.
    """
    _check_layout(model)
    heads = [f"{letter}{head}" for letter in ATTENTION for head in range(model.cfg.n_heads)]
    return heads if model.cfg.attn_only else [*heads, *(f"mlp_{end}" for end in MLP)]


def editable_parameters(model: HookedTransformer) -> dict[str, torch.nn.Parameter]:
    """The attention and MLP weight matrices, by parameter name, layer by layer.

    These are the weights that Stoehr et al. 2024 (arXiv 2403.19851, section 5) select from: 84,934,656 of GPT-Neo
    125M. Biases, norms and embeddings are not among them.

    Returns:
        `blocks.L.attn.W_Q`, `W_K`, `W_V` [head, d_model, d_head], `blocks.L.attn.W_O` [head, d_head, d_model],
        `blocks.L.mlp.W_in` [d_model, d_mlp], `blocks.L.mlp.W_out` [d_mlp, d_model]: the parameters themselves.

    Raises:
        InputError: the model's layers do not consist of these.
    """
    _check_layout(model)
    parameters = dict(model.named_parameters())
    names = [name for layer in range(model.cfg.n_layers) for name in _layer_parameters(model, layer)]
    return {name: parameters[name] for name in names}


def reduce_by_component(
    model: HookedTransformer, values: Mapping[str, Float[Tensor, " *weight"]], reduction: Reduction
) -> xr.DataArray:
    """One number for each component, from a value for each weight.

    Args:
        model: whose layers the values belong to.
        values: parameter name -> value of each weight, for every parameter of `editable_parameters`.
        reduction: "max": largest absolute value; "sum": sum of absolute values; "norm": root of the sum of squares.

    Returns:
        DataArray [layer, component] in the values' own unit, none below zero.

    Raises:
        InputError: an unknown reduction, or a parameter missing or of another shape.
    """
    if reduction not in REDUCTIONS:
        raise InputError(f"reduction is '{reduction}'; need one of {list(REDUCTIONS)}")
    _check_values(values, editable_parameters(model))
    rows = []
    for layer in range(model.cfg.n_layers):
        row: list[float] = []
        for name in _layer_parameters(model, layer):
            # The first axis of attention weights is the head; an MLP matrix is one component.
            whole = values[name].detach()
            parts = whole.flatten(1) if ".attn." in name else whole.reshape(1, -1)
            row.extend(REDUCTIONS[reduction](parts.double()).tolist())
        rows.append(row)
    coords = {"layer": np.arange(model.cfg.n_layers), "component": component_names(model)}
    return xr.DataArray(np.array(rows), coords, ("layer", "component"), attrs={"reduction": reduction})


def _layer_parameters(model: HookedTransformer, layer: int) -> list[str]:
    attention = [f"blocks.{layer}.attn.W_{letter}" for letter in ATTENTION]
    return attention if model.cfg.attn_only else [*attention, *(f"blocks.{layer}.mlp.W_{end}" for end in MLP)]


def _check_values(values: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        if name not in values:
            raise InputError(f"got no values for '{name}'; need one tensor for each of {len(parameters)} parameters")
        if values[name].shape != parameter.shape:
            raise InputError(
                f"values of '{name}' have shape {list(values[name].shape)} and the parameter {list(parameter.shape)}; "
                "they are of another model: compute them from this one"
            )


def _check_layout(model: HookedTransformer) -> None:
    config = model.cfg
    found = None
    if config.n_key_value_heads is not None:
        found = f"{config.n_key_value_heads} key and value heads for {config.n_heads} query heads (grouped attention)"
    elif config.gated_mlp:
        found = "gated MLPs (a third matrix, W_gate)"
    elif config.num_experts:
        found = f"{config.num_experts} experts in an MLP"
    if found is not None:
        raise InputError(
            f"the model has {found}; need layers of W_Q, W_K, W_V, W_O for each head and one W_in and W_out: "
            "use a model like GPT-Neo, GPT-2 or Pythia"
        )
