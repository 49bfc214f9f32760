"""One paragraph's patterns as a view shows them, and how its heads stand in the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechmem.model.head_names import head_name


@dataclass(frozen=True)
class Side:
    """One paragraph's patterns.

    Attributes:
        title: which paragraph.
        heads: (layer, head) of each.
        text: a label for each token.
        counts: of each token in the corpus; None: unknown.
        prefix_len: where the continuation begins; None: unknown.
        pattern: weights from 0 to 1.
    """

    title: str
    heads: list[tuple[int, int]]
    text: list[str]
    counts: list[int] | None
    prefix_len: int | None
    pattern: Float[np.ndarray, "head query_pos key_pos"]


def grid_of(heads: list[tuple[int, int]]) -> dict[str, Any]:
    """How heads stand in the grid: a line for each layer if all lines are alike, otherwise one after the other."""
    layers = sorted({layer for layer, _ in heads})
    lines = [[head for of, head in heads if of == layer] for layer in layers]
    names = [head_name(place) for place in heads]
    if len(heads) > 1 and all(line == lines[0] for line in lines) and heads == sorted(heads):
        labels, rows = [f"H{head}" for head in lines[0]], [f"L{layer}" for layer in layers]
        return {"heads": names, "columns": len(lines[0]), "labels": labels, "rows": rows}
    return {"heads": names, "columns": min(len(heads), 12), "labels": None, "rows": None}
