"""Parts of a model by name: a layer, its attention or MLP, a head, a neuron, the embedding or the unembedding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.head_names import head_name
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import ATTENTION, editable_parameters

# Where a parameter's weights are: an index of its first axes, or `...` for all of them.
Places = Mapping[str, list[Any]]
_NAME = re.compile(
    r"(?P<part>layer|attn|mlp)(?P<at>\d+)|L(?P<layer>\d+)H(?P<head>\d+)|neuron(?P<row>\d+)\.(?P<neuron>\d+)"
)
_ENDS = {"embed": ("embed.", "pos_embed."), "unembed": ("ln_final.", "unembed.")}
_PREFIXES = {"layer": ("",), "attn": ("attn.", "ln1."), "mlp": ("mlp.", "ln2.")}


def every_component(model: HookedTransformer) -> list[str]:
    """What `transplant_layers` tries: every layer, its attention and its MLP; the embedding and the unembedding."""
    parts = ["layer", "attn"] if model.cfg.attn_only else ["layer", "attn", "mlp"]
    return [f"{part}{layer}" for part in parts for layer in range(model.cfg.n_layers)] + list(_ENDS)


def choose_components(
    model: HookedTransformer, components: Iterable[str], biases: bool
) -> tuple[dict[str, Int[Tensor, " chosen"]], dict[str, tuple[int, ...]]]:
    """Flat indices and shapes for a mask; see `Mask.components`.

    Raises:
        InputError: no name, or one that the model does not have.
    """
    if not (names := list(components)):
        raise InputError(f"got no component; need {_needed(model)}")
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    weights = {name: tuple(parameter.shape) for name, parameter in editable_parameters(model).items()}
    chosen: dict[str, list[Tensor]] = {}
    for component in names:
        places = _places(model, component, parameters if biases else weights, parameters)
        for name, where in places.items():
            flat = torch.arange(torch.Size(parameters[name]).numel()).view(parameters[name])
            chosen.setdefault(name, []).extend(flat[place].flatten() for place in where)
    shapes = weights | {name: parameters[name] for name in chosen}
    return {name: torch.cat(parts).unique() for name, parts in chosen.items()}, shapes


def _places(
    model: HookedTransformer, component: Any, among: Mapping[str, Any], parameters: Mapping[str, Any]
) -> Places:
    if component in _ENDS:
        return {name: [...] for name in parameters if name.startswith(_ENDS[component])}
    match = _NAME.fullmatch(component) if isinstance(component, str) else None
    wanted: dict[str, list[Any]] = {}
    if match is not None and match["part"]:
        starts = tuple(f"blocks.{int(match['at'])}.{prefix}" for prefix in _PREFIXES[match["part"]])
        wanted = {name: [...] for name in among if name.startswith(starts)}
    elif match is not None and match["head"] and int(match["head"]) < model.cfg.n_heads:
        start, head = f"blocks.{int(match['layer'])}.attn.", int(match["head"])
        letters = [f"W_{letter}" for letter in ATTENTION] + ["b_Q", "b_K", "b_V"]
        wanted = {f"{start}{letter}": [head] for letter in letters}
    elif match is not None and match["neuron"] and int(match["neuron"]) < (model.cfg.d_mlp or 0):
        start, neuron = f"blocks.{int(match['row'])}.mlp.", int(match["neuron"])
        wanted = {f"{start}W_in": [(slice(None), neuron)], f"{start}W_out": [neuron], f"{start}b_in": [neuron]}
    found = {name: where for name, where in wanted.items() if name in among}
    if not found:
        raise InputError(f"got the component {component!r}; need {_needed(model)}")
    return found


def _needed(model: HookedTransformer) -> str:
    layer = model.cfg.n_layers - 1
    names = [f"layer{layer}", f"attn{layer}", head_name((layer, model.cfg.n_heads - 1))]
    if not model.cfg.attn_only:
        names += [f"mlp{layer}", f"neuron{layer}.{(model.cfg.d_mlp or 1) - 1}"]
    return f"names such as {', '.join(names)}, counted from zero, 'embed' or 'unembed'"
