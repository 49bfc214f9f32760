"""Figures of a study: from labelled arrays to plotly. Every title or axis says the unit and what higher means."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.show.theme import COLOURS, SYMBOLS, colour, edit_colour, empty_figure, plotly_text


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
