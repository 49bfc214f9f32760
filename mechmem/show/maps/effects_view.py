"""`show.effects`: what patching and attribution found, as heatmaps over the tokens, layers and heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from datasets import Dataset

from mechmem.data.choices import check_choice
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme
from mechmem.show.maps.effect_maps import maps_of, views_of
from mechmem.show.maps.effect_texts import Shown, shown_of, tokenizer_of
from mechmem.show.maps.effects_data import Reading, Told, readings_of, with_all_dims
from mechmem.show.maps.heatmap import Heatmap
from mechmem.show.maps.heatmap_page import HINT, Beside, Chooser, Words, heatmap_picture
from mechmem.show.patterns.head_patterns import patterns_beside
from mechmem.show.picture import Picture

MARKS = "▲: a token that differs in the corrupt text; ◆: the first that differs in the continuation."
BEGINS = "The orange line is where the continuation begins."


@public("run")
def effects(
    effect: xr.DataArray | xr.Dataset,
    paragraphs: Paragraphs | None = None,
    *,
    corrupt: Paragraphs | None = None,
    model: HookedTransformer | xr.Dataset | None = None,
    theme: Theme | str = "auto",
) -> Picture:
    """Show effects of patching: layers by positions with the text's tokens, layers by heads, each layer's heads.

    Blue is an activation that helps or restores the clean text, whatever the direction; zero has the page's colour.
    Point at a cell for layer, head, token and value; click one to keep it, and with `model` for the head's attention.

    Args:
        effect: what `patch`, `attribute`, `patch_paths`, `patch_experiment` or `perturbed_token_effects` returned, or
            another array of layer, head, group and pos.
        paragraphs: the clean side, whose tokens are the axis; of a result by paragraph those to show, found by their
            ids. None: the texts that an experiment holds, or positions alone.
        corrupt: the other side, row by row: tokens that differ are marked. An experiment knows them.
        model: for readable tokens, and to show the attention pattern of a head that is clicked, with the hooks that are
            on it; or a capture of these paragraphs' patterns.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`. Of several paragraphs the mean comes first, with its interval where the result holds one.

    Raises:
        InputError: another kind of result, paragraphs that it is not about, a corrupt side of another shape, a model
            without paragraphs, or more than a page can hold.
    """
    check_choice("theme", theme, Theme)
    if isinstance(effect, xr.Dataset):
        effect = with_all_dims(effect)
    readings, told = readings_of(effect)
    shown = shown_of(effect, paragraphs, corrupt, tokenizer_of(model, paragraphs))
    choosers, options = _choosers(readings, shown)
    groups = list(choosers[0].options)

    def maps(chosen: tuple[int, ...]) -> list[Heatmap]:
        group, view, paragraph = chosen
        alike = [reading for reading in readings if reading.group == groups[group]]
        found = [maps_of(reading, view, options[paragraph], shown, told.units) for reading in alike]
        # First the texts, one below the other, then what is small, side by side.
        return [heatmap for kind in zip(*found, strict=True) for heatmap in kind]

    beside = _beside(model, _pairs(effect, paragraphs, corrupt), readings[0], options)
    hint = HINT + ("" if beside is None else " Click a head's cell for its attention pattern.")
    words = Words(told.title, _caption(readings, told, shown), facts(told.attrs, model), hint)
    return heatmap_picture(words, choosers, maps, theme=theme, beside=beside)


def _choosers(readings: list[Reading], shown: Shown) -> tuple[list[Chooser], list[int | None]]:
    """Choosers of the reading, the view and the paragraph; and which paragraph each option of the last is."""
    groups = list(dict.fromkeys(reading.group for reading in readings))
    count = len(shown.titles)
    views = Chooser("show", views_of(readings[0], count))
    if shown.rows is None or not count:
        return [Chooser("reading", groups), views, Chooser("paragraph", ["all"])], [None]
    options: list[int | None] = [*([None] if count > 1 and _whole(readings[0], shown) else []), *range(count)]
    titles = [f"mean of {count}" if place is None else shown.titles[place] for place in options]
    return [Chooser("reading", groups), views, Chooser("paragraph", titles)], options


def _whole(reading: Reading, shown: Shown) -> bool:
    """Whether all paragraphs of the result are shown: the mean is theirs."""
    return sorted(shown.rows or []) == list(range(reading.values.sizes["paragraph"]))


def _beside(
    model: HookedTransformer | xr.Dataset | None, pairs: list[Paragraphs], reading: Reading, options: list[int | None]
) -> Beside | None:
    """Attention patterns for cells that are heads, of texts that are known."""
    size = _head_sizes(reading)
    if model is None or size is None or not pairs:
        return None
    return patterns_beside(model, pairs, size, 2, [0 if place is None else place for place in options])


def _pairs(
    effect: xr.DataArray | xr.Dataset, paragraphs: Paragraphs | None, corrupt: Paragraphs | None
) -> list[Paragraphs]:
    """The paragraphs whose patterns can be shown, and those beside them: the caller's, or an experiment's own."""
    if paragraphs is not None:
        return [paragraphs] if corrupt is None else [paragraphs, corrupt]
    if not isinstance(effect, xr.Dataset) or "clean_token" not in effect or "prefix_len" not in effect.attrs:
        return []
    table = Dataset.from_dict({"id": effect.paragraph.values.tolist()})
    sides = (effect[f"{side}_token"].values for side in ("clean", "corrupt"))
    return [Paragraphs(torch.from_numpy(tokens), int(effect.attrs["prefix_len"]), table) for tokens in sides]


def _head_sizes(reading: Reading) -> xr.DataArray | None:
    """How large the effects of each head are, [layer, head]; None where cells are no heads."""
    value = abs(reading.of(None)[0])
    if "sender" in value.dims:
        heads = [str(name) for name in value.sender.values if "H" in str(name)]
        if not heads:
            return None
        pairs = [tuple(map(int, name[1:].split("H"))) for name in heads]
        layers, numbers = sorted({layer for layer, _ in pairs}), sorted({head for _, head in pairs})
        flat = value.sel(sender=heads).max([dim for dim in value.dims if dim != "sender"]).values
        grid = np.asarray(flat).reshape(len(layers), len(numbers))
        return xr.DataArray(grid, {"layer": layers, "head": numbers}, ("layer", "head"))
    if not {"layer", "head"} <= set(map(str, value.dims)):
        return None
    return value.sum([dim for dim in value.dims if dim not in ("layer", "head")])


def _caption(readings: list[Reading], told: Told, shown: Shown) -> str:
    known: list[Any] = [*told.caption]
    if any(not np.isfinite(reading.values.values).all() for reading in readings):
        known.append("Hatched: not measured.")
    has_text = shown.texts is not None and "pos" in readings[0].cells
    if has_text and any(text.corrupt is not None for text in shown.texts or []):
        known.append(MARKS)
    if "pos" in readings[0].cells and shown.begins is not None:
        known.append(BEGINS)
    if any(reading.low is not None for reading in readings):
        known.append("In brackets: 95 % intervals of the means; each is about its own cell.")
    line = " ".join(sentence for sentence in known if sentence)
    return line[:1].upper() + line[1:]
