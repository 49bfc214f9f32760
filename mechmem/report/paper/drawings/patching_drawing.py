"""Maps of the heads' effects: one figure for each panel, with q, k and v side by side."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mechmem.report.paper.drawing import Drawing
from mechmem.show.theme import DIVERGING, colorbar, plotly_text, template

TITLES = {
    "memorized_own": "Memorized run, patched with the perturbed run's heads, own text",
    "perturbed_own": "Perturbed run, patched with the memorized run's heads, own text",
    "perturbed_memorized": "Perturbed run, patched with the memorized run's heads, memorized text",
}
READING = {
    "memorized_own": "The study's first panel. Blue: without the head's own activation the memorized text is less "
    "likely.",
    "perturbed_own": "The study's second panel, scored on the text that the perturbed run itself writes. Blue: that "
    "text becomes less likely.",
    "perturbed_memorized": "Not in the study: the patch of the second panel, scored on the memorized text. Orange: the "
    "head restores the memory.",
}


def draw_patching(data: xr.Dataset) -> list[Drawing]:
    """Mean effects over pairs; the maps of a panel share one scale."""
    return [
        Drawing(
            f"patching-{panel.replace('_', '-')}",
            _panel(data.effect_mean.sel(reading=panel), TITLES.get(panel, panel)),
            f"{READING.get(panel, '')} Change of the NLL of the first token that differs, in nats, mean over "
            f"{data.sizes['paragraph']} pairs, one head's query, key or value at the replaced token at a time.",
        )
        for panel in map(str, data.reading.values)
    ]


def _panel(mean: xr.DataArray, title: str) -> go.Figure:
    sites = [str(site) for site in mean.site.values]
    figure = make_subplots(
        rows=1,
        cols=len(sites),
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    limit = float(np.nanmax(np.abs(mean.values), initial=0)) or 1.0
    for number, site in enumerate(sites, start=1):
        grid = mean.sel(site=site).transpose("layer", "head")
        figure.add_heatmap(
            z=grid.values,
            x=[f"H{head}" for head in grid["head"].values],
            y=[f"L{layer}" for layer in grid.layer.values],
            hovertemplate="%{y}%{x}: %{z:.3g} nats<extra>" + plotly_text(site) + "</extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
            row=1,
            col=number,
        )
        figure.update_xaxes(type="category", title=f"head ({plotly_text(site)})", row=1, col=number)
    figure.update_layout(
        template=template(),
        title=title,
        height=130 + max(220, 26 * mean.sizes["layer"]),
        coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit, "colorbar": colorbar("nats")},
    )
    figure.update_yaxes(type="category", autorange="reversed")
    figure.update_yaxes(title="layer", row=1, col=1)
    return figure
