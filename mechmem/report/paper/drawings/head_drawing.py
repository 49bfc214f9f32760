"""Attention of one head to rare tokens, and of all heads."""

from __future__ import annotations

import plotly.graph_objects as go
import xarray as xr

from mechmem.report.paper.drawing import Drawing
from mechmem.show.charts.heatmap_figures import head_heatmap
from mechmem.show.theme import COLOURS, empty_figure


def draw_head(data: xr.Dataset) -> list[Drawing]:
    """Sums by rank as the study draws them, means by token, and the excess of every head."""
    title = "Attention to the rarest tenth of the prefix, above the same positions elsewhere (blue = more)"
    heads = head_heatmap(data.excess, title=title, unit="attention mass", top=3)
    return [
        Drawing(
            "attention-by-rank",
            _sums(data),
            "The study's figure 7 sums attention by rank; few paragraphs reach high ranks, so sums are lower there.",
        ),
        Drawing("attention-by-token", _means(data), "Every point is a token, with its mean over the places it has."),
        Drawing("attention-of-heads", heads, "Every head, with a control of equal position."),
    ]


def _sums(data: xr.Dataset) -> go.Figure:
    figure = empty_figure(f"Attention of {data.attrs['head']}, summed by frequency rank (as published)", 340)
    ranks = list(range(1, 1 + data.sizes["rank"]))
    figure.add_bar(x=ranks, y=data.rank_sum.values, name=data.attrs["head"], marker_color=COLOURS["memorized"])
    even = {"color": COLOURS["other"], "width": 2}
    figure.add_scatter(x=ranks, y=data.rank_sum_even.values, mode="lines", name="attention spread evenly", line=even)
    figure.update_xaxes(title="rank of the token's count in its paragraph (1 = the rarest)")
    figure.update_yaxes(title="attention, summed over paragraphs")
    return figure


def _means(data: xr.Dataset) -> go.Figure:
    figure = empty_figure(f"Mean attention of {data.attrs['head']} by token (corrected; higher = attends more)", 380)
    figure.add_scatter(
        x=1 + data.token_count.values,
        y=data.attention.values,
        mode="markers",
        marker={"color": COLOURS["memorized"], "size": 5, "opacity": 0.6},
        customdata=data.places.values,
        hovertemplate="%{y:.3f}, %{customdata} places<extra></extra>",
    )
    figure.update_xaxes(type="log", title="1 + occurrences in the corpus (log scale)")
    figure.update_yaxes(title="mean attention, 0 to 1")
    return figure
