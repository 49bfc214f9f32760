"""A heatmap: labelled numbers, the meaning of their colours, and what a page's script reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from mechmem.show.packed_numbers import four_digits, packed_numbers

Kind = Literal["diverging", "log", "root", "plain"]
End = Literal["higher", "lower"]


@dataclass(frozen=True)
class Axis:
    """The rows or the columns of a heatmap.

    Attributes:
        title: what they are: "layer", "token".
        labels: a short label of each, beside the map. Labels may be equal: places tell cells apart.
        names: how each is called in a sentence: "position 12 “ the”".
        groups: (label, first place) of neighbours that belong together.
        marks: place -> what is special: "changed", "diverges".
        begins: place at which a continuation begins.
        text: whether the labels, one after the other, are a text.
    """

    title: str
    labels: Sequence[str]
    names: Sequence[str]
    groups: Sequence[tuple[str, int]] = ()
    marks: dict[int, str] = field(default_factory=dict)
    begins: int | None = None
    text: bool = False


@dataclass(frozen=True)
class Also:
    """A further number of every cell, which is told and not drawn."""

    label: str
    values: Float[np.ndarray, "row column"]


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One map.

    Attributes:
        title: above it.
        values: NaN where nothing was measured.
        unit: of the values, "" for none.
        kind: "diverging": zero is the page's colour; "log": colour by the logarithm, for sizes over several orders;
            "root": by the square root; "plain": in proportion, from the least to the largest value.
        blue: of "diverging": which end is blue.
        span: what the strongest colours stand for; None: the largest absolute value, or the least and the largest.
        joint: between a row's and a column's name: "" makes L1H2 of L1 and H2.
        low, high: ends of an interval around each value.
        also: further numbers.
        words: a word in every cell.
        framed: (row, column) of cells with a frame.
        framed_as: what the frame says.
    """

    title: str
    values: Float[np.ndarray, "row column"]
    rows: Axis
    columns: Axis
    unit: str
    kind: Kind
    blue: End = "higher"
    span: tuple[float, float] | None = None
    joint: str = ", "
    low: Float[np.ndarray, "row column"] | None = None
    high: Float[np.ndarray, "row column"] | None = None
    also: Sequence[Also] = ()
    words: list[list[str]] | None = None
    framed: Sequence[tuple[int, int]] = ()
    framed_as: str = ""

    def ends(self) -> tuple[float, float]:
        """What the faintest and the strongest colour stand for; of "diverging" the strongest orange and blue."""
        if self.span is not None:
            return self.span
        known = four_digits(self.values)
        known = known[np.isfinite(known)]
        if self.kind == "diverging":
            most = float(np.abs(known).max(initial=0)) or 1.0
            return (-most, most) if self.blue == "higher" else (most, -most)
        if self.kind == "log":
            known = known[known > 0]
        most = float(known.max(initial=0)) if known.size else 1.0
        least = 0.0 if self.kind == "root" or not known.size else float(known.min())
        return least, most if most > least else least + (abs(least) or 1.0)

    def cell(self, row: int, column: int) -> str:
        """The name of a cell."""
        return f"{self.rows.names[row]}{self.joint}{self.columns.names[column]}"

    def strongest(self) -> tuple[int, int] | None:
        """Row and column of the value farthest from zero; None where there is none, or all are zero."""
        size = np.nan_to_num(np.abs(self.values.astype(float)), nan=0.0, posinf=0.0)
        if not size.size or not size.any():
            return None
        row, column = np.unravel_index(int(size.argmax()), size.shape)
        return int(row), int(column)


def page_axis(axis: Axis) -> dict[str, Any]:
    """What the script reads of an axis."""
    return {
        "title": axis.title,
        "labels": list(axis.labels),
        # Names that are the labels are not repeated.
        "names": None if list(axis.names) == list(axis.labels) else list(axis.names),
        "groups": [list(group) for group in axis.groups],
        "marks": {str(place): word for place, word in axis.marks.items()},
        "begins": axis.begins,
        "text": axis.text,
    }


def page_heatmap(heatmap: Heatmap, axes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the script reads of a map.

    Args:
        heatmap: the map.
        axes: those of the maps before it; maps share them. This one's are added where they are new.
    """
    rows, columns = (_place(page_axis(axis), axes) for axis in (heatmap.rows, heatmap.columns))
    found: dict[str, Any] = {
        "title": heatmap.title,
        "rows": rows,
        "columns": columns,
        "packed": packed_numbers(heatmap.values),
        "unit": heatmap.unit,
        "kind": heatmap.kind,
        "ends": list(heatmap.ends()),
        "joint": heatmap.joint,
    }
    if heatmap.low is not None and heatmap.high is not None:
        found["interval"] = [packed_numbers(heatmap.low), packed_numbers(heatmap.high)]
    if heatmap.also:
        found["also"] = [{"label": also.label, "packed": packed_numbers(also.values)} for also in heatmap.also]
    if heatmap.words is not None:
        known = sorted({word for row in heatmap.words for word in row})
        number = {word: place for place, word in enumerate(known)}
        found |= {"words": known, "word": [number[word] for row in heatmap.words for word in row]}
    if heatmap.framed:
        found |= {"framed": [list(cell) for cell in heatmap.framed], "framed_as": heatmap.framed_as}
    return found


def _place(axis: dict[str, Any], axes: list[dict[str, Any]]) -> int:
    if axis not in axes:
        axes.append(axis)
    return axes.index(axis)
