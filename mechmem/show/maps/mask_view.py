"""`show.mask`: in which components the weights of a mask or of an edit are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import component_grid, component_parts, is_component
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme
from mechmem.show.maps.heatmap import Also, Heatmap
from mechmem.show.maps.heatmap_axes import component_axis, layer_axis
from mechmem.show.maps.heatmap_page import Chooser, Words, heatmap_picture
from mechmem.show.picture import Picture
from mechmem.weights.masks import Mask
from mechmem.weights.sparse_edit import Edit
from mechmem.weights.support import moved


@public("refuse")
def mask(mask: Mask | Edit, *, model: HookedTransformer | None = None, theme: Theme | str = "auto") -> Picture:
    """Show where a mask's weights are, layers by components: their share of each component, and how many they are.

    Args:
        mask: which weights may move; or an `Edit`: which moved.
        model: the original of an edit, for how far its weights moved; None: only with a mask.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`. Colours grow with the square root of a number, so that a few weights show.

    Raises:
        InputError: neither a mask nor an edit, a mask of no component, an edit without its model, or a mask with one.
    """
    check_choice("theme", theme, Theme)
    if isinstance(mask, Mask):
        if model is not None:
            raise InputError("got a model and a mask, which knows its weights by itself; leave model out")
        return _picture(*_of_mask(mask), theme)
    if not isinstance(mask, Edit):
        raise InputError(f"got {type(mask).__name__} as mask; need a mechmem.Mask or a mechmem.Edit")
    if model is None:
        raise InputError(
            "got an edit and no model; need the original, whose weights it moves: show.mask(edit, model=model)"
        )
    return _picture(*_of_edit(mask, model), theme, facts({}, model))


def _of_mask(mask: Mask) -> tuple[dict[str, xr.DataArray], Words]:
    grids = _counts(mask.indices, mask.shapes)
    caption = f"{mask.count:,} of {mask.total:,} weights are in the mask ({mask.count / mask.total:.2%})."
    return grids, Words("Weights of the mask", caption + _outside(mask.count, grids))


def _of_edit(edit: Edit, model: HookedTransformer) -> tuple[dict[str, xr.DataArray], Words]:
    before, after = model.state_dict(), edit.apply(model).state_dict()
    indices = {name: moved(before[name], after[name]).nonzero().flatten() for name in edit.places}
    shapes = {name: tuple(tensor.shape) for name, tensor in before.items()}
    grids = _counts(indices, shapes)
    far = {}
    for name, shape in shapes.items():
        if not is_component(name):
            continue
        far[name] = [0.0] * _parts(name, shape)
        if name in edit.places:
            change = after[name].double() - before[name].double()
            far[name] = component_parts(name, change).norm(dim=-1).tolist()
    grids["size of the change"] = component_grid(far)
    count, total = sum(map(len, indices.values())), sum(tensor.numel() for tensor in before.values())
    caption = f"{count:,} of {total:,} weights moved ({count / total:.2%})." + _outside(count, grids)
    caption += " The size of a change is the root of the sum of squares, in units of weight."
    return grids, Words("Weights that the edit moved", caption)


def _counts(indices: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, xr.DataArray]:
    """Of each component how many weights are chosen, and how many it has."""
    chosen, sizes = {}, {}
    for name, shape in shapes.items():
        if not is_component(name):
            continue
        parts, total = _parts(name, shape), math.prod(shape)
        held = indices.get(name, torch.zeros(0, dtype=torch.long))
        chosen[name] = torch.bincount(held.cpu() // max(1, total // parts), minlength=parts).double().tolist()
        sizes[name] = [total / parts] * parts
    return {"weights": component_grid(chosen), "of": component_grid(sizes)}


def _parts(name: str, shape: tuple[int, ...]) -> int:
    """How many components a weight has: one for each head."""
    return shape[0] if ".attn." in name else 1


def _outside(count: int, grids: Mapping[str, xr.DataArray]) -> str:
    left = count - int(np.nansum(grids["weights"].values))
    return f" {left:,} of them are outside these components: in biases, norms or embeddings." if left else ""


def _picture(grids: dict[str, xr.DataArray], words: Words, theme: str, told: str = "") -> Picture:
    weights, of = grids["weights"], grids["of"]
    shown = {"share of the component's weights": weights / of, "weights": weights}
    if "size of the change" in grids:
        shown["size of the change"] = grids["size of the change"]
    rows, columns = layer_axis(weights.layer.values.tolist()), component_axis(weights.component.values.tolist())

    def maps(chosen: tuple[int, ...]) -> list[Heatmap]:
        name = list(shown)[chosen[0]]
        also = [
            Also(each, grid.values) for each, grid in {**shown, "weights of the component": of}.items() if each != name
        ]
        unit = "weights" if name == "weights" else ""
        values = shown[name].values.astype(float)
        return [Heatmap(name, values, rows, columns, unit, "root", joint=" ", also=also)]

    caption = f"{words.caption} Colours grow with the square root of a number; without colour: none."
    words = Words(words.title, caption, told)
    return heatmap_picture(words, [Chooser("show", list(shown))], maps, theme=theme)
