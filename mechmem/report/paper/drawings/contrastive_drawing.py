"""Which components the contrastive objective points at."""

from __future__ import annotations

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.charts.heatmap_figures import component_heatmap


def draw_contrastive(data: xr.Dataset) -> list[Drawing]:
    """One heatmap for each reading."""
    drawings = []
    units = {"as published": "nats per token per unit of weight", "corrected": "no unit"}
    names = {
        "as published": "gradient of memorized text",
        "corrected": "gradient of memorized text over other text's",
    }
    for reading in data.reading.values:
        title = f"Largest {names[str(reading)]} ({reading}; brighter = choose it first)"
        figure = component_heatmap(data.score.sel(reading=reading), title=title, unit=units[str(reading)], kind="log")
        said = "The study's figure 5 has one such map, in which W_V of head 2 in layer 1 stands out."
        drawings.append(Drawing(f"contrastive-{str(reading).replace(' ', '-')}", figure, said))
    return drawings
