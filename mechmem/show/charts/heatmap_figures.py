"""Heatmaps of a study: one value for each component or each head of every layer."""

from typing import Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.data.ranking import largest
from mechmem.show.colour_scale import FRAME
from mechmem.show.theme import DIVERGING, SEQUENTIAL, colorbar, empty_figure, plotly_text

Kind = Literal["log", "diverging", "plain"]
End = Literal["highest", "lowest"]


def component_heatmap(
    values: xr.DataArray,
    *,
    title: str,
    unit: str,
    kind: Kind,
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """One value for each component of each layer.

    Args:
        values: [layer, component].
        title: what is shown and what higher means.
        unit: label of the colour bar.
        kind: "log" (colour by log10, for positive values over several orders), "diverging" (zero is neutral), "plain".
        span: the values that the darkest and the brightest colour stand for, to compare figures; by default the grid's.
    """
    grid = values.transpose("layer", "component")
    data = grid.values.astype(float)
    figure = empty_figure(title, 120 + max(160, 22 * grid.sizes["layer"]))
    positive = np.where(data > 0, data, np.nan)
    figure.add_heatmap(
        z=np.log10(positive) if kind == "log" else data,
        x=[plotly_text(name) for name in grid.component.values],
        y=[f"L{layer}" for layer in grid.layer.values],
        customdata=data,
        hovertemplate="%{y} %{x}: %{customdata:.3g}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
        **_colours(data, kind, span),
    )
    bar = colorbar(unit)
    if kind == "log" and np.isfinite(positive).any():
        bar |= _log_ticks(np.log10(positive if span is None else np.array(span)))
    figure.update_traces(colorbar=bar)
    figure.update_xaxes(type="category", title="component (Q, K, V, O: one for each head)", tickangle=-90)
    figure.update_yaxes(type="category", title="layer", autorange="reversed")
    return figure


def head_heatmap(
    values: xr.DataArray,
    *,
    title: str,
    unit: str,
    limit: float | None = None,
    top: int = 0,
    blue: End = "highest",
) -> go.Figure:
    """One value for each head, [layer, head]; colours are centred on zero, where they are neutral.

    Args:
        values: [layer, head].
        title: what is shown and what higher means.
        unit: label of the colour bar.
        limit: the colour range is -limit..limit; by default the largest absolute value.
        top: number of heads with the bluest cells that get a frame and their rank.
        blue: which end is blue: "highest", or "lowest" for changes of which a fall is the finding.
    """
    grid = values.transpose("layer", "head")
    data = grid.values.astype(float)
    figure = empty_figure(title, 110 + max(200, 28 * grid.sizes["layer"]))
    span = limit or float(np.nanmax(np.abs(data), initial=0)) or 1.0
    heads, layers = [f"H{head}" for head in grid["head"].values], [f"L{layer}" for layer in grid.layer.values]
    figure.add_heatmap(
        z=data,
        x=heads,
        y=layers,
        zmin=-span,
        zmax=span,
        colorscale=DIVERGING,
        reversescale=blue == "lowest",
        colorbar=colorbar(unit),
        hovertemplate="%{y}%{x}: %{z:.3f}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(type="category", title="head")
    figure.update_yaxes(type="category", title="layer", autorange="reversed")
    for rank, (layer, head) in enumerate(top_cells(data if blue == "highest" else -data, top), start=1):
        box = {"x0": head - 0.5, "x1": head + 0.5, "y0": layer - 0.5, "y1": layer + 0.5}
        figure.add_shape(type="rect", line={"color": FRAME, "width": 2}, **box)
        # The rank and not the name: on a phone a cell is narrower than a name.
        ink = "#ffffff" if abs(data[layer, head]) > 0.6 * span else "#11161c"
        figure.add_annotation(x=head, y=layer, text=f"{rank}", showarrow=False, font={"size": 11, "color": ink})
    return figure


def top_cells(data: np.ndarray, top: int) -> list[tuple[int, int]]:
    """Row and column of the `top` largest values of a grid, largest first; only positive ones."""
    order = largest(data, top)
    cells = [tuple(map(int, np.unravel_index(place, data.shape))) for place in order]
    return [(row, column) for row, column in cells if data[row, column] > 0]


def _colours(data: np.ndarray, kind: Kind, span: tuple[float, float] | None) -> dict[str, object]:
    if kind != "diverging":
        low, high = (None, None) if span is None else np.log10(span) if kind == "log" else span
        return {"colorscale": SEQUENTIAL, "zmin": low, "zmax": high}
    high = float(np.nanmax(np.abs(np.where(np.isfinite(data), data, np.nan)), initial=0)) or 1.0
    return {"colorscale": DIVERGING, "zmin": -high, "zmax": high}


def _log_ticks(log_values: np.ndarray) -> dict[str, object]:
    """Colour-bar ticks at 1, 2 and 5 times the powers of ten within the values, written as the values themselves."""
    low, high = float(np.nanmin(log_values)), float(np.nanmax(log_values))
    ticks = [step * 10.0**power for power in range(int(low) - 2, int(high) + 2) for step in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= np.log10(tick) <= high]
    if len(inside) > 7:
        inside = [tick for tick in inside if f"{tick:e}".startswith("1.0")]
    return {"tickvals": [float(np.log10(tick)) for tick in inside], "ticktext": [f"{tick:.0g}" for tick in inside]}
