"""Maps of a reading: layers by positions, layers by heads, the heads of one layer by positions, paths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mechmem.show.maps.effect_texts import PairText, Shown
from mechmem.show.maps.effects_data import Reading
from mechmem.show.maps.heatmap import Axis, Heatmap
from mechmem.show.maps.heatmap_axes import layer_axis, part_axis, position_axis, sender_axis, token_axis

ROWS, COLUMNS = ("layer", "into", "head", "group"), ("pos", "sender", "head", "group")
PLURAL = {"layer": "layers", "head": "heads", "group": "groups", "pos": "positions"}
# Of one picture; more would make it slow to open.
MOST_CELLS = 400_000


def views_of(reading: Reading, paragraphs: int) -> list[str]:
    """What can be seen of a reading: both overviews, and each layer by itself where cells have three dimensions."""
    part = _part(reading)
    if part is None or not {"layer", "pos"} <= set(reading.cells):
        return ["all cells"]
    # Whole layers of many paragraphs: of these only sums are shown.
    if reading.values.isel(paragraph=0).size * (paragraphs + 1) > MOST_CELLS if paragraphs else False:
        return [f"layers × positions, layers × {PLURAL[part]}"]
    layers = [f"{PLURAL[part]} of L{layer} × positions" for layer in reading.values.layer.values]
    return [f"layers × positions, layers × {PLURAL[part]}", *layers]


def maps_of(reading: Reading, view: int, paragraph: int | None, shown: Shown, units: str) -> list[Heatmap]:
    """The maps of one view.

    Args:
        reading: what is shown.
        view: place in `views_of`.
        paragraph: place among those shown; None: the mean, or a result without paragraphs.
        shown: paragraphs and their texts.
        units: of the numbers.
    """
    row = None if paragraph is None or shown.rows is None else shown.rows[paragraph]
    value, low, high = reading.of(row)
    text = _text(shown, paragraph)
    part = _part(reading)
    if part is None or not {"layer", "pos"} <= set(reading.cells):
        return [_map(reading, reading.title, value, units, text, shown.begins, low, high)]
    if view:
        value, low, high = (None if each is None else each.isel(layer=view - 1) for each in (value, low, high))
        assert value is not None
        title = f"{reading.title}, L{value.layer.item()}"
        return [_map(reading, title, value, units, text, shown.begins, low, high)]
    done = {"sum": "summed over", "max": "largest over"}[reading.whole]
    return [
        _map(
            reading, f"{reading.title}, {done} {PLURAL[part]}", whole(reading, value, part), units, text, shown.begins
        ),
        _map(reading, f"{reading.title}, {done} positions", whole(reading, value, "pos"), units, None, None),
    ]


def whole(reading: Reading, value: xr.DataArray, dim: str) -> xr.DataArray:
    """Cells that differ in one dimension alone, as one: of what was measured; NaN where nothing was."""
    if reading.whole == "max":
        return value.max(dim)
    return value.sum(dim, min_count=1)


def _part(reading: Reading) -> str | None:
    return next((dim for dim in ("head", "group") if dim in reading.cells), None)


def _text(shown: Shown, paragraph: int | None) -> PairText | None:
    if shown.texts is None or (paragraph is None and len(shown.texts) > 1):
        return None
    return shown.texts[paragraph or 0]


def _map(
    reading: Reading,
    title: str,
    value: xr.DataArray,
    units: str,
    text: PairText | None,
    begins: int | None,
    low: xr.DataArray | None = None,
    high: xr.DataArray | None = None,
) -> Heatmap:
    dims = [str(dim) for dim in value.dims]
    row = next((dim for dim in ROWS if dim in dims), None)
    column = next((dim for dim in COLUMNS if dim in dims and dim != row), None)
    layer = None if "layer" in dims or "layer" not in value.coords else int(value.layer)

    def grid(array: xr.DataArray | None) -> np.ndarray | None:
        if array is None:
            return None
        kept = array.transpose(*(dim for dim in (row, column) if dim is not None))
        return kept.values.astype(float).reshape(array.sizes.get(row, 1), array.sizes.get(column, 1))

    rows, columns = _axis(value, row, text, begins, layer), _axis(value, column, text, begins, layer)
    values = grid(value)
    assert values is not None
    joint = "" if row in ("layer", "head") and column in ("head", "group", None) else ", "
    if row == "into":
        joint = " from "
    return Heatmap(
        title, values, rows, columns, units, reading.kind, reading.blue, joint=joint, low=grid(low), high=grid(high)
    )


def _axis(value: xr.DataArray, dim: str | None, text: PairText | None, begins: int | None, layer: int | None) -> Axis:
    if dim is None:
        return Axis("", [""], [""])
    places: Sequence = value[dim].values.tolist() if dim in value.coords else list(range(value.sizes[dim]))
    if dim == "layer":
        return layer_axis(places)
    if dim == "pos":
        if text is None:
            return position_axis(places, begins)
        return token_axis(places, text.clean, text.corrupt, text.begins, text.differs)
    if dim == "sender":
        return sender_axis(places)
    if dim == "into":
        return Axis("into", [str(place) for place in places], [str(place) for place in places])
    axis = part_axis(dim, places)
    # The heads of one layer have their whole names.
    return axis if layer is None else Axis(axis.title, axis.labels, [f"L{layer}{name}" for name in axis.names])
