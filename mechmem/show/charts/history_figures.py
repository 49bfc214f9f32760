"""What happened at each step of an edit, as lines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.show.theme import edit_colour, empty_figure, plotly_text


def step_line(steps: Sequence[int], values: Sequence[float], name: str, position: int, **more: Any) -> go.Scatter:
    """The line of one edit.

    Args:
        steps: 0 is before the first update.
        values: one for each step.
        name: of the edit.
        position: among the edits; 0 is the original model's.
        more: of plotly's scatter.
    """
    line = {"color": edit_colour(position), "width": 2.5}
    return go.Scatter(x=steps, y=values, name=plotly_text(name), mode="lines+markers", line=line, **more)


def nll_history(nll: xr.DataArray) -> go.Figure:
    """NLL of the targets at each step, [edit, step], in nats per token; edits without a history are left out."""
    figure = empty_figure("NLL of the targets while unlearning (higher = more forgotten)", 380)
    for position, edit in enumerate(nll.edit.values):
        values = nll.sel(edit=edit).values
        known = np.isfinite(values)
        if known.any():
            figure.add_trace(step_line(nll.step.values[known].tolist(), values[known].tolist(), str(edit), position))
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="NLL, nats per token", rangemode="tozero")
    return figure
