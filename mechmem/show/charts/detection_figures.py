"""What a detector finds at each token, beside the free baselines, and what its scores are worth."""

from __future__ import annotations

from typing import Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.show.theme import COLOURS, EDIT_COLOURS, empty_figure, plotly_text

Measure = Literal["tpr_at_1", "tpr_at_01", "auroc"]
MEASURES = {
    "tpr_at_1": ("Recitations found at 1 % false alarms", "share found, %", 100),
    "tpr_at_01": ("Recitations found at 0.1 % false alarms", "share found, %", 100),
    "auroc": ("Area under the ROC curve", "AUROC", 1),
}
DETECTORS = (COLOURS["memorized"], "#12a17c", "#8d6fc9")
# Of the baselines: colours and dashes in turn, so that no two lines are alike.
OTHERS = (COLOURS["other"], *EDIT_COLOURS[4:], "#7a8691")
TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
# What the baselines of `evaluate_detector` are called where people read them.
NAMES = {
    "top_1": "top-1 probability",
    "margin": "logit margin",
    "entropy": "entropy",
    "nll": "running NLL",
    "mink": "MinK%",
    "minkpp": "MinK%++",
    "zlib": "zlib ratio",
    "distinct": "repetition",
    "rarity": "token rarity",
    "ngrams": "n-gram counts",
    "prefix_nll": "prefix NLL",
    "prefix_mink": "prefix MinK%",
    "prefix_minkpp": "prefix MinK%++",
    "prefix_rarity": "prefix rarity",
}
DASHES = ("dash", "dot", "dashdot", "longdash")


def measure_by_k(evaluation: xr.Dataset, measure: Measure | str = "tpr_at_1") -> go.Figure:
    """A line for each method: the detector with the area of its interval, baselines dashed; hovering says all of them.

    Args:
        evaluation: what `evaluate_detector` returned: the measure and its `_low` and `_high`, [method, k]; `kind` says
            which methods are detectors.
        measure: which of them is shown; higher means more found.
    """
    title, axis, factor = MEASURES[measure]
    figure = empty_figure(f"{title} (higher = more found)", 460)
    ks = evaluation.k.values.astype(int)
    # Logarithmic, so that the first tokens, where it matters, have room; k = 0 is there as well.
    places = ks + 1
    detectors = is_detector(evaluation)
    best = best_baseline(evaluation, measure)
    ours = others = 0
    # What is drawn last is on top: the detectors.
    for row in [*np.flatnonzero(~detectors), *np.flatnonzero(detectors)]:
        name = plotly_text(method_name(evaluation.method.values[row]))
        values, low, high = (
            factor * evaluation[f"{measure}{end}"].transpose("method", "k").values[row].astype(float)
            for end in ("", "_low", "_high")
        )
        if not np.isfinite(values).any():
            continue
        if detectors[row]:
            line = {"color": DETECTORS[ours % len(DETECTORS)], "width": 3.5, "dash": "solid"}
            ours += 1
        else:
            line = {"color": OTHERS[others % len(OTHERS)], "width": 1.6, "dash": DASHES[others % len(DASHES)]}
            others += 1
        if detectors[row] or str(evaluation.method.values[row]) == best:
            _area(figure, places, low, high, str(line["color"]), name)
        figure.add_scatter(
            x=places,
            y=values,
            name=name,
            legendgroup=name,
            legendrank=1 if detectors[row] else 2,
            mode="lines+markers",
            line=line,
            marker={"size": 7 if detectors[row] else 5},
            customdata=np.stack([low, high, ks], 1),
            hovertemplate="after %{customdata[2]:d} tokens: %{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})"
            "<extra>%{fullData.name}</extra>",
        )
    shown = [k for k in TICKS if ks.min(initial=0) <= k <= ks.max(initial=0)]
    ticks = {"tickvals": [k + 1 for k in shown], "ticktext": [str(k) for k in shown]}
    figure.update_xaxes(title="k, own tokens said so far", type="log", **ticks)
    figure.update_yaxes(title=axis, range=[0, 1.04 * factor] if factor > 1 else None)
    # A dozen methods take several lines, which would lie on the title.
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
    return figure


def reliability(evaluation: xr.Dataset) -> go.Figure:
    """How often the model recites among steps of about one score, against that score; the diagonal is perfect.

    Both are at even odds: as if recitations and other text were equally frequent.

    Args:
        evaluation: what `evaluate_detector` returned: `predicted`, `observed` with `_low` and `_high`, and `in_bin`,
            [method, bin]; of detectors.
    """
    figure = empty_figure("What a score is worth (on the diagonal = as said)", 380)
    figure.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", showlegend=False, hoverinfo="skip",
        line={"color": COLOURS["between"], "dash": "dot", "width": 1.5},
    )  # fmt: skip
    for position, place in enumerate(np.flatnonzero(is_detector(evaluation))):
        one = evaluation.isel(method=place)
        known = np.flatnonzero(one.in_bin.values > 0)
        predicted, observed, low, high = (
            100 * one[name].values[known].astype(float)
            for name in ("predicted", "observed", "observed_low", "observed_high")
        )
        mass = 100 * one.in_bin.values[known].astype(float)
        figure.add_scatter(
            x=predicted,
            y=observed,
            name=plotly_text(one.method.item()),
            mode="lines+markers",
            line={"color": DETECTORS[position % len(DETECTORS)], "width": 2},
            marker={"size": 6 + 14 * np.sqrt(mass / max(mass.max(initial=0), 1e-9))},
            error_y={"array": high - observed, "arrayminus": observed - low, "thickness": 1.2, "color": "#6b7682"},
            customdata=np.stack([low, high, mass], 1),
            hovertemplate="score %{x:.1f} %: recited %{y:.1f} % (%{customdata[0]:.1f} to %{customdata[1]:.1f} %)<br>"
            "%{customdata[2]:.0f} % of the scores<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title="score: probability said by the detector, %<br>(at even odds)", range=[-3, 103])
    figure.update_yaxes(title="observed: the model recites, %", range=[-3, 103])
    return figure


def method_name(name: object) -> str:
    """A detector's own name, or what a baseline is called in words."""
    return NAMES.get(str(name), str(name))


def is_detector(evaluation: xr.Dataset) -> np.ndarray:
    """Which methods are detectors, [method]; the others are baselines."""
    return evaluation.kind.values.astype(str) == "detector"


def best_baseline(evaluation: xr.Dataset, measure: str, k: int | None = None) -> str | None:
    """The baseline with the highest value at k, or on the mean over k; None: there is none."""
    values = evaluation[measure].isel(method=~is_detector(evaluation))
    values = values.mean("k") if k is None else values.sel(k=k)
    finite = np.where(np.isfinite(values.values), values.values, -np.inf)
    return None if not np.isfinite(finite).any() else str(values.method.values[int(finite.argmax())])


def _area(figure: go.Figure, places: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, group: str) -> None:
    """An interval at each k, light behind its line."""
    known = np.isfinite(low) & np.isfinite(high)
    inside = places[known]
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": group}
    figure.add_scatter(x=inside, y=high[known], **edge)
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    figure.add_scatter(x=inside, y=low[known], fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.16)", **edge)
