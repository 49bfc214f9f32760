"""How many paragraphs each group of EM has."""

from __future__ import annotations

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.theme import COLOURS, empty_figure


def draw_sets(data: xr.Dataset) -> list[Drawing]:
    """Bars of the groups' sizes, on a logarithmic axis."""
    figure = empty_figure("Paragraphs of each group of EM", 320)
    figure.add_bar(
        x=[str(name) for name in data.group.values],
        y=data["count"].values,
        marker_color=COLOURS["memorized"],
        text=data["count"].values,
        hovertemplate="EM %{x}: %{y} paragraphs<extra></extra>",
    )
    figure.update_xaxes(type="category", title="EM, tokens (higher = more memorized)")
    figure.update_yaxes(type="log", title="paragraphs (log scale)", dtick=1)
    return [Drawing("groups", figure, "The sets that everything below is measured on, on a logarithmic scale.")]
