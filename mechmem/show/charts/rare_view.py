"""`show.rare_tokens`: one head's attention against how rare the tokens are, beside its controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.ranking import largest
from mechmem.model.head_names import head_name, parsed_heads
from mechmem.show.charts.chart import Chart
from mechmem.show.charts.figure_stack import origin, stacked
from mechmem.show.colour_scale import FRAME
from mechmem.show.fragment import Theme
from mechmem.show.theme import COLOURS, colour, empty_figure

NEEDED = ("tenth_mass", "tenth_expected", "excess", "p_value", "spearman")
# What else a head may do that looks like attention to rare tokens.
OTHER_JOBS = {"previous_token": "the previous token", "duplicate_token": "equal tokens", "induction": "induction"}
LEVEL = 0.05


def rare_tokens(rare: xr.Dataset, *, head: tuple[int, int] | str | None = None, theme: Theme | str = "auto") -> Chart:
    """Show how a head's attention depends on the corpus frequency of tokens, with what is expected without rarity.

    Above: its attention to each tenth of a paragraph's prefix tokens, from the rarest to the most frequent, and what
    other paragraphs give to the same positions: a head that looks at positions and not at rarity has both alike. Below:
    all heads by their excess on the rarest tenth. Of a head's report also: the NLL without the head, and without its
    attention to rare and to frequent tokens.

    Args:
        rare: what `rare_token_attention` or `head_report` returned.
        head: a name ("L1H2") or a (layer, head) pair; None: the head of the report, or the one with the largest excess.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Chart`: a notebook displays it, `.figure` is plotly's, `.save("rare.html")` writes it.

    Raises:
        InputError: another kind of result, or a head that it lacks.
    """
    check_choice("theme", theme, Theme)
    check_results("rare", rare, NEEDED, "rare_token_attention")
    sets = [str(name) for name in rare["set"].values] if "set" in rare.dims else [""]
    first = rare.sel(set=sets[0]) if sets[0] else rare
    layer, number = _chosen(rare, first, head)
    name = head_name((layer, number))
    own = rare[[*NEEDED]].sel(layer=layer, head=number)
    panels = [_by_tenth(own, sets), _all_heads(first, (layer, number))]
    if "nll_mean" in rare and rare.attrs.get("head") == name:
        panels.append(_without(rare))
    said = _said(first, layer, number)
    caption = (
        f"Attention of {name} when the continuation begins, on each tenth of the prefix's tokens by corpus count. "
        "Bars: the head; lines: what the other paragraphs give to the same positions. Excess: the difference at the "
        f"rarest tenth, in percentage points; higher means more attention to rare tokens. {said}"
    )
    return Chart(stacked(f"{name} and rare tokens", panels), f"{caption}\n{origin(rare)}".strip(), theme)


def _chosen(rare: xr.Dataset, first: xr.Dataset, head: Any) -> tuple[int, int]:
    if head is None and "head" not in rare.attrs:
        flat = first.excess.transpose("layer", "head").values.ravel()
        layer, number = divmod(int(largest(flat, 1)[0]), first.sizes["head"])
        return layer, number
    wanted = rare.attrs["head"] if head is None else head
    pair = parsed_heads([wanted])[0]
    if pair is None or not (0 <= pair[0] < rare.sizes["layer"] and 0 <= pair[1] < rare.sizes["head"]):
        last = head_name((rare.sizes["layer"] - 1, rare.sizes["head"] - 1))
        raise InputError(f"got head {wanted!r:.60}; need a name such as 'L0H0', or a pair, of heads up to {last}")
    return pair


def _said(rare: xr.Dataset, layer: int, number: int) -> str:
    """The head's numbers, and what else it does, in words."""
    own = rare.sel(layer=layer, head=number)
    higher = int((rare.excess > own.excess).sum()) + 1
    words = [
        f"Excess {_signed(100 * float(own.excess), 1)} points, number {higher} of {rare.excess.size} heads, "
        f"p = {float(own.p_value):.2g} (corrected over heads); rank correlation with frequency "
        f"{_signed(float(own.spearman), 2)}."
    ]
    jobs = [f"{said} {100 * float(own[key]):.0f} %" for key, said in OTHER_JOBS.items() if key in own]
    if jobs:
        words.append(f"What else it attends to, over all queries: {', '.join(jobs)}.")
    return " ".join(words).replace("nan %", "unknown")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _by_tenth(own: xr.Dataset, sets: list[str]) -> go.Figure:
    """Bars of the head, lines of the control, of each set."""
    figure = empty_figure("", 330)
    for position, name in enumerate(sets):
        one = own.sel(set=name) if name else own
        shown, ink = f"{name}: " if name else "", colour(name or "memorized", position)
        counts = one.tenth_count.values
        shared = {"x": _labels(own), "customdata": counts}
        figure.add_bar(
            y=100 * one.tenth_mass.values,
            name=f"{shown}this head",
            marker_color=ink,
            hovertemplate="tenth %{x}: %{y:.2f} % of its attention<br>median count %{customdata:,.0f}"
            "<extra>%{fullData.name}</extra>",
            **shared,
        )
        figure.add_scatter(
            y=100 * one.tenth_expected.values,
            name=f"{shown}expected",
            mode="lines+markers",
            line={"color": COLOURS["between"], "width": 2, "dash": "dash" if position else "solid"},
            hovertemplate="tenth %{x}: %{y:.2f} % expected<extra>%{fullData.name}</extra>",
            **shared,
        )
    figure.update_layout(barmode="group")
    title = "tenth of the prefix's tokens, rarest first<br>(below: median corpus count)"
    figure.update_xaxes(type="category", tickangle=0, title=title)
    figure.update_yaxes(title="attention, %", rangemode="tozero")
    return figure


def _labels(own: xr.Dataset) -> list[str]:
    """Number and median count of each tenth, of the first set."""
    counts = own.tenth_count
    counts = counts.isel(set=0) if "set" in counts.dims else counts
    # Some counts only: on a phone all would overlap.
    said = [_short(count) if tenth % 3 == 0 else "" for tenth, count in enumerate(counts.values)]
    return [f"{tenth + 1}<br>{count}" for tenth, count in enumerate(said)]


def _short(count: float) -> str:
    if not np.isfinite(count):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2g}{letter}"
    return f"{count:.0f}"


def _all_heads(rare: xr.Dataset, chosen: tuple[int, int]) -> go.Figure:
    """Every head's excess, from the largest; those that are significant have another shape."""
    columns = [rare[key].transpose("layer", "head").values.ravel() for key in ("excess", "p_value", "spearman")]
    excess, p, spearman = columns
    order = largest(excess, len(excess))
    names = [head_name(divmod(int(place), rare.sizes["head"])) for place in order]
    own = names.index(head_name(chosen))
    figure = empty_figure("", 300)
    figure.add_scatter(
        x=np.arange(1, len(order) + 1),
        y=100 * excess[order],
        mode="markers+text",
        text=[name if rank in (0, own) else "" for rank, name in enumerate(names)],
        # The last heads' labels would leave the chart on the right.
        textposition=["middle left" if 2 * rank > len(names) else "middle right" for rank in range(len(names))],
        customdata=list(zip(names, p[order].tolist(), spearman[order].tolist(), strict=True)),
        marker={
            "size": [13 if rank == own else 8 for rank in range(len(names))],
            "symbol": ["diamond" if value < LEVEL else "circle" for value in p[order]],
            "color": [FRAME if rank == own else COLOURS["between"] for rank in range(len(names))],
        },
        cliponaxis=False,
        showlegend=False,
        hovertemplate="<b>%{customdata[0]}</b>, number %{x}<br>excess %{y:+.2f} percentage points<br>"
        "p = %{customdata[1]:.3g}, Spearman %{customdata[2]:.2f}<extra></extra>",
    )
    figure.update_xaxes(title=f"heads by excess (diamond: p < {LEVEL})", zeroline=False)
    figure.update_yaxes(title="excess, points", zeroline=True)
    return figure


def _without(report: xr.Dataset) -> go.Figure:
    """NLL without the head, and without parts of what it does, with intervals."""
    mean, low, high = (report[key].values for key in ("nll_mean", "nll_low", "nll_high"))
    names = [f"its {test}" for test in report.test.values]
    figure = empty_figure("", 60 + 34 * len(names) + 60)
    figure.add_bar(
        x=mean[::-1],
        y=names[::-1],
        orientation="h",
        marker_color=[COLOURS["memorized"] if value > 0 else COLOURS["other"] for value in mean[::-1]],
        error_x={"array": (high - mean)[::-1], "arrayminus": (mean - low)[::-1], "thickness": 1.2, "color": "#6b7682"},
        showlegend=False,
        hovertemplate="without %{y}: %{x:+.4g} nats per token<extra></extra>",
    )
    figure.update_xaxes(title="NLL change of memorized text,<br>nats per token (higher = needed)", zeroline=True)
    figure.update_yaxes(type="category", title="without")
    return figure
