"""Change whole weight matrices of chosen heads or layers: zero, scale, replace, or any function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechmem.data.bounds import Index
from mechmem.data.errors import InputError
from mechmem.model.head_names import heads_of
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask

# A factor, the new values, or a function of the old ones.
Change = Callable[[Tensor], Any] | int | float | Tensor | np.ndarray
# Their first axis is the head's.
OF_HEADS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
OF_LAYERS = {"b_O": "attn", "W_in": "mlp", "b_in": "mlp", "W_out": "mlp", "b_out": "mlp"}


@public("refuse")
def edit_weights(
    model: HookedTransformer,
    changes: Mapping[str, Change],
    *,
    heads: Sequence[tuple[int, int] | str] | None = None,
    layers: Iterable[Index] | None = None,
) -> tuple[HookedTransformer, Mask]:
    """Change weights of chosen heads or layers in a copy of the model.

    `model.W_V[1, 2] = 0` changes nothing: TransformerLens stacks all layers' weights into a new tensor, and writes to
    that. This writes to the layers' own parameters.

    Args:
        model: left as it is.
        changes: what to change, by TransformerLens' names: W_Q, W_K, W_V [d_model, d_head], W_O [d_head, d_model],
            b_Q, b_K, b_V [d_head] of each head; W_in, W_out, b_in, b_out, b_O of each layer. Each with a factor (0
            silences), the new values, or a function of the old values (a copy) that gives the new ones.
        heads: whose weights, as (layer, head) pairs or names: `["L1H2"]`. None: all heads of `layers`.
        layers: whose weights; None: those of `heads` alone.

    Returns:
        The edited copy, and the mask of all weights that were written, whether or not their values changed; as the
        mask that `verify_support` takes.

    Raises:
        InputError: nothing to change, an unknown name, a head or layer that the model does not have, weights of a layer
            without `layers`, new values of another shape or that are not finite, or a model with hooks.
    """
    known = editable_parameters(model)
    _check(changes, heads, layers)
    pairs = _pairs(model, heads, layers)
    edited = copy.deepcopy(model)
    parameters = dict(edited.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in known.items()}
    indices: dict[str, Tensor] = {}
    for part, change in changes.items():
        for name, place in _places(part, pairs, layers):
            if name not in parameters:
                raise InputError(f"the model has no {name}; need a part that its layers have: leave out {part!r}")
            parameter = parameters[name]
            _write(parameter, place, change, f"{part} of {_label(name, place)}")
            flat = torch.arange(parameter.numel()).view(parameter.shape)[place].flatten()
            indices[name] = torch.cat([indices.get(name, flat[:0]), flat]).sort().values
            shapes[name] = tuple(parameter.shape)
    return edited, Mask(indices, shapes)


def _check(changes: Mapping[str, Change], heads: Any, layers: Any) -> None:
    unknown = [name for name in changes if name not in (*OF_HEADS, *OF_LAYERS)]
    if unknown or not changes:
        raise InputError(f"got changes of {unknown or 'nothing'}; need some of {', '.join((*OF_HEADS, *OF_LAYERS))}")
    if heads is None and layers is None:
        raise InputError("got neither heads nor layers; need one: heads=['L1H2'] or layers=[1], for example")
    whole = [name for name in changes if name in OF_LAYERS]
    if whole and layers is None:
        raise InputError(f"{', '.join(whole)} belong to a layer, not to a head; need layers=[...] for them")


def _pairs(model: HookedTransformer, heads: Any, layers: Iterable[int] | None) -> list[tuple[int, int]]:
    """The (layer, head) pairs whose weights are changed, each once."""
    depth = model.cfg.n_layers
    chosen = [] if layers is None else list(layers)
    wrong = [layer for layer in chosen if not 0 <= layer < depth]
    if wrong or (layers is not None and not chosen):
        raise InputError(f"got layers {wrong or chosen}; need numbers from 0 to {depth - 1}")
    if heads is not None:
        return list(dict.fromkeys(heads_of(model, heads)))
    return [(int(layer), head) for layer in dict.fromkeys(chosen) for head in range(model.cfg.n_heads)]


def _places(part: str, pairs: list[tuple[int, int]], layers: Iterable[int] | None) -> list[tuple[str, Any]]:
    """Parameter names, and which of their rows are meant."""
    if part in OF_HEADS:
        return [(f"blocks.{layer}.attn.{part}", head) for layer, head in pairs]
    return [(f"blocks.{int(layer)}.{OF_LAYERS[part]}.{part}", ...) for layer in dict.fromkeys(layers or ())]


def _label(name: str, place: Any) -> str:
    layer = name.split(".")[1]
    return f"layer {layer}" if place is ... else f"L{layer}H{place}"


@torch.no_grad()
def _write(parameter: Tensor, place: Any, change: Change, what: str) -> None:
    old = parameter[place].detach().clone()
    if isinstance(change, bool) or not (callable(change) or isinstance(change, int | float | Tensor | np.ndarray)):
        raise InputError(
            f"got {type(change).__name__} for {what}; need a factor, a tensor of the new values, or a function of the "
            "old ones"
        )
    if isinstance(change, int | float):
        new: Any = old * float(change)
    else:
        new = change if isinstance(change, Tensor | np.ndarray) else change(old.clone())
    if not isinstance(new, Tensor | np.ndarray):
        raise InputError(f"the function for {what} gave {type(new).__name__}; need a tensor of the new values")
    new = torch.as_tensor(new, dtype=old.dtype, device=old.device)
    if new.shape != old.shape:
        raise InputError(f"got new values of shape {list(new.shape)} for {what}; need {list(old.shape)}")
    if not bool(new.isfinite().all()):
        raise InputError(f"the new values for {what} are NaN or infinite; need finite ones")
    parameter[place] = new
