"""Change of EM by the position that is replaced."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.theme import colour, empty_figure


def draw_perturbation(data: xr.Dataset) -> list[Drawing]:
    """One line for each set, with its interval as a band."""
    figure = empty_figure("EM lost by replacing one prefix token (higher = more fragile)", 400)
    for number, name in enumerate(map(str, data.set.values)):
        one = data.sel(set=name)
        ink = colour(name.split(",")[0] if "true" not in name else "never seen", number)
        place = data.pos.values
        edges = np.concatenate([-one.em_change_low.values, -one.em_change_high.values[::-1]])
        figure.add_scatter(
            x=np.concatenate([place, place[::-1]]),
            y=edges,
            fill="toself",
            mode="lines",
            line={"width": 0, "color": ink},
            opacity=0.25,
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=place,
            y=-one.em_change.values,
            name=name,
            line={"color": ink, "width": 2.5},
            mode="lines",
            hovertemplate="position %{x}: %{y:.1f} tokens<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title="replaced position of the prefix")
    figure.update_yaxes(title="mean EM lost, tokens", rangemode="tozero")
    reading = (
        "Mean fall of EM when the token at one position is replaced by a random one; bands: 95 %, by cluster. Own "
        "text: against the model's own unperturbed continuation, as in the study."
    )
    return [Drawing("perturbation", figure, reading)]
