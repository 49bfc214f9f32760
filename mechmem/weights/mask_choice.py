"""Select the weights with the largest scores, among all weights or in chosen layers, heads or parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters

Per = Literal["model", "tensor", "component"]
# Which weights are ranked together: parameters with equal keys.
GROUPS = {
    "model": lambda _: "",
    "tensor": lambda name: name,
    "component": lambda name: name.rsplit(".", 1)[-1],
}
# A range of a parameter's weights: name, first flat index, and one past the last flat index.
Piece = tuple[str, int, int]
Head = tuple[int, int]
Place = TypeVar("Place", int, Head, str)
_PLACE = re.compile(r"blocks\.(\d+)\.(attn|mlp)\.")
_INFINITY = 0x7F800000


def choose_largest(
    weights: Mapping[str, Tensor],
    fraction: float,
    per: Per,
    layers: Iterable[int] | None,
    heads: Iterable[Head] | None,
    parameters: Iterable[str] | None,
) -> dict[str, Int[Tensor, " chosen"]]:
    """Parameter name -> sorted flat indices of the weights with the largest absolute scores; see `Mask.top`.

    Raises:
        InputError: as `Mask.top`.
    """
    shapes = {name: tuple(weights[name].shape) for name in sorted(weights)}
    groups: dict[str, list[Piece]] = {}
    for piece in pieces(shapes, layers, heads, parameters):
        groups.setdefault(GROUPS[per](piece[0]), []).append(piece)
    found: dict[str, list[Tensor]] = {}
    for group in groups.values():
        size = sum(stop - start for _, start, stop in group)
        for name, indices in _largest(weights, group, max(1, round(fraction * size))):
            found.setdefault(name, []).append(indices)
    # Nothing is copied where a tensor was one piece: indices of all weights take as much memory as two models.
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in found.items()}


def pieces(
    shapes: Mapping[str, tuple[int, ...]],
    layers: Iterable[int] | None,
    heads: Iterable[Head] | None,
    parameters: Iterable[str] | None,
) -> list[Piece]:
    """The weights that all restrictions leave, in the order of names and indices.

    Raises:
        InputError: a layer, head or parameter that the names do not have, or nothing is left.
    """
    places = {name: _PLACE.match(name) for name in shapes}
    layer_of = {name: int(place[1]) for name, place in places.items() if place}
    wanted_layers = None if layers is None else _known("layer", layers, set(layer_of.values()))
    attention = {name for name, place in places.items() if place and place[2] == "attn"}
    all_heads = {(layer_of[name], head) for name in attention for head in range(shapes[name][0])}
    wanted_heads = None if heads is None else _known("head", ((layer, head) for layer, head in heads), all_heads)
    endings = {name.rsplit(".", 1)[-1] for name in shapes}
    wanted_names = None if parameters is None else _known("parameter", parameters, endings | set(shapes))
    if wanted_layers is not None and wanted_heads is not None:
        _known("head", wanted_heads, {head for head in all_heads if head[0] in wanted_layers})
    left: list[Piece] = []
    for name, shape in shapes.items():
        if wanted_layers is not None and layer_of.get(name) not in wanted_layers:
            continue
        if wanted_names is not None and wanted_names.isdisjoint({name, name.rsplit(".", 1)[-1]}):
            continue
        if wanted_heads is None:
            left.append((name, 0, size(shape)))
        elif name in attention:
            # The first axis of attention weights is the head, so a head's weights stand together.
            each = size(shape) // shape[0]
            here = sorted(head for layer, head in wanted_heads if layer == layer_of[name])
            left.extend((name, head * each, (head + 1) * each) for head in here)
    if not left:
        raise InputError("the layers, heads and parameters asked for have no weight in common; drop one restriction")
    return left


def check_shapes(shapes: Mapping[str, tuple[int, ...]], model: HookedTransformer) -> None:
    """Refuse a mask's parameters that a model does not have, or has in another shape.

    Raises:
        InputError: names the first one.
    """
    parameters = editable_parameters(model)
    for name, shape in shapes.items():
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != tuple(shape):
            raise InputError(
                f"the mask's '{name}' has shape {tuple(shape)} and the model's {found}; the mask is of another model: "
                "make it from this model's gradients"
            )


def size(shape: tuple[int, ...]) -> int:
    """How many weights a shape has."""
    return int(torch.Size(shape).numel())


def _known(what: str, asked: Iterable[Place], known: set[Place]) -> set[Place]:
    need = set(asked)
    if not need or need - known:
        first = sorted(known, key=str)[:4]
        raise InputError(
            f"got {what}s {sorted(need - known, key=str)[:4]}; need at least one, among those that have scores and "
            f"meet the other restrictions, for example {first}"
        )
    return need


def _largest(weights: Mapping[str, Tensor], group: list[Piece], need: int) -> list[tuple[str, Tensor]]:
    """The `need` largest of a group; of equal scores the first, so that ties do not depend on the library.

    Numbers that are not negative are ordered as their bits are, so counting bits finds the smallest score that is
    taken without a sorted copy: beyond the result, no more than one tensor's scores are held.
    """
    # 1. The upper 16 bits of the smallest score, then its lower 16.
    counts = np.zeros(2**15, dtype=np.int64)
    for piece in group:
        counts += _count(_bits(weights, piece) >> 16, 2**15)
    upper, above = _edge(counts, need)
    counts = np.zeros(2**16, dtype=np.int64)
    for piece in group:
        bits = _bits(weights, piece)
        counts += _count(bits[bits >> 16 == upper] & 0xFFFF, 2**16)
    lower, more = _edge(counts, need - above)
    smallest, level = (upper << 16) + lower, need - above - more
    # 2. Every score above it, and the first of those equal to it.
    chosen: list[tuple[str, Tensor]] = []
    for piece in group:
        bits = _bits(weights, piece)
        equal = (bits == smallest).nonzero().flatten()[:level]
        level -= len(equal)
        taken = bits > smallest
        taken[equal] = True
        chosen.append((piece[0], taken.nonzero().flatten().cpu() + piece[1]))
    return chosen


def _bits(weights: Mapping[str, Tensor], piece: Piece) -> Int[Tensor, " weight"]:
    name, start, stop = piece
    bits = weights[name].detach().flatten()[start:stop].float().abs().view(torch.int32)
    if bool((bits > _INFINITY).any()):
        raise InputError(f"the scores of '{name}' hold NaN; weights cannot be ranked: find where the loss broke")
    return bits


def _count(values: Int[Tensor, " weight"], kinds: int) -> Int[np.ndarray, " kind"]:
    return torch.bincount(values, minlength=kinds).cpu().numpy()


def _edge(counts: Int[np.ndarray, " kind"], need: int) -> tuple[int, int]:
    """The largest kind that has `need` values at or above it, and how many are above it."""
    at_least = np.cumsum(counts[::-1])[::-1]
    edge = int(np.flatnonzero(at_least >= need)[-1])
    return edge, int(at_least[edge] - counts[edge])
