"""`show.scores`: exact match and NLL of paragraphs, by set and by count."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.data.argument_checks import check_paragraphs, check_results, check_sets
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.show.charts.chart import Chart
from mechmem.show.charts.figure_stack import origin, stacked
from mechmem.show.charts.score_figures import em_by_count, em_histogram, groups_by_em, nll_by_set
from mechmem.show.fragment import Theme


def scores(
    scores: xr.Dataset,
    paragraphs: Paragraphs | None = None,
    *,
    sets: Mapping[str, Paragraphs] | None = None,
    theme: Theme | str = "auto",
) -> Chart:
    """Show how many paragraphs reach each exact match, the NLL of each set, and both by how often a text occurs.

    Args:
        scores: what `score` returned.
        paragraphs: some or all of the paragraphs that were scored; with a column `count`, exact match by count is
            shown, too. None: all that were scored.
        sets: name -> paragraphs whose NLL is shown; None: memorized (EM is whole), other (a fifth or less), between.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Chart`: a notebook displays it, `.figure` is plotly's, `.save("scores.html")` writes it.

    Raises:
        InputError: other kinds of arguments, or scores that do not know a paragraph.
    """
    check_choice("theme", theme, Theme)
    check_results("scores", scores, ("em", "nll", "match"), "score")
    own = scores
    if paragraphs is not None:
        check_paragraphs("paragraphs", paragraphs)
        own = aligned(scores, paragraphs)
    if own.sizes["paragraph"] == 0:
        raise InputError("got scores of no paragraph; need at least 1")
    full = own.sizes["pos"]
    panels: list[go.Figure] = [em_histogram(own.em, full=full), nll_by_set(_nll(scores, own, sets, full))]
    caption = (
        f"Exact match (EM): leading continuation tokens that the model reproduces, of {full}; higher means more "
        "memorized. NLL: mean over the continuation, nats per token; lower means more memorized; the line in a box is "
        "the median, the box the middle half."
    )
    if paragraphs is not None and paragraphs.has("count"):
        count = xr.DataArray(paragraphs.column("count"), dims="paragraph")
        panels.append(em_by_count(own.em, count, full=full))
        caption += " Below, EM and the share memorized by how often a paragraph occurs in the training text."
    said = origin(scores) or f"{own.sizes['paragraph']} paragraphs"
    return Chart(stacked("Exact match and NLL", panels), f"{caption}\n{said}", theme)


def _nll(
    scores: xr.Dataset, own: xr.Dataset, sets: Mapping[str, Paragraphs] | None, full: int
) -> dict[str, np.ndarray]:
    """NLL of each set's paragraphs."""
    if sets is None:
        return {name: own.nll.values[rows] for name, rows in groups_by_em(own.em.values, full).items()}
    check_sets("sets", sets)
    return {str(name): aligned(scores, paragraphs).nll.values for name, paragraphs in sets.items()}
