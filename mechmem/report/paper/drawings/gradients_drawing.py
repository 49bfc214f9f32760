"""Component scores of the parameter gradients, their sums by layer, and gradients of the heads' values."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.charts.heatmap_figures import component_heatmap, head_heatmap
from mechmem.show.theme import EDIT_COLOURS, empty_figure

INK = {"50": EDIT_COLOURS[1], "30-49": EDIT_COLOURS[2], "11-29": EDIT_COLOURS[3], "0-10": EDIT_COLOURS[4]}


def draw_parameter_gradients(data: xr.Dataset) -> list[Drawing]:
    """Maps of the scores as published, and sums and shares by layer in both readings."""
    scores = data.gradient
    published = scores.sel(reading="as published")
    groups = [str(name) for name in data.group.values if np.isfinite(published.sel(group=name)).all()]
    known = published.sel(group=groups)
    positive = known.where(known > 0)
    drawings = [
        Drawing(
            f"gradients-em-{name}",
            component_heatmap(
                known.sel(group=name),
                title=f"Largest |gradient|, EM {name} (brighter = larger)",
                unit="nats per token per unit of weight",
                kind="log",
                span=(float(positive.min()), float(positive.max())),
            ),
            f"The largest |gradient| of the mean NLL of paragraphs of EM {name} in every component, as published; "
            "logarithmic, one scale for all groups.",
        )
        for name in groups
    ]
    for reading in map(str, data.reading.values):
        layers = scores.sel(reading=reading).sum("component", skipna=False)
        name = reading.replace(" ", "-")
        words = {"as published": "folded weights, the model's own text", "corrected": "raw weights, true text"}
        said = f"{reading} ({words.get(reading, '')})"
        drawings.append(
            Drawing(
                f"gradient-layers-{name}",
                _lines(layers, f"Sum of component scores by layer, {reading}", "nats per token per unit", log=True),
                f"{said[0].upper()}{said[1:]}. Logarithmic: memorized text has small gradients in every layer.",
            )
        )
        drawings.append(
            Drawing(
                f"gradient-shares-{name}",
                _lines(100 * layers / layers.sum("layer"), f"Share of each layer, {reading}", "% of the group's sum"),
                "Each group's layers add up to 100 %: where in the network its gradient lies.",
            )
        )
    return drawings


def _lines(values: xr.DataArray, title: str, unit: str, *, log: bool = False) -> go.Figure:
    figure = empty_figure(title, 360)
    for name in map(str, values.group.values):
        line = values.sel(group=name)
        if not np.isfinite(line).all():
            continue
        figure.add_scatter(
            x=[f"L{layer}" for layer in values.layer.values],
            y=line.values,
            name=f"EM {name}",
            mode="lines+markers",
            line={"color": INK.get(name), "width": 2.5},
            hovertemplate="%{x}: %{y:.3g}<extra>EM " + name + "</extra>",
        )
    figure.update_xaxes(type="category", title="layer")
    figure.update_yaxes(title=unit, type="log" if log else "linear", rangemode="normal" if log else "tozero")
    return figure


def draw_activation_gradients(data: xr.Dataset) -> list[Drawing]:
    """Maps of the heads in both readings."""
    drawings = []
    for reading in map(str, data.reading.values):
        mean = data.gradient.sel(reading=reading).mean("paragraph")
        title = f"Largest |d NLL / d v| of every head, {reading} (blue = larger)"
        figure = head_heatmap(mean, title=title, unit="nats per token per unit", top=5)
        # Gradients of memorized text are too small for three digits behind the point.
        figure.update_traces(hovertemplate="%{y}%{x}: %{z:.3g}<extra></extra>")
        words = (
            f"Mean over {data.sizes['paragraph']} memorized paragraphs of the largest |gradient| at a head's values, "
            "over d_head and positions; the five largest are framed, with their rank."
        )
        drawings.append(Drawing(f"activation-gradients-{reading.replace(' ', '-')}", figure, words, wide=False))
    return drawings
