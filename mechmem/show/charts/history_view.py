"""`show.history`: what an edit did at each step, to its targets and to other text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.intervene.loop import Stop
from mechmem.show.charts.chart import Chart
from mechmem.show.charts.figure_stack import origin
from mechmem.show.charts.history_figures import step_line
from mechmem.show.fragment import Theme
from mechmem.show.theme import edit_colour, plotly_text, template

# The measures of targets have two names: those to forget are `memorized`, those to learn `target`.
PANELS = {
    "nll": "NLL of the targets,<br>nats per token",
    "em": "EM of the targets,<br>tokens",
    "kl": "KL on other text,<br>nats per token",
}
BOUNDS = {"nll": "target_nll", "em": "target_em", "kl": "keep_kl"}
ENDS = {
    "steps": "after all steps",
    "stop rule": "by its stop rule",
    "budget": "by its budget of KL, back at the best weights",
    "diverged": "because it diverged, back at the best weights",
}
PANEL_HEIGHT, FEW_STEPS = 190, 12
CAPTION = (
    "The targets' NLL (higher: less likely) and EM (lower: fewer tokens reproduced), and how far predictions on text "
    "to keep are from the original model's (KL; higher: more damage). Each value is of the weights before that step's "
    "update, mean over the latest value of every batch; the star is the model that was returned."
)


def history(
    history: xr.Dataset | Mapping[str, xr.Dataset], *, stop: Stop | None = None, theme: Theme | str = "auto"
) -> Chart:
    """Show the steps of one edit or of several: NLL and EM of the targets, and KL on other text.

    Args:
        history: what `unlearn`, `edit` or `memorize` returned beside the model, or several by name:
            {"npo": first, "contrastive": second}.
        stop: the rule that was given to them: its bounds are drawn.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Chart`: a notebook displays it, `.figure` is plotly's, `.save("history.html")` writes it.

    Raises:
        InputError: something else than a history, a history without a step, or none at all.
    """
    check_choice("theme", theme, Theme)
    if stop is not None and not isinstance(stop, Stop):
        raise InputError(f"got {type(stop).__name__} as stop; need a mechmem.Stop, or None")
    several = history if isinstance(history, Mapping) and not isinstance(history, xr.Dataset) else {"": history}
    if not several:
        raise InputError("got no history; need at least 1, by name")
    runs = {_name(name, one): _Run(name, one) for name, one in several.items()}
    panels = [panel for panel in PANELS if any(panel in run.values for run in runs.values())]
    figure = make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    height = PANEL_HEIGHT * len(panels) + 90
    figure.update_layout(template=template(), title="Steps of an edit" if len(runs) == 1 else "Steps of edits")
    figure.update_layout(height=height, showlegend=len(runs) > 1)
    for position, (name, run) in enumerate(runs.items(), start=1):
        for row, panel in enumerate(panels, start=1):
            if panel in run.values:
                _draw(figure, run, name, panel, row, position)
    for row, panel in enumerate(panels, start=1):
        figure.update_yaxes(title=PANELS[panel], rangemode="tozero", row=row, col=1)
        bound = getattr(stop, BOUNDS[panel], None)
        if bound is not None:
            dashed = {"line": {"dash": "dash", "color": "#8b95a1", "width": 1.5}}
            figure.add_hline(y=bound, row=row, col=1, **dashed)  # pyright: ignore[reportArgumentType]
    figure.update_xaxes(title="step", rangemode="tozero", row=len(panels), col=1)
    if max(run.steps[-1] for run in runs.values()) <= FEW_STEPS:
        figure.update_xaxes(tick0=0, dtick=1)
    ends = "; ".join(run.said(name if len(runs) > 1 else "") for name, run in runs.items())
    bounds = " Dashed: the bounds of the stop rule." if stop is not None else ""
    return Chart(figure, f"{CAPTION}{bounds} {ends}.\n{origin(*several.values())}".strip(), theme)


class _Run:
    """One history: its values by panel, and where it ended."""

    def __init__(self, name: str, history: Any) -> None:
        label = f"history {name!r}" if name else "history"
        check_results(label, history, ("objective",), "unlearn")
        known = {"nll": ("memorized_nll", "target_nll"), "em": ("memorized_em", "target_em"), "kl": ("keep_kl",)}
        found = {panel: [key for key in names if key in history] for panel, names in known.items()}
        columns = {panel: names[0] for panel, names in found.items() if names}
        if "nll" not in columns or history.sizes.get("step", 0) == 0:
            raise InputError(f"got {label} without a step of its targets; need what mechmem.unlearn returned")
        self.ended = str(history.attrs.get("ended", "steps"))
        self.steps, self.end = _steps(history, self.ended)
        self.values = {panel: _values(history, column, self.ended) for panel, column in columns.items()}
        self._em = tuple(history.attrs.get(f"em_{when}") for when in ("before", "after"))

    def said(self, name: str) -> str:
        """How it ended, in words."""
        em = "" if None in self._em else f", mean EM of the targets {self._em[0]:.1f} → {self._em[1]:.1f} tokens"
        who = f"“{name}” ended" if name else "It ended"
        return f"{who} {ENDS.get(self.ended, self.ended)} (step {self.steps[self.end]}){em}"


def _name(name: Any, history: Any) -> str:
    """Of a single history, its method."""
    return str(name) or str(getattr(history, "attrs", {}).get("method", "edit"))


def _steps(history: xr.Dataset, ended: str) -> tuple[list[int], int]:
    """The steps of the line, and the place in it of the weights that were returned."""
    steps = [int(step) for step in history.step.values]
    if ended == "steps" and "final_objective" in history.attrs:
        return [*steps, steps[-1] + 1], len(steps)
    if ended in ("budget", "diverged"):
        return steps, int(np.abs(history.objective.values - history.attrs["final_objective"]).argmin())
    return steps, len(steps) - 1


def _values(history: xr.Dataset, column: str, ended: str) -> list[float]:
    values = [float(value) for value in history[column].values]
    # After all steps the weights were measured once more.
    last = "final_objective" in history.attrs and ended == "steps"
    return [*values, float(history.attrs[f"final_{column}"])] if last else values


def _draw(figure: go.Figure, run: _Run, name: str, panel: str, row: int, position: int) -> None:
    values = run.values[panel]
    group = {"legendgroup": name, "showlegend": row == 1}
    hover = f"step %{{x}}: %{{y:.4g}} {PANELS[panel].split('<br>')[1]}<extra>%{{fullData.name}}</extra>"
    figure.add_trace(step_line(run.steps, values, name, position, hovertemplate=hover, **group), row=row, col=1)
    figure.add_scatter(
        x=[run.steps[run.end]],
        y=[values[run.end]],
        name=plotly_text(name),
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": edit_colour(position), "line": {"width": 1, "color": "#ffffff"}},
        hovertemplate=f"{plotly_text(run.said(''), 200)}<br>%{{y:.4g}}<extra>%{{fullData.name}}</extra>",
        legendgroup=name,
        showlegend=False,
        cliponaxis=False,
        row=row,
        col=1,
    )
