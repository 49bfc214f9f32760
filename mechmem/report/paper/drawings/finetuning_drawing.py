"""The table of sparse fine-tuning as bars."""

from __future__ import annotations

import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.theme import COLOURS, empty_figure

NAMES = {"memorized": "targets, own text", "other": "other paragraphs, the model's text before"}


def draw_finetuning(data: xr.Dataset) -> list[Drawing]:
    """EM of targets and of other paragraphs after every edit, one figure for each reading."""
    drawings = []
    for reading in data.reading.values:
        figure = empty_figure(f"EM after fine-tuning ({reading}; targets lower = more is gone)", 380)
        places = [[str(task) for task in data.task.values for _ in data.weights.values], list(data.weights.values) * 2]
        for name, label in NAMES.items():
            mean, low, high = (
                data[f"em_{name}{end}"].sel(reading=reading).transpose("task", "weights").values.ravel()
                for end in ("", "_low", "_high")
            )
            figure.add_bar(
                x=places,
                y=mean,
                name=label,
                marker_color=COLOURS[name],
                error_y={"type": "data", "array": high - mean, "arrayminus": mean - low, "thickness": 1.2},
                hovertemplate="%{x}: %{y:.1f} tokens<extra>%{fullData.name}</extra>",
            )
        figure.update_layout(barmode="group")
        figure.update_yaxes(title="mean EM, tokens, with 95 % intervals by cluster")
        said = "The study's table 1: all weights, those with the largest gradients, and as many random ones."
        drawings.append(Drawing(f"finetuning-{str(reading).replace(' ', '-')}", figure, said))
    return drawings
