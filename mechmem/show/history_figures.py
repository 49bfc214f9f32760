"""What happened at each step of an edit, as lines."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.show.theme import edit_colour, empty_figure, plotly_text


def nll_history(nll: xr.DataArray) -> go.Figure:
    """NLL of the targets at each step, [edit, step], in nats per token; edits without a history are left out."""
    figure = empty_figure("NLL of the targets while unlearning (higher = more forgotten)", 380)
    for position, edit in enumerate(nll.edit.values):
        values = nll.sel(edit=edit).values
        known = np.isfinite(values)
        if known.any():
            line = {"color": edit_colour(position), "width": 2.5}
            steps = {"x": nll.step.values[known], "y": values[known], "name": plotly_text(edit)}
            figure.add_scatter(**steps, mode="lines+markers", line=line)
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="NLL, nats per token", rangemode="tozero")
    return figure
