"""Several figures as one, below each other, and what stands below a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mechmem.show.theme import template

# What a figure's own place on the page decides.
OWN_PLACE = ("domain", "anchor", "matches")
GAP = 96
# Attributes of results that say where their numbers come from.
ORIGINS = ("model", "model_name", "method", "site", "paragraphs", "seed")


def stacked(title: str, figures: Sequence[go.Figure]) -> go.Figure:
    """The panels of some figures below each other, each as high as it was, with one legend above.

    Args:
        title: of the whole.
        figures: each of one panel, or of several below each other.
    """
    panels = [(figure, number) for figure in figures for number in range(1, _panels(figure) + 1)]
    heights = [_height(figure) / _panels(figure) for figure, _ in panels]
    whole = sum(heights)
    gap = min(GAP / whole, 0.8 / max(len(panels) - 1, 1)) if len(panels) > 1 else 0
    stack = make_subplots(rows=len(panels), cols=1, row_heights=heights, vertical_spacing=gap)
    layout: dict[str, Any] = {"template": template(), "title": title, "height": int(whole)}
    layout["legend"] = {"traceorder": "normal"}
    for figure in figures:
        own = figure.to_plotly_json()["layout"]
        layout |= {key: own[key] for key in ("barmode", "bargap") if key in own}
    stack.update_layout(layout)
    for row, (figure, number) in enumerate(panels, start=1):
        suffix = "" if number == 1 else str(number)
        for trace in figure.data:
            if (getattr(trace, "yaxis", None) or "y") == f"y{suffix}":
                stack.add_trace(trace, row=row, col=1)
        for kind, update in (("xaxis", stack.update_xaxes), ("yaxis", stack.update_yaxes)):
            axis = figure.layout[f"{kind}{suffix}"].to_plotly_json()
            update(row=row, col=1, **{key: value for key, value in axis.items() if key not in OWN_PLACE})
    _place_colorbars(stack)
    return stack


def origin(*results: xr.Dataset, **more: Any) -> str:
    """Where numbers come from, as the results say: "method mean, 20 paragraphs, seed 0"; empty if they do not."""
    attrs = [_origins(result.attrs) for result in results]
    # Of several results only what holds of all.
    shared = {key: value for key, value in attrs[0].items() if all(other.get(key) == value for other in attrs)}
    known = shared | more
    words = [f"{value} paragraphs" if key == "paragraphs" else f"{_said(key)} {value}" for key, value in known.items()]
    return ", ".join(words)


def _origins(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: attrs[key] for key in ORIGINS if isinstance(attrs.get(key), str | int | float)}


def _said(key: str) -> str:
    return key.removesuffix("_name")


def _panels(figure: go.Figure) -> int:
    return sum(key.startswith("yaxis") for key in figure.to_plotly_json()["layout"]) or 1


def _height(figure: go.Figure) -> float:
    return float(figure.to_plotly_json()["layout"].get("height", 420))


def _place_colorbars(stack: go.Figure) -> None:
    """Each colour bar beside its own panel, not along all of them."""
    # Plotly's attributes are made at run time.
    shown: Any = stack
    for trace in shown.data:
        if trace.type == "heatmap":
            low, high = shown.layout[f"yaxis{trace.yaxis[1:]}"].domain
            trace.colorbar.update(y=(low + high) / 2, len=high - low, yanchor="middle")
