"""Where weights sit: the components of a layer and views of their weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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
_COMPONENT = re.compile(r"blocks\.(\d+)\.(attn|mlp)\.W_(Q|K|V|O|in|out)")
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
    parameters = editable_parameters(model)
    _check_values(values, parameters)
    reduce = REDUCTIONS[reduction]
    sizes = {name: reduce(component_parts(name, values[name].detach()).double()).tolist() for name in parameters}
    return component_grid(sizes).assign_attrs(reduction=reduction)


def component_parts(name: str, values: Tensor) -> Float[Tensor, "part weight"]:
    """The values of a weight by component: a row for each head; an MLP matrix is one component."""
    # The first axis of attention weights is the head.
    return values.flatten(1) if ".attn." in name else values.reshape(1, -1)


def is_component(name: str) -> bool:
    """Whether a parameter is one of W_Q, W_K, W_V, W_O, W_in and W_out of a layer."""
    return _COMPONENT.fullmatch(name) is not None


def component_grid(numbers: Mapping[str, Sequence[float]]) -> xr.DataArray:
    """Numbers of components as a grid, without a model.

    Args:
        numbers: parameter name -> one number for each head, or one for an MLP matrix. Parameters that are no
            component, such as biases, are left out.

    Returns:
        DataArray [layer, component], NaN where a parameter is missing.

    Raises:
        InputError: no parameter is a component, or two have another number of heads.
    """
    found = {match.groups(): list(numbers[name]) for name in numbers if (match := _COMPONENT.fullmatch(name))}
    heads = {len(values) for (_, kind, _), values in found.items() if kind == "attn"}
    if not found or len(heads) > 1:
        raise InputError(
            f"got values of {', '.join(list(numbers)[:3]) or 'nothing'}; need weights named blocks.0.attn.W_Q and so "
            "on, of layers with as many heads each"
        )
    known = {(kind, part) for _, kind, part in found}
    names = {
        (kind, part): [f"{part}{head}" for head in range(max(heads))] if kind == "attn" else [f"mlp_{part}"]
        for kind, part in [*(("attn", letter) for letter in ATTENTION), *(("mlp", end) for end in MLP)]
        if (kind, part) in known
    }
    layers = 1 + max(int(layer) for layer, _, _ in found)
    rows = [
        [
            value
            for (kind, part), labels in names.items()
            for value in found.get((str(layer), kind, part), [np.nan] * len(labels))
        ]
        for layer in range(layers)
    ]
    columns = [label for labels in names.values() for label in labels]
    return xr.DataArray(np.array(rows), {"layer": np.arange(layers), "component": columns}, ("layer", "component"))


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
