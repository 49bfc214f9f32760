"""Heatmaps as a picture: choosers above, the maps of what is chosen, and what the colours mean below."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from mechmem.data.errors import InputError
from mechmem.show.fragment import fragment
from mechmem.show.maps.heatmap import Heatmap, page_heatmap
from mechmem.show.maps.heatmap_svg import heatmaps_svg
from mechmem.show.packed_numbers import three_digits
from mechmem.show.picture import Picture

# Of one picture; forty of these are as much as a notebook should hold.
MOST_BYTES = 8_000_000
HINT = "Point at a cell for its number; arrow keys move from cell to cell; a click keeps one."


@dataclass(frozen=True)
class Chooser:
    """One choice of what is shown.

    Attributes:
        name: what is chosen: "paragraph".
        options: at least one; with one alone there is no choice to show.
    """

    name: str
    options: Sequence[str]


@dataclass(frozen=True)
class Words:
    """What stands around the maps.

    Attributes:
        title: one line.
        caption: what is shown, its unit and the meaning of the colours.
        facts: model and seed, "" if unknown.
        hint: what clicks do.
    """

    title: str
    caption: str
    facts: str = ""
    hint: str = HINT


@dataclass(frozen=True)
class Beside:
    """A second view, beside the maps, of what is clicked.

    Attributes:
        scripts: its files in `scripts/`.
        data: what it reads.
        view: its class.
    """

    scripts: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)
    view: str = ""


def heatmap_picture(
    words: Words,
    choosers: Sequence[Chooser],
    maps_of: Callable[[tuple[int, ...]], Sequence[Heatmap]],
    *,
    theme: str,
    beside: Beside | None = None,
) -> Picture:
    """A picture of heatmaps.

    Args:
        words: around the maps.
        choosers: above the maps.
        maps_of: the maps of each combination of choices, one number for each chooser.
        theme: "auto", "light" or "dark".
        beside: what is seen of a cell that is clicked.

    Raises:
        InputError: it is more than a page can hold.
    """
    axes: list[dict[str, Any]] = []
    combinations = list(itertools.product(*(range(len(chooser.options)) for chooser in choosers)))
    panels, size = [], 0
    first: Sequence[Heatmap] = ()
    for chosen in combinations:
        maps = maps_of(chosen)
        first = first or maps
        panels.append([page_heatmap(heatmap, axes) for heatmap in maps])
        size += sum(_size(panel) for panel in panels[-1])
        if size > MOST_BYTES:
            raise InputError(
                f"the maps take more than {MOST_BYTES / 1e6:.0f} MB in the page; need less: choose fewer paragraphs, "
                "layers or heads of the result, such as effect.isel(paragraph=slice(0, 10))"
            )
    data = page_data(words, choosers, panels, axes, theme)
    if beside is not None:
        data["beside"] = beside.data
    notes = [note for note in (words.caption, words.facts) if note]

    def draw_svg() -> tuple[str, int, int]:
        return heatmaps_svg(first, words.title, notes)

    address = svg_address(heatmaps_svg(first, words.title, notes, still=True)[0])
    alt = escape(f"{words.title}. {' '.join(map(finding, first))}", quote=True)
    still = f'<img alt="{alt}" src="{address}" style="max-width:100%">'
    scripts = ("heatmap", "heatmap_page")
    if beside is not None:
        scripts = (*beside.scripts, *scripts)
    return Picture(words.title, fragment("HeatmapPage", scripts, data, still), draw_svg)


def page_data(
    words: Words,
    choosers: Sequence[Chooser],
    panels: Sequence[Sequence[Mapping[str, Any]]],
    axes: Sequence[Mapping[str, Any]],
    theme: str,
) -> dict[str, Any]:
    """What the script reads; `panels` are those of every combination of choices, the last chooser changing fastest."""
    return {
        "title": words.title,
        "caption": words.caption,
        "facts": words.facts,
        "hint": words.hint,
        "choosers": [{"name": chooser.name, "options": list(chooser.options)} for chooser in choosers],
        "panels": panels,
        "axes": axes,
        "theme": theme,
    }


def finding(heatmap: Heatmap) -> str:
    """The strongest cell in a sentence, "" if there is none."""
    cell = heatmap.strongest()
    if cell is None:
        return ""
    value = three_digits(float(heatmap.values[cell]), signed=heatmap.kind == "diverging")
    return f"{heatmap.title}: strongest at {heatmap.cell(*cell)}, {value} {heatmap.unit}".strip() + "."


def svg_address(svg: str) -> str:
    """An SVG as a `data:` address."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8", "replace")).decode()


def _size(panel: Mapping[str, Any]) -> int:
    """About how many bytes a map takes in the page."""
    packs = [panel["packed"], *panel.get("interval", ()), *(also["packed"] for also in panel.get("also", ()))]
    return sum(map(len, packs)) + 4 * len(panel.get("word", ())) + sum(map(len, panel.get("words", ())))
