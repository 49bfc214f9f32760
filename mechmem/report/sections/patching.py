"""Where a patch brings a perturbed memory back."""

import numpy as np
import xarray as xr

from mechmem.data.ranking import largest
from mechmem.report import heatmaps
from mechmem.report.page import Block, Figure
from mechmem.report.position_maps import position_heatmap
from mechmem.report.sections.wording import head_name, percent


def patching_sentences(patching: xr.Dataset) -> list[str]:
    """What brings the memory back, and where the residual stream holds it."""
    stream = patching.resid_pre
    rise, count = stream.attrs["base"] - stream.attrs["source"], patching.sizes["paragraph"]
    relief = -stream.transpose("paragraph", "pos", "layer").values
    rows = np.arange(count)
    at_token = relief[rows, patching.perturbed_pos.values].mean(0)
    at_end = relief[rows, patching.impact_pos.values - 1].mean(0)
    moved = stream.layer.values[at_end >= at_token]
    told = (
        f"From layer {moved[0]} on the position before the changed token carries more of it than the replaced token."
        if len(moved)
        else "In every layer the replaced token's position carries more of it than the one before the changed token."
    )
    named = ", ".join(f"{name} ({percent(value / rise)})" for name, value in _best_heads(patching.z, 3))
    return [
        f"One replaced prefix token makes {count} memorized paragraphs go on otherwise: the loss of the first token "
        f"that changes rises by {rise:.1f} nats. {told}",
        f"Of single heads, restoring the output of these takes off the most: {named} of that rise. Each position is "
        "restored alone and the positions are added up, so the shares need not add up to one.",
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
    order = largest(relief.values, count)
    places = [np.unravel_index(flat, relief.shape) for flat in order]
    return [(head_name(int(layer), int(head)), float(relief.values[layer, head])) for layer, head in places]


def _from_impact(patching: xr.Dataset, back: int = 20) -> xr.DataArray:
    """Relief by layer and distance to the first changed token, mean over the pairs that reach so far back."""
    relief = -patching.resid_pre.transpose("paragraph", "layer", "pos").values
    distances = np.arange(-back, 0)
    place = patching.impact_pos.values[:, None] + distances
    found = np.take_along_axis(relief, np.clip(place, 0, None)[:, None, :], axis=2)
    found = np.where((place >= 0)[:, None, :], found, np.nan)
    mean = np.nanmean(found, axis=0) if len(found) else np.full(found.shape[1:], np.nan)
    return xr.DataArray(mean, {"layer": patching.layer.values, "pos": distances}, ("layer", "pos"))
