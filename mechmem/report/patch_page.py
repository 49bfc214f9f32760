"""The page of a patching experiment: a heatmap of each direction, the strongest cells, the pairs."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from mechmem.localize.patch_experiment import strongest_cells
from mechmem.report.page import Block, Card, Cell, Figure, Page, Passage, Section, Table
from mechmem.report.position_maps import position_heatmap
from mechmem.show.charts.heatmap_figures import component_heatmap, head_heatmap

RUNS = {
    "noising": "the clean text's run, with activations of the corrupt text's run",
    "denoising": "the corrupt text's run, with activations of the clean text's run",
    "mean": "both runs on average, each with activations of the other: with the corrupt text's minus with the clean's",
}
STRONGEST = 20
READING = (
    "Blue raises the metric, orange lowers it; blank was not patched. Intervals are 95 %, of the mean, by "
    "cluster, each about its own cell: of many cells 5 % lie outside theirs."
)


def patch_page(result: xr.Dataset, name: str) -> Page:
    """What `patch_experiment` gave, as a page.

    Args:
        result: the experiment.
        name: its title.
    """
    attrs = result.attrs
    facts = [str(attrs[key]) for key in ("model",) if key in attrs]
    facts += [
        f"site {attrs['site']}",
        f"metric {attrs['metric']}",
        f"scored: {attrs['scored']}",
    ]
    facts += [f"seed {attrs['seed']}"] if "seed" in attrs else []
    sections = [_direction(result, str(direction)) for direction in result.direction.values]
    cards = [Card("pairs", str(result.sizes["paragraph"]))]
    if "cluster" in result.coords:
        cards.append(Card("clusters", str(len(np.unique(result.cluster.values)))))
    return Page(
        title=f"Patching: {name}",
        lead="One activation at a time is replaced by the other run's, and the output is scored again.",
        facts=facts,
        cards=cards,
        sections=[*sections, _pairs(result)],
        terms=[("metric", f"{attrs['metric']}, in {result.base.attrs['units']}")],
    )


def _direction(result: xr.Dataset, direction: str) -> Section:
    here = result.sel(direction=direction)
    strongest = strongest_cells(result, direction, STRONGEST)
    units = result.effect.attrs["units"]
    said = [f"Replacing nothing gives {float(here.base):.3g}, replacing everything {float(here.source):.3g}."]
    if strongest:
        cell, mean, low, high = strongest[0]
        said.insert(0, f"{cell} has the largest effect: {mean:+.3g} {units} [{low:+.3g}, {high:+.3g}].")
    rows: list[list[Cell]] = [list(row) for row in strongest]
    blocks: list[Block] = [Figure(figure, READING) for figure in effect_maps(result, direction)]
    blocks.append(Table("Strongest cells", ["cell", f"effect, {units}", "low", "high"], rows, opened=True))
    return Section(direction, direction.capitalize(), f"What does each cell do in {RUNS[direction]}?", said, blocks)


def effect_maps(result: xr.Dataset, direction: str) -> list[go.Figure]:
    """One figure for each direction, or two where cells have heads (groups) and positions: the sum over each of them.

    Args:
        result: what `patch_experiment` gave.
        direction: one that it has.
    """
    effect = result.effect_mean.sel(direction=direction, drop=True)
    units, what = effect.attrs["units"], f"{direction}: change of {result.attrs['metric']}"
    part = next((name for name in ("head", "group") if name in effect.dims), None)
    figures = []
    if part is not None:
        sums = _summed(effect, "pos")
        title = what + (", summed over positions" if "pos" in effect.dims else "")
        figures.append(_part_map(sums, part, title, units))
    if "pos" in effect.dims:
        sums = effect if part is None else _summed(effect, part)
        title = what + (f", summed over {part}s" if part is not None else "")
        figures.append(position_heatmap(sums, title=title, unit=units, kind="diverging"))
    if not figures:
        figures.append(_part_map(effect.expand_dims(group=["all positions"], axis=-1), "group", what, units))
    return figures


def _summed(effect: xr.DataArray, dim: str) -> xr.DataArray:
    """Over a dimension, of what was patched; NaN where nothing was."""
    return effect.sum(dim, min_count=1, keep_attrs=True) if dim in effect.dims else effect


def _part_map(effect: xr.DataArray, part: str, title: str, units: str) -> go.Figure:
    if part == "head":
        return head_heatmap(effect, title=title, unit=units)
    figure = component_heatmap(effect.rename(group="component"), title=title, unit=units, kind="diverging")
    figure.update_xaxes(title="group of neighbouring neurons" if effect.sizes["group"] > 1 else "")
    return figure


def _pairs(result: xr.Dataset) -> Section:
    prefix = int(result.attrs["prefix_len"])
    places = [name for name in ("perturbed_pos", "impact_pos") if name in result.coords]
    rows: list[list[Cell]] = []
    for row in range(result.sizes["paragraph"]):
        here = result.isel(paragraph=row)
        sides = [_passage(here, side, prefix) for side in ("clean", "corrupt")]
        rows.append([str(here.paragraph.item()), *sides, *(int(here[name]) for name in places)])
    table = Table("Pairs", ["paragraph", "clean", "corrupt", *(name.replace("_", " ") for name in places)], rows)
    said = f"{len(rows)} pairs, the two texts of each of one length."
    return Section("pairs", "Pairs", "Which texts were compared?", [said], [table])


def _passage(pair: xr.Dataset, side: str, prefix: int) -> Passage:
    texts = [str(text) for text in pair[f"{side}_text"].values]
    # Without a tokenizer the texts are ids.
    gap = " " if texts == [str(token) for token in pair[f"{side}_token"].values] else ""
    return Passage(gap.join(texts[:prefix]) + gap, gap.join(texts[prefix:]))
