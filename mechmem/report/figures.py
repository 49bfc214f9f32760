"""Figures of a study: from labelled arrays to plotly. Every title or axis says the unit and what higher means."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mechmem.show.theme import COLOURS, colour, edit_colour, empty_figure, plotly_text, template

# A shape as well as a colour for each edit, for readers who cannot tell the colours apart.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star")


def em_histogram(em: xr.DataArray, *, full: int) -> go.Figure:
    """How many paragraphs reach each EM, on a logarithmic axis.

    Args:
        em: leading continuation tokens reproduced, [paragraph], 0..full; higher means more memorized.
        full: the length of the continuation: EM = full is "memorized".
    """
    counts = np.bincount(em.values.astype(int), minlength=full + 1)
    low = full // 5
    figure = empty_figure("Paragraphs by exact match", 320)
    spans = {"other": range(low + 1), "between": range(low + 1, full), "memorized": range(full, full + 1)}
    names = {"other": f"other (EM ≤ {low})", "between": "between", "memorized": f"memorized (EM = {full})"}
    for name, span in spans.items():
        figure.add_bar(
            x=list(span),
            y=counts[list(span)],
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


def memorized_by_kind(share: xr.DataArray, size: xr.DataArray) -> go.Figure:
    """Percent of each kind of document that is memorized.

    Args:
        share: percent memorized, [source]; higher means this kind is memorized more often.
        size: paragraphs of the kind, [source].
    """
    order = np.argsort(share.values, kind="stable")[-16:]
    labels = [plotly_text(name, 28) for name in share.source.values[order]]
    sizes = [f"{n}" for n in size.values[order].astype(int)]
    figure = empty_figure("Memorized share by kind of document", max(240, 30 * len(order) + 90))
    figure.add_bar(
        y=labels,
        x=share.values[order],
        orientation="h",
        marker_color=COLOURS["memorized"],
        customdata=sizes,
        text=[f"{value:.1f} %" for value in share.values[order]],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} % of %{customdata} paragraphs<extra></extra>",
    )
    figure.update_xaxes(title="% memorized (longer = more)", range=[0, 1.18 * max(share.max(), 1)])
    figure.update_yaxes(type="category")
    return figure


def layer_shares(share: xr.DataArray) -> go.Figure:
    """Each layer's percent of the set's gradient total, [set, layer]; the bars of a set add up to 100."""
    figure = empty_figure("Each layer's share of the gradient", 320)
    for position, name in enumerate(share.set.values):
        figure.add_bar(
            x=[f"L{layer}" for layer in share.layer.values],
            y=100 * share.sel(set=name).values,
            name=plotly_text(name),
            marker_color=colour(str(name), position),
            hovertemplate="%{x}: %{y:.1f} %<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(type="category", title="layer")
    figure.update_yaxes(title="share of the set's total, %")
    return figure


def em_intervals(unlearned: xr.Dataset) -> go.Figure:
    """Mean EM of every set in the original and after each edit, with the 95 % intervals `em_low` and `em_high`."""
    figure = empty_figure("Mean exact match before and after unlearning (higher = more reproduced)", 380)
    sets = [plotly_text(name) for name in unlearned.set.values]
    for position, edit in enumerate(unlearned.edit.values):
        row = unlearned.sel(edit=edit)
        mean = row.em.values
        figure.add_bar(
            x=sets,
            y=mean,
            name=plotly_text(edit),
            marker_color=edit_colour(position),
            error_y={
                "array": row.em_high.values - mean,
                "arrayminus": mean - row.em_low.values,
                "thickness": 1.2,
                "color": "#6b7682",
            },
            hovertemplate="%{x}: %{y:.1f} tokens<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(type="category")
    figure.update_yaxes(title="mean EM, tokens", rangemode="tozero")
    return figure


def trade_off(unlearned: xr.Dataset, *, target: str, keep: str) -> go.Figure:
    """What each edit removed against what it cost: change of the target's EM (up) and KL on text to keep (right).

    Down and left is the best corner. The first point is the original model, at the origin.
    """
    change = unlearned.em - unlearned.em.isel(edit=0)
    figure = empty_figure("What was removed (lower = more) against its cost (right)", 380)
    for position, edit in enumerate(unlearned.edit.values):
        cost = unlearned.kl.sel(edit=edit, set=keep)
        figure.add_scatter(
            x=[float(cost)],
            y=[float(change.sel(edit=edit, set=target))],
            mode="markers",
            name=plotly_text(edit),
            marker={
                "size": 15,
                "symbol": SYMBOLS[position % len(SYMBOLS)],
                "color": edit_colour(position),
                "line": {"width": 1, "color": "rgba(255,255,255,0.7)"},
            },
            hovertemplate="EM change of the targets: %{y:.2f} tokens<br>KL on other text: %{x:.3f} nats per token"
            "<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="KL on other text, nats per token", zeroline=True)
    figure.update_yaxes(title="EM change of the targets, tokens", zeroline=True)
    return figure


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


def stage_timings(seconds: Mapping[str, float]) -> go.Figure:
    """Wall time of each stage in seconds, in the order in which the stages ran."""
    names = [plotly_text(name) for name in seconds][::-1]
    values = [float(value) for value in seconds.values()][::-1]
    figure = empty_figure("Time by stage", max(200, 30 * len(names) + 90))
    figure.add_bar(
        y=names,
        x=values,
        orientation="h",
        marker_color=COLOURS["between"],
        text=[f"{value:.3g} s" for value in values],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} s<extra></extra>",
    )
    figure.update_xaxes(title="seconds", range=[0, 1.15 * max([*values, 1e-3])])
    figure.update_yaxes(type="category")
    return figure
