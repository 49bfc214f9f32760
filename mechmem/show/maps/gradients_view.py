"""`show.gradients`: what a set's NLL depends on, by component or by position, beside another set's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import Reduction
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme
from mechmem.show.maps.effect_maps import maps_of, views_of
from mechmem.show.maps.effect_texts import shown_of, tokenizer_of
from mechmem.show.maps.gradients_data import Gradients, gradients_of
from mechmem.show.maps.heatmap import Heatmap
from mechmem.show.maps.heatmap_axes import component_axis, layer_axis
from mechmem.show.maps.heatmap_page import Chooser, Words, heatmap_picture
from mechmem.show.picture import Picture

SHARES = "share of the set's sum"


@public("run")
def gradients(
    gradients: xr.DataArray | Mapping[str, Any],
    compare: xr.DataArray | Mapping[str, Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    reduction: Reduction | None = None,
    paragraphs: Paragraphs | None = None,
    model: HookedTransformer | None = None,
    theme: Theme | str = "auto",
) -> Picture:
    """Show gradients: layers by components, or layers by heads and positions, of one set or of two and the difference.

    Memorized sets have smaller gradients everywhere, so components can be compared as shares of their set's sum, too.

    Args:
        gradients: what `parameter_gradients`, `paragraph_gradients` or `activation_gradients` returned, or scores of
            every weight, as `weight_gradients` and `contrastive_gradients` give them.
        compare: a second one of the same kind, such as another set's; it stands below the first, then the difference,
            second minus first.
        names: of the two; None: "first" and "second".
        reduction: of scores by weight: "max" (None), "sum" or "norm" of a component's absolute values.
        paragraphs: of activation gradients: whose tokens are the axis, as for `show.effects`.
        model: for readable tokens, and to be named below.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`. Sizes that are never below zero have colours by their logarithm.

    Raises:
        InputError: something else than these functions return, two of different kinds, or an option that this kind
            does not use.
    """
    check_choice("theme", theme, Theme)
    first, second = _names(names, compare)
    one = gradients_of("gradients", gradients, reduction)
    two = None if compare is None else gradients_of("compare", compare, reduction)
    if two is not None and (two.kind != one.kind or two.signed != one.signed or two.cells != one.cells):
        raise InputError(f"got gradients with {one.cells} and {two.cells} to compare; need two of one kind and size")
    told = facts(one.attrs, model)
    if one.kind == "activation":
        return _by_position(one, two, (first, second), paragraphs, model, told, theme)
    if paragraphs is not None:
        raise InputError("got paragraphs for gradients by component, which have no positions; leave paragraphs out")
    return _by_component(one, two, (first, second), told, theme)


def _by_component(one: Gradients, two: Gradients | None, names: tuple[str, str], told: str, theme: str) -> Picture:
    count = one.values.sizes.get("paragraph", 1)
    options: list[int | None] = [None] if two is not None or count == 1 else [None, *range(count)]
    titles = [f"mean of {count}" if row is None else str(one.values.paragraph.values[row]) for row in options]
    choosers = [Chooser("values", [one.what, SHARES]), Chooser("paragraph", titles)]

    def maps(chosen: tuple[int, ...]) -> list[Heatmap]:
        as_shares, row = bool(chosen[0]), options[chosen[1]]
        sets = [one.of(row)] if two is None else [one.of(None), two.of(None)]
        if as_shares:
            sets = [each / each.sum() for each in sets]
        unit = "of the sum" if as_shares else one.units
        found = _alike([_grid(name, each, unit) for name, each in zip(names, sets, strict=False)])
        if two is None:
            return [replace(found[0], title=SHARES if as_shares else one.what)]
        change = (sets[1] - sets[0]).assign_coords(sets[0].coords)
        return [*found, replace(_grid(f"{names[1]} minus {names[0]}", change, unit), kind="diverging")]

    caption = [one.higher, "Colours by the logarithm; without colour: 0."]
    if two is not None:
        caption.append(f"The difference is {names[1]} minus {names[0]}: blue where {names[1]} is larger.")
    return heatmap_picture(Words(one.title, " ".join(filter(None, caption)), told), choosers, maps, theme=theme)


def _by_position(
    one: Gradients,
    two: Gradients | None,
    names: tuple[str, str],
    paragraphs: Paragraphs | None,
    model: HookedTransformer | None,
    told: str,
    theme: str,
) -> Picture:
    readings = [one.reading(names[0] if two is not None else one.what, one.values)]
    if two is not None:
        means = [one.of(None), two.of(None)]
        readings = [each.reading(name, mean) for each, name, mean in zip((one, two), names, means, strict=True)]
        change = means[1].copy(data=means[1].values - means[0].values)
        difference = one.reading(f"{names[1]} minus {names[0]}", change)
        readings.append(replace(difference, kind="diverging", blue="higher"))
    shown = shown_of(readings[0].values, paragraphs, None, tokenizer_of(model, paragraphs))
    count = len(shown.titles)
    options: list[int | None] = [*([None] if count != 1 else []), *range(count)]
    titles = [f"mean of {count}" if row is None else shown.titles[row] for row in options]
    choosers = [Chooser("show", views_of(readings[0], count)), Chooser("paragraph", titles)]

    def maps(chosen: tuple[int, ...]) -> list[Heatmap]:
        found = [maps_of(reading, chosen[0], options[chosen[1]], shown, one.units) for reading in readings]
        return [heatmap for kind in zip(*found, strict=True) for heatmap in _alike(list(kind))]

    caption = [one.higher, one.colours]
    if two is not None:
        caption.append(f"The difference is {names[1]} minus {names[0]}: blue where {names[1]} is higher.")
    return heatmap_picture(Words(one.title, " ".join(filter(None, caption)), told), choosers, maps, theme=theme)


def _grid(title: str, values: xr.DataArray, unit: str) -> Heatmap:
    grid = values.transpose("layer", "component")
    rows, columns = layer_axis(grid.layer.values.tolist()), component_axis(grid.component.values.tolist())
    return Heatmap(title, grid.values.astype(float), rows, columns, unit, "log", joint=" ")


def _alike(maps: list[Heatmap]) -> list[Heatmap]:
    """The same colours for the same numbers, in all maps that are not differences."""
    sets = [heatmap for heatmap in maps if heatmap.kind != "diverging"]
    if len(sets) < 2:
        return maps
    ends = np.array([heatmap.ends() for heatmap in sets])
    span = float(ends[:, 0].min()), float(ends[:, 1].max())
    return [heatmap if heatmap.kind == "diverging" else replace(heatmap, span=span) for heatmap in maps]


def _names(names: Sequence[str] | None, compare: Any) -> tuple[str, str]:
    if names is None:
        return "first", "second"
    if compare is None or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"got names={names!r:.80}; need two words for gradients and compare: ('memorized', 'other')")
    return names[0], names[1]
