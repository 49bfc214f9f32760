"""Axes of heatmaps: layers, heads, components, tokens by position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechmem.show.maps.heatmap import Axis

_COMPONENT = re.compile(r"([QKVO])(\d+)")
_SENDER = re.compile(r"(L\d+)(H\d+|MLP)")


def layer_axis(layers: Sequence[Any]) -> Axis:
    """Layers, L0 and so on."""
    labels = [f"L{layer}" for layer in layers]
    return Axis("layer", labels, labels)


def part_axis(part: str, numbers: Sequence[Any]) -> Axis:
    """Heads of a layer, H0 and so on, or groups of neighbouring neurons."""
    labels = [f"H{number}" if part == "head" else f"{number}" for number in numbers]
    return Axis(part, labels, labels if part == "head" else [f" group {number}" for number in numbers])


def component_axis(components: Sequence[Any]) -> Axis:
    """Components of a layer, in groups: Q, K, V and O with a head each, then the MLP's matrices."""
    names = [str(component) for component in components]
    labels, groups = [], []
    for place, name in enumerate(names):
        match = _COMPONENT.fullmatch(name)
        label, group = (match[2], match[1]) if match else (name.removeprefix("mlp_"), "MLP")
        labels.append(label)
        if not groups or groups[-1][0] != group:
            groups.append((group, place))
    return Axis("component", labels, names, groups)


def sender_axis(senders: Sequence[Any]) -> Axis:
    """Senders of paths: the whole stream, the embeddings, then heads and MLPs layer by layer."""
    names = [str(sender) for sender in senders]
    labels, groups = [], []
    for place, name in enumerate(names):
        match = _SENDER.fullmatch(name)
        labels.append(match[2] if match else name)
        group = match[1] if match else ""
        if group and (not groups or groups[-1][0] != group):
            groups.append((group, place))
    return Axis("sender", labels, names, groups)


def position_axis(positions: Sequence[Any], begins: int | None = None) -> Axis:
    """Positions without their tokens."""
    labels = [str(position) for position in positions]
    return Axis("position", labels, [f"position {label}" for label in labels], begins=_place(positions, begins))


def token_axis(
    positions: Sequence[Any],
    clean: list[str],
    corrupt: list[str] | None,
    begins: int | None,
    differs: Any = None,
) -> Axis:
    """The tokens of a text; equal tokens are told apart by their positions.

    Args:
        positions: of each token that is shown.
        clean: labels of all tokens of the text.
        corrupt: labels of the text that it is compared with; None: there is none.
        begins: position of the continuation's first token; None: unknown.
        differs: [pos], where the two texts have other tokens; None: where their labels differ.
    """
    names = [f"position {position} “{clean[position]}”" for position in positions]
    marks: dict[int, str] = {}
    if corrupt is not None:
        other = (
            np.array([a != b for a, b in zip(clean, corrupt, strict=True)]) if differs is None else np.asarray(differs)
        )
        first = int(begins + other[begins:].argmax()) if begins is not None and other[begins:].any() else None
        for place, position in enumerate(positions):
            if not other[position]:
                continue
            names[place] += f", in the corrupt text “{corrupt[position]}”"
            # Past the first token that differs, the continuations are two texts.
            if first is None or position < begins:
                marks[place] = "changed"
            elif position == first:
                marks[place] = "diverges"
    labels = [clean[position] for position in positions]
    return Axis("token", labels, names, marks=marks, begins=_place(positions, begins), text=True)


def _place(positions: Sequence[Any], position: int | None) -> int | None:
    found = [place for place, known in enumerate(positions) if known == position]
    return found[0] if position is not None and found else None
