"""Exact match of paragraphs: how many reach each, and by how often they occur."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mechmem.show.theme import COLOURS, colour, empty_figure, plotly_text, template

MOST_POINTS = 500


def em_histogram(em: xr.DataArray, *, full: int) -> go.Figure:
    """How many paragraphs reach each EM, on a logarithmic axis.

    Args:
        em: leading continuation tokens reproduced, [paragraph], 0..full; higher means more memorized.
        full: the length of the continuation: EM = full is "memorized".
    """
    counts = np.bincount(em.values.astype(int), minlength=full + 1)
    low = full // 5
    figure = empty_figure("Paragraphs by exact match", 320)
    # The same groups as of paragraphs, of the values that there are.
    spans = {name: np.flatnonzero(rows) for name, rows in groups_by_em(np.arange(full + 1), full).items()}
    names = {"other": f"other (EM ≤ {low})", "between": "between", "memorized": f"memorized (EM = {full})"}
    for name, span in spans.items():
        figure.add_bar(
            x=span.tolist(),
            y=counts[span],
            name=names[name],
            marker_color=COLOURS[name],
            hovertemplate="EM %{x}: %{y} paragraphs<extra></extra>",
        )
    # On a logarithmic axis a bar of one paragraph would have no height if the axis began at one.
    top = np.log10(max(counts.max(), 1)) + 0.15
    figure.update_layout(barmode="overlay", bargap=0.12)
    figure.update_yaxes(type="log", range=[np.log10(0.6), top], title="paragraphs (log scale)", dtick=1)
    figure.update_xaxes(title="EM, tokens (higher = more memorized)")
    return figure


def groups_by_em(em: np.ndarray, full: int) -> dict[str, np.ndarray]:
    """Which values are other (a fifth or less), between and memorized (all), as `split` divides them."""
    other, memorized = em <= full // 5, em == full
    return {"other": other, "between": ~other & ~memorized, "memorized": memorized}


def nll_by_set(nll: Mapping[str, np.ndarray]) -> go.Figure:
    """A box and all points of each set that has paragraphs.

    Args:
        nll: set -> NLL of its paragraphs, nats per token; lower means more memorized.
    """
    shown = {name: values for name, values in nll.items() if len(values)}
    figure = empty_figure("NLL of each set", max(200, 60 * len(shown) + 110))
    for position, (name, values) in enumerate(shown.items()):
        figure.add_box(
            x=values,
            y=[plotly_text(name, 28)] * len(values),
            orientation="h",
            name=plotly_text(name, 28),
            showlegend=False,
            # Every point is drawn while one can still tell them apart.
            boxpoints="all" if len(values) <= MOST_POINTS else "outliers",
            jitter=0.6,
            pointpos=0,
            marker={"size": 4, "opacity": 0.55, "color": colour(name, position)},
            line={"width": 1.5},
            hovertemplate="%{x:.3f} nats per token<extra>%{y}</extra>",
        )
    figure.update_xaxes(title="NLL, nats per token<br>(lower = more memorized)", rangemode="tozero")
    figure.update_yaxes(type="category", title="set")
    return figure


def em_by_count(em: xr.DataArray, count: xr.DataArray, *, full: int) -> go.Figure:
    """EM quartiles, and the share memorized, by how often a paragraph occurs in the training text.

    Args:
        em: [paragraph], 0..full.
        count: true number of occurrences, [paragraph]; 0 = never seen.
        full: the EM of a memorized paragraph.
    """
    labels, bins = count_bins(count.values)
    groups = [em.values[bins == number] for number in range(len(labels))]
    quartiles = np.array([np.percentile(group, [25, 50, 75]) for group in groups])
    share = np.array([100 * np.mean(group == full) for group in groups])
    size = [len(group) for group in groups]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.62, 0.38], vertical_spacing=0.09)
    figure.update_layout(template=template(), title="Exact match by number of occurrences", height=430)
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=labels, y=quartiles[:, 2], row=1, col=1, **edge)
    band = {**edge, "fill": "tonexty", "fillcolor": "rgba(31,131,196,0.22)", "name": "middle half", "showlegend": True}
    figure.add_scatter(x=labels, y=quartiles[:, 0], row=1, col=1, **band)
    hover = "%{x} occurrences: median EM %{y}<br>%{customdata} paragraphs<extra></extra>"
    line = {"line": {"color": COLOURS["memorized"], "width": 2.5}, "mode": "lines+markers", "name": "median"}
    figure.add_scatter(x=labels, y=quartiles[:, 1], row=1, col=1, customdata=size, hovertemplate=hover, **line)
    bar = {"marker_color": COLOURS["memorized"], "showlegend": False, "customdata": size}
    hover = "%{x} occurrences: %{y:.1f} % memorized<br>of %{customdata} paragraphs<extra></extra>"
    figure.add_bar(x=labels, y=share, row=2, col=1, hovertemplate=hover, **bar)
    figure.update_xaxes(type="category")
    figure.update_xaxes(title="occurrences", row=2, col=1)
    figure.update_yaxes(title="EM (tokens)", range=[-1, full + 1], row=1, col=1)
    figure.update_yaxes(title="% memorized", rangemode="tozero", row=2, col=1)
    return figure


def count_bins(count: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Labels of the occurrence groups that are not empty, and each paragraph's group; powers of two if many differ."""
    count = np.asarray(count).astype(int)
    known = np.unique(count)
    if len(known) <= 10:
        return [f"{value}" for value in known], np.searchsorted(known, count)
    exponent = np.where(count > 0, np.floor(np.log2(np.maximum(count, 1))).astype(int) + 1, 0)
    groups = np.unique(exponent)
    labels = []
    for group in groups:
        first, last = (0, 0) if group == 0 else (2 ** (group - 1), 2**group - 1)
        labels.append(f"{first}" if first == last else f"{first}–{last}")
    return labels, np.searchsorted(groups, exponent)
