"""Heatmaps over the tokens of a text: one value for each position of every layer or head."""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go
import xarray as xr

from mechmem.show.charts.heatmap_figures import component_heatmap
from mechmem.show.theme import plotly_text

ROWS = {"layer": "L", "head": "H"}
# A token is a word at most: what is longer would push the map off the page.
TOKEN_LIMIT = 14
LABEL_HEIGHT = 80


def position_heatmap(
    values: xr.DataArray,
    *,
    title: str,
    unit: str,
    kind: Literal["diverging", "sequential"],
    tokens: Sequence[str] | None = None,
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """One value for each position of each layer, or of each head of one layer.

    Args:
        values: [layer, pos] or [head, pos], in any order of the two; NaN is left blank.
        title: what is shown and what higher means.
        unit: label of the colour bar.
        kind: "diverging" (zero is neutral, blue is positive) or "sequential" (brighter is more).
        tokens: text of each position's token, in the order of `pos`, shown letter by letter; by default positions only.
        span: with "sequential", what the darkest and the brightest colour stand for; by default the grid's own range.

    Raises:
        ValueError: other dimensions, or another number of tokens than of positions.
    """
    row = next((name for name in ROWS if set(values.dims) == {name, "pos"}), None)
    if row is None:
        raise ValueError(f"got values with dimensions {values.dims}; need layer and pos, or head and pos: select one")
    if tokens is not None and len(tokens) != values.sizes["pos"]:
        raise ValueError(f"got {len(tokens)} tokens for {values.sizes['pos']} positions; need one for each")
    # The component map draws any grid of two named axes; only their words differ.
    figure = component_heatmap(
        values.reset_coords(drop=True).rename(
            {"pos": "component"} if row == "layer" else {"head": "layer", "pos": "component"}
        ),
        title=title,
        unit=unit,
        kind="plain" if kind == "sequential" else kind,
        span=span,
    )
    places = [str(place) for place in values.pos.values]
    # A space would vanish at either end of a label, so the places are the categories and tokens are only written on.
    labels = [plotly_text(token, TOKEN_LIMIT) for token in tokens] if tokens is not None else places
    figure.update_traces(
        y=[f"{ROWS[row]}{number}" for number in values[row].values],
        text=[labels] * values.sizes[row],
        hovertemplate="%{y}, position %{x}: %{customdata:.3g}"
        + ("" if tokens is None else "<br>%{text}")
        + "<extra></extra>",
    )
    figure.update_xaxes(title="position" if tokens is None else "token, in the order of the text")
    figure.update_yaxes(title=row, dtick=1)
    if tokens is not None:
        figure.update_xaxes(tickmode="array", tickvals=places, ticktext=labels, tickfont={"size": 9})
        # The tokens stand upright below and would take their room from the rows.
        figure.update_layout(height=figure.to_dict()["layout"]["height"] + LABEL_HEIGHT)
    return figure
