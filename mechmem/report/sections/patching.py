"""Where a patch brings a perturbed memory back."""

import numpy as np
import xarray as xr

from mechmem.report import heatmaps
from mechmem.report.page import Block, Figure
from mechmem.report.position_maps import position_heatmap
from mechmem.report.sections.wording import head_name, percent


def patching_sentences(patching: xr.Dataset) -> list[str]:
    """What brings the memory back, and where the residual stream holds it."""
    # What is patched is worth what it takes off the NLL.
    relief = -patching.resid_pre
    whole = float(relief.attrs.get("base", patching.resid_pre.base)) - float(patching.resid_pre.source)
    count = patching.sizes["paragraph"]
    perturbed, impact = patching.perturbed.values, patching.impact.values
    # The stream at the perturbed token, by layer, and at the token from which the impact is predicted.
    rows = np.arange(count)
    at_token = relief.transpose("paragraph", "pos", "layer").values[rows, perturbed].mean(0)
    at_end = relief.transpose("paragraph", "pos", "layer").values[rows, impact - 1].mean(0)
    layers = relief.layer.values
    moved = [layer for layer, a, b in zip(layers, at_token, at_end, strict=True) if b >= a]
    one = int((impact - 1 == perturbed).sum())
    told = (
        f"From layer {moved[0]} on, the token before the changed one carries more of the memory than the perturbed "
        "token itself."
        if moved and 0 < moved[0]
        else "The perturbed token and the one before the change are mostly the same here, so the map has one column."
        if one > count / 2
        else "The perturbed token carries more of the memory than the token before the change in every layer."
    )
    heads = _best_heads(patching.z, 3)
    named = ", ".join(f"{name} ({percent(value / whole)})" for name, value in heads)
    return [
        f"One replaced prefix token makes {count} memorized paragraphs go on otherwise; the loss of the true token "
        f"there rises by {whole:.1f} nats. {told}",
        f"Patching one head's output in one position back takes off the most at {named} of that rise"
        f" (mean over {count} pairs, all positions of a head added up).",
    ]


def patching_blocks(patching: xr.Dataset) -> list[Block]:
    """Maps of the residual stream and of the heads."""
    aligned = _from_impact(patching)
    stream = position_heatmap(
        aligned,
        title="NLL taken off by restoring the residual stream (blue = brings the memory back)",
        unit="nats",
        kind="diverging",
    )
    stream.update_xaxes(title="position, counted back from the first changed token")
    heads = heatmaps.head_heatmap(
        _head_relief(patching.z),
        title="NLL taken off by restoring a head's output (blue = brings it back)",
        unit="nats",
        top=3,
    )
    rank = patching.z.attrs.get("rank_correlation")
    said = "" if rank is None else f" Estimate and exact effect agree by a rank correlation of {float(rank):.2f}."
    return [
        Figure(
            stream,
            "The paragraph with one prefix token replaced runs with one layer's residual stream at one position taken "
            "from the true paragraph. Bluer: the true token becomes likely again. Mean over pairs, lined up at the "
            "first token that changes.",
        ),
        Figure(
            heads,
            "The same for one head's output, positions added up. Heads are patched exactly only where an estimate from "
            f"one backward pass is largest; the rest counts as zero.{said}",
        ),
    ]


def _head_relief(effect: xr.DataArray) -> xr.DataArray:
    return -effect.mean("paragraph", skipna=False).fillna(0).sum("pos")


def _best_heads(effect: xr.DataArray, count: int) -> list[tuple[str, float]]:
    relief = _head_relief(effect).transpose("layer", "head")
    order = np.argsort(-relief.values, axis=None, kind="stable")[:count]
    places = [np.unravel_index(flat, relief.shape) for flat in order]
    return [(head_name(int(layer), int(head)), float(relief.values[layer, head])) for layer, head in places]


def _from_impact(patching: xr.Dataset, back: int = 20) -> xr.DataArray:
    """Relief by layer and distance to the first changed token, mean over the pairs that reach so far back."""
    relief = -patching.resid_pre.transpose("paragraph", "layer", "pos").values
    distances = np.arange(-back, 0)
    place = patching.impact.values[:, None] + distances
    found = np.take_along_axis(relief, np.clip(place, 0, None)[:, None, :], axis=2)
    found = np.where((place >= 0)[:, None, :], found, np.nan)
    mean = np.nanmean(found, axis=0) if len(found) else np.full(found.shape[1:], np.nan)
    return xr.DataArray(mean, {"layer": patching.layer.values, "pos": distances}, ("layer", "pos"))
