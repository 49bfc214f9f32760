"""The attention patterns that a heatmap shows beside itself when a head is clicked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.head_names import head_name
from mechmem.model.load import HookedTransformer
from mechmem.show.maps.heatmap_page import Beside
from mechmem.show.patterns.attention_data import Side, sides_of
from mechmem.show.patterns.packed_patterns import packed

# Weights of all patterns in one picture: about as many bytes.
MOST_WEIGHTS = 350_000
FEWEST = 8
CAPTION = (
    "Attention weight; colour grows with its square root. Rows are queries, columns keys, both from the first token."
)


def patterns_beside(
    model: HookedTransformer | xr.Dataset,
    pairs: Sequence[Paragraphs],
    size: xr.DataArray,
    chooser: int,
    of: Sequence[int],
) -> Beside:
    """Patterns of the heads with the largest values, as many as a picture should hold.

    Args:
        model: whose patterns; or a capture of the first side's.
        pairs: the paragraphs that are shown, and, of a model, those beside them.
        size: how large each head's value is, [layer, head].
        chooser: place of the chooser of paragraphs.
        of: the paragraph of each of its options.

    Raises:
        InputError: a capture of other paragraphs, or without patterns.
    """
    given: list[tuple[Any, Paragraphs | None]] = [(model, each) for each in pairs]
    if isinstance(model, xr.Dataset):
        check_results("model", model, ("pattern",), "capture(model, paragraphs, sites='pattern')")
        given = [(aligned(model, pairs[0]), None)]
        size = size.sel(layer=np.isin(size.layer, model.layer), head=np.isin(size["head"], model["head"]))
    rows, length = pairs[0].tokens.shape
    # Of many paragraphs the first, so that there is room for a few heads of each.
    room = MOST_WEIGHTS // (len(given) * length * (length + 1) // 2)
    kept = min(rows, max(1, room // FEWEST))
    heads = _largest(size, max(1, room // kept))
    sides = [sides_of(each, None if texts is None else texts[:kept], heads, None)[:kept] for each, texts in given]
    data: dict[str, Any] = {
        "heads": [head_name(head) for head in heads],
        "names": ["clean", "corrupt"][: len(sides)],
        "difference": "corrupt minus clean" if len(sides) > 1 else None,
        "caption": CAPTION,
        "missing": f"Click a cell of a head for its attention pattern{_kept(len(heads), size.size - len(heads))}.",
        "chooser": chooser,
        "of": [row if row < kept else None for row in of],
        "unknown": f"The picture holds the attention patterns of the first {kept} paragraphs.",
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
