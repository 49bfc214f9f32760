"""A figure of the repeated study, drawn from an item's arrays."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        name: of its file in `figures/`, ASCII letters and hyphens.
        figure: with a title that says what is shown and what higher means.
        reading: how to read it, and what the study's figure shows.
        wide: whether it gets the page's full width.
    """

    name: str
    figure: go.Figure
    reading: str
    wide: bool = True
