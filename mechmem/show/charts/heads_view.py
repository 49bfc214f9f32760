"""`show.heads`: what happens without each head, alone or against its attention to rare tokens."""

from __future__ import annotations

from typing import Literal

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.stats import spearmanr

from mechmem.data.argument_checks import check_results
from mechmem.data.bounds import Count, checked
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.ranking import largest
from mechmem.model.head_names import head_name
from mechmem.show.charts.chart import Chart
from mechmem.show.charts.figure_stack import origin, stacked
from mechmem.show.charts.heatmap_figures import head_heatmap
from mechmem.show.fragment import Theme
from mechmem.show.theme import COLOURS, empty_figure

Change = Literal["nll_change", "em_change"]
UNITS = {"nll_change": "NLL change without the head, nats per token", "em_change": "EM change without the head, tokens"}
READING = {
    "nll_change": "Above zero, the text is less likely without the head: it is needed.",
    "em_change": "Below zero, fewer tokens are reproduced without the head: it is needed.",
}
NEEDED, NOT_NEEDED = COLOURS["memorized"], COLOURS["other"]
LEVEL, MOST_BARS = 0.05, 20


@checked
def heads(
    ablation: xr.Dataset,
    attention: xr.Dataset | None = None,
    *,
    measure: Change | str = "nll_change",
    top: Count = 3,
    theme: Theme | str = "auto",
) -> Chart:
    """Show how much each head is needed: a grid and the strongest heads, or against attention to rare tokens.

    Args:
        ablation: what `ablate_heads` returned.
        attention: what `rare_token_attention` returned: each head is then a point, further right the more it attends
            to rare tokens; None: the effects alone.
        measure: "nll_change" (nats per token) or "em_change" (tokens).
        top: so many heads that are needed most, and as many that attend to rare tokens most, are named in the chart;
            pointing at a head always names it.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Chart`: a notebook displays it, `.figure` is plotly's, `.save("heads.html")` writes it.

    Raises:
        InputError: other kinds of results, results of different heads, or no head that was ablated.
    """
    check_choice("theme", theme, Theme)
    check_choice("measure", measure, Change)
    check_results("ablation", ablation, ("nll_change", "em_change"), "ablate_heads")
    both = ablation[["nll_change", "em_change"]]
    both = both.mean("paragraph") if "paragraph" in both.dims else both
    if not np.isfinite(both[measure].values).any():
        raise InputError("got an ablation of no head; need at least one head that mechmem.ablate_heads ablated")
    if attention is None:
        return Chart(_alone(both, measure), _caption(ablation, None, measure), theme)
    check_results("attention", attention, ("excess", "p_value", "spearman"), "rare_token_attention")
    ours, theirs = ({dim: each.sizes.get(dim) for dim in ("layer", "head")} for each in (both, attention))
    if ours != theirs:
        raise InputError(f"got an ablation of {ours} and attention of {theirs}; need the same model's heads")
    points = _points(both, attention)
    rho = f"{_correlation(points, measure):.2f}".replace("-", "−")
    return Chart(_against(points, measure, top), _caption(ablation, attention, measure, rho), theme)


def _caption(ablation: xr.Dataset, attention: xr.Dataset | None, measure: str, rho: str = "") -> str:
    said = f"{UNITS[measure]}. {READING[measure]}"
    if attention is not None:
        said = (
            f"One point is a head. Up and down: {said} Right: more attention on the rarest tenth of the prefix's "
            "tokens than other paragraphs give to the same positions, in percentage points; p-values are corrected "
            f"over heads. Over all heads, the two axes have Spearman's correlation {rho}."
        )
    else:
        said = f"{said} Blue: needed; orange: the text is reproduced better without it."
    return f"{said}\n{origin(ablation)}".strip()


def _alone(both: xr.Dataset, measure: str) -> go.Figure:
    unit = "nats per token" if measure == "nll_change" else "tokens"
    blue = "highest" if measure == "nll_change" else "lowest"
    values = both[measure]
    grid = head_heatmap(values, title="", unit=unit, blue=blue)
    flat = values.transpose("layer", "head").values.ravel()
    order = largest(np.abs(flat), min(MOST_BARS, int(np.isfinite(flat).sum())))
    chosen = [head_name(divmod(int(place), values.sizes["head"])) for place in order][::-1]
    shown = flat[order][::-1]
    needed = shown > 0 if measure == "nll_change" else shown < 0
    bars = empty_figure("", max(220, 20 * len(chosen) + 110))
    bars.add_bar(
        x=shown,
        y=chosen,
        orientation="h",
        marker_color=np.where(needed, NEEDED, NOT_NEEDED).tolist(),
        showlegend=False,
        hovertemplate="%{y}: %{x:.4g} " + unit + "<extra></extra>",
    )
    bars.update_xaxes(title=UNITS[measure], zeroline=True)
    bars.update_yaxes(type="category", dtick=1, title="strongest heads")
    return stacked("How much each head is needed", [grid, bars])


def _points(both: xr.Dataset, attention: xr.Dataset) -> dict[str, np.ndarray]:
    """A value of each head that was ablated, all heads of layer 0 first."""
    shared = {name: both[name] for name in ("nll_change", "em_change")}
    shared |= {name: attention[name] for name in ("excess", "p_value", "spearman")}
    flat = {name: values.transpose("layer", "head").values.ravel().astype(float) for name, values in shared.items()}
    names = [head_name(place) for place in np.ndindex(both.sizes["layer"], both.sizes["head"])]
    known = np.isfinite(flat["nll_change"])
    return {"name": np.array(names)[known]} | {name: values[known] for name, values in flat.items()}


def _correlation(points: dict[str, np.ndarray], measure: str) -> float:
    needed = points[measure] if measure == "nll_change" else -points[measure]
    if len(needed) < 3 or len(set(needed)) < 2 or len(set(points["excess"])) < 2:
        return float("nan")
    return float(spearmanr(points["excess"], needed)[0])  # pyright: ignore


def _against(points: dict[str, np.ndarray], measure: str, top: int) -> go.Figure:
    needed = points[measure] if measure == "nll_change" else -points[measure]
    named = {*largest(needed, top).tolist(), *largest(points["excess"], top).tolist()}
    rare = points["p_value"] < LEVEL
    figure = empty_figure("Being needed against attention to rare tokens", 480)
    for words, chosen, colour, symbol in (
        ("others", ~rare, COLOURS["between"], "circle"),
        (f"attends to rare tokens (p < {LEVEL})", rare, NEEDED, "diamond"),
    ):
        places = np.flatnonzero(chosen)
        columns = ("nll_change", "em_change", "excess", "p_value", "spearman")
        figure.add_scatter(
            x=100 * points["excess"][places],
            y=points[measure][places],
            text=[points["name"][place] if place in named else "" for place in places],
            customdata=[[points["name"][place], *(float(points[key][place]) for key in columns)] for place in places],
            mode="markers+text",
            textposition="top center",
            name=words,
            cliponaxis=False,
            marker={"size": 9, "color": colour, "symbol": symbol, "opacity": 0.85},
            hovertemplate="<b>%{customdata[0]}</b><br>without it: NLL %{customdata[1]:+.4g} nats per token, "
            "EM %{customdata[2]:+.3g} tokens<br>attention on the rarest tenth: %{x:+.2f} percentage points over "
            "others' at the same positions<br>p = %{customdata[4]:.3g}, Spearman %{customdata[5]:.2f}<extra></extra>",
        )
    figure.update_xaxes(title="excess attention to rare tokens,<br>percentage points", zeroline=True)
    figure.update_yaxes(title=UNITS[measure], zeroline=True)
    return figure
