"""Maps of the heads' effects, one for each panel and site."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechmem.report.heatmaps import head_heatmap
from mechmem.report.paper.drawing import Drawing

TITLES = {
    "memorized_own": "memorized run, own text",
    "perturbed_own": "perturbed run, own text",
    "perturbed_memorized": "perturbed run, memorized text",
}
READING = {
    "memorized_own": "The study's first panel: the memorized run with one head's activation of the perturbed run.",
    "perturbed_own": "The study's second panel: the perturbed run with one head's activation of the memorized run, "
    "scored on the text that the perturbed run itself writes.",
    "perturbed_memorized": "Not in the study: the same patch, scored on the memorized text. Below zero: the head "
    "restores the memory.",
}


def draw_patching(data: xr.Dataset) -> list[Drawing]:
    """Mean effects over pairs; the sites of a panel share one scale."""
    drawings: list[Drawing] = []
    for panel in map(str, data.reading.values):
        mean = data.effect_mean.sel(reading=panel)
        limit = float(np.nanmax(np.abs(mean.values), initial=0)) or 1.0
        for site in map(str, data.site.values):
            title = f"{TITLES.get(panel, panel)}: patching {site} (above zero = its text becomes less likely)"
            figure = head_heatmap(mean.sel(site=site), title=title, unit="nats", limit=limit, top=3)
            reading = (
                f"{READING.get(panel, '')} Change of the NLL of the first token that differs, in nats, mean over "
                f"{data.sizes['paragraph']} pairs; q, k and v share one scale."
            )
            drawings.append(Drawing(f"patching-{panel.replace('_', '-')}-{site}", figure, reading))
    return drawings
