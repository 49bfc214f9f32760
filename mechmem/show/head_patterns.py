"""The attention patterns that a heatmap shows beside itself when a head is clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.model.head_names import head_name
from mechmem.model.load import HookedTransformer
from mechmem.show.attention_data import Side, sides_of
from mechmem.show.heatmap_page import Beside
from mechmem.show.packed_patterns import packed

# Weights of all patterns in one picture: about as many bytes.
MOST_WEIGHTS = 350_000
CAPTION = (
    "Attention weight; colour grows with its square root. Rows are queries, columns keys, both from the first token."
)


def patterns_beside(
    model: HookedTransformer | xr.Dataset,
    paragraphs: Paragraphs | None,
    corrupt: Paragraphs | None,
    size: xr.DataArray,
    chooser: int,
    of: Sequence[int],
) -> Beside:
    """Patterns of the heads with the largest values, as many as a picture should hold.

    Args:
        model: whose patterns; or a capture of them.
        paragraphs: that are shown; None: only with a capture.
        corrupt: the other sides of the pairs, shown beside the first; None: there are none.
        size: how large each head's value is, [layer, head].
        chooser: place of the chooser of paragraphs.
        of: the paragraph of each of its options.
    """
    length = paragraphs.tokens.shape[1] if paragraphs is not None else model.sizes["key_pos"]  # pyright: ignore
    texts = (len(paragraphs) if paragraphs is not None else model.sizes["paragraph"]) * (1 if corrupt is None else 2)  # pyright: ignore
    most = max(1, MOST_WEIGHTS // max(1, texts * length * (length + 1) // 2))
    heads = _largest(size, most)
    sides = [sides_of(model, paragraphs, heads, None)]
    if corrupt is not None:
        sides.append(sides_of(model, corrupt, heads, None))
    left = size.size - len(heads)
    data: dict[str, Any] = {
        "heads": [head_name(head) for head in heads],
        "names": ["clean", "corrupt"][: len(sides)],
        "difference": "corrupt minus clean" if corrupt is not None else None,
        "hint": "",
        "caption": CAPTION,
        "missing": f"Click a cell of a head for its attention pattern{_kept(len(heads), left)}.",
        "chooser": chooser,
        "of": list(of),
        "paragraphs": [[_side(side) for side in group] for group in zip(*sides, strict=True)],
    }
    return Beside(("attention",), data)


def _kept(held: int, left: int) -> str:
    return f"; the picture holds those of the {held} heads with the largest values" if left else ""


def _largest(size: xr.DataArray, most: int) -> list[tuple[int, int]]:
    values = size.transpose("layer", "head").values
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1.0), axis=None, kind="stable")[:most]
    layers, heads = size.layer.values.tolist(), size["head"].values.tolist()
    places = sorted((int(place) // len(heads), int(place) % len(heads)) for place in order)
    return [(layers[layer], heads[head]) for layer, head in places]


def _side(side: Side) -> dict[str, Any]:
    """One text, with each head's pattern by itself."""
    packs = [packed(pattern[None]) for pattern in side.pattern]
    return {"title": side.title, "text": side.text, "counts": side.counts, "prefix": side.prefix_len, "packs": packs}
