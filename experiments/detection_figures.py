"""Figures of the detection page."""

from typing import Any

import plotly.graph_objects as go
from detection_compare import BEST, KS

SHOWN = (BEST, "output", "output + prefix", "output + residual", "output + prefix + residual", "text alone")
COLOURS = ("#767676", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7")


def _layout(figure: go.Figure, x: str, y: str) -> go.Figure:
    figure.update_layout(template="simple_white", width=900, height=480, font={"size": 14}, margin={"t": 30, "r": 20})
    figure.update_xaxes(title=x)
    return figure.update_yaxes(title=y)


def by_step(compared: dict[str, Any]) -> go.Figure:
    """Share of recitations flagged at a false-alarm rate of 1 %, against own tokens said, on the matched set."""
    figure, places = go.Figure(), list(range(len(KS)))
    for name, colour in zip(SHOWN, COLOURS, strict=True):
        if name not in compared:
            continue
        values = [compared[name]["TPR at 1 %"][str(k)] for k in KS]
        middle, low, high = (list(column) for column in zip(*values, strict=True))
        bars = {
            "type": "data", "symmetric": False, "thickness": 1,
            "array": [top - value for top, value in zip(high, middle, strict=True)],
            "arrayminus": [value - bottom for value, bottom in zip(middle, low, strict=True)],
        }  # fmt: skip
        figure.add_scatter(x=places, y=middle, name=name, mode="lines+markers", line={"color": colour}, error_y=bars)
    figure.update_xaxes(tickvals=places, ticktext=[str(k) for k in KS])
    figure.update_layout(legend={"x": 0.98, "y": 0.05, "xanchor": "right", "yanchor": "bottom"})
    return _layout(figure, "own tokens said, k", "share of recitations flagged at 1 % false alarms")


def by_depth(compared: dict[str, Any], measure: str = "AUROC") -> go.Figure:
    """What the residual stream alone knows, by depth, one line for each step, on the matched set."""
    names = [name for name in compared if name.startswith("residual, depth")]
    figure = go.Figure()
    for at, k in enumerate(KS):
        values = [compared[name][measure][str(k)] for name in names]
        shade = f"hsl(210, 70%, {75 - 9 * at}%)"
        figure.add_scatter(
            x=[int(name.split()[-1]) for name in names], y=[value[0] for value in values], name=f"k = {k}",
            mode="lines+markers", line={"color": shade, "width": 2},
        )  # fmt: skip
    return _layout(figure, "depth of the residual stream (0: the embedding; 6: the end of the body)", measure)


def by_kind(bound: dict[str, Any], rate: float) -> go.Figure:
    """Share of other texts flagged within a generation, kind by kind, each kind held out."""
    figure = go.Figure()
    for name, colour in zip(SHOWN[1:5], COLOURS[1:5], strict=True):
        if name in bound:
            kinds = bound[name]["by kind"]
            shares = [100 * alarms / max(1, count) for alarms, count in kinds.values()]
            figure.add_bar(x=list(kinds), y=shares, name=name, marker_color=colour)
    figure.add_hline(
        y=100 * rate, line={"dash": "dot", "color": "#000", "width": 2}, annotation_text="bound", layer="above"
    )
    figure.update_layout(barmode="group", legend={"x": 0.98, "y": 0.98, "xanchor": "right"})
    return _layout(figure, "kind held out", "generations with a false alarm, %")
