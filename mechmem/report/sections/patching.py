"""Where a patch restores a memory that a perturbed prefix broke."""

import numpy as np
import xarray as xr

from mechmem.report.page import Block, Figure
from mechmem.report.position_maps import position_heatmap
from mechmem.report.sections.wording import best_heads, percent
from mechmem.show.charts import heatmap_figures


def patching_sentences(patching: xr.Dataset) -> list[str]:
    """What restores the memory, and where the residual stream carries it."""
    stream = patching.resid_pre
    rise, count = stream.attrs["base"] - stream.attrs["source"], patching.sizes["paragraph"]
    change = stream.transpose("paragraph", "pos", "layer").values
    rows = np.arange(count)
    at_token = change[rows, patching.perturbed_pos.values].mean(0)
    at_end = change[rows, patching.impact_pos.values - 1].mean(0)
    moved = stream.layer.values[at_end <= at_token]
    told = (
        f"From layer {moved[0]} on, restoring the position just before that token undoes more of it than restoring the "
        "replaced token's position."
        if len(moved)
        else "In every layer, restoring the replaced token's position undoes more of it than restoring the position "
        "just before that token."
    )
    named = ", ".join(f"{name} ({percent(fall / rise)})" for name, fall in best_heads(-_head_change(patching.z), 3))
    return [
        f"Replacing one prefix token changes how the model continues {count} memorized paragraphs: the NLL of the "
        f"first token that changes rises by {rise:.1f} nats. {told}",
        f"The single heads whose restored output undoes most of that rise: {named}. Each position is restored alone "
        "and the effects are added up, so the shares need not sum to 100 %.",
    ]


def patching_blocks(patching: xr.Dataset) -> list[Block]:
    """Maps of the residual stream and of the heads."""
    aligned = _from_impact(patching)
    stream = position_heatmap(
        aligned,
        title="NLL change by restoring the residual stream (blue = restores the memory)",
        unit="nats",
        kind="diverging",
    )
    stream.update_traces(reversescale=True)
    stream.update_xaxes(title="position, counted back from the first changed token")
    heads = heatmap_figures.head_heatmap(
        _head_change(patching.z),
        title="NLL change by restoring a head's output (blue = restores the memory)",
        unit="nats",
        top=3,
        blue="lowest",
    )
    rank = patching.z.attrs.get("rank_correlation")
    said = "" if rank is None else f" Estimate and exact effect have a rank correlation of {float(rank):.2f}."
    return [
        Figure(
            stream,
            "The model reads the paragraph with one prefix token replaced, while the residual stream before one layer "
            "at one position is set to its value in the true paragraph. Change of the NLL of the first token that "
            "changes, in nats, patched minus unpatched; blue, below zero: the true token becomes likely again. Mean "
            "over pairs, aligned at the first token that changes.",
            code='mm.show.effects(study.results["patching"].resid_pre)',
        ),
        Figure(
            heads,
            "The same for one head's output, in nats, summed over positions. Heads are patched only where an estimate "
            f"from one backward pass is largest; the rest counts as zero.{said}",
            code='mm.show.effects(study.results["patching"].z)',
        ),
    ]


def _head_change(effect: xr.DataArray) -> xr.DataArray:
    return effect.mean("paragraph", skipna=False).fillna(0).sum("pos")


def _from_impact(patching: xr.Dataset, back: int = 20) -> xr.DataArray:
    """NLL change by layer and distance to the first changed token, mean over the pairs that reach so far back."""
    change = patching.resid_pre.transpose("paragraph", "layer", "pos").values
    distances = np.arange(-back, 0)
    place = patching.impact_pos.values[:, None] + distances
    found = np.take_along_axis(change, np.clip(place, 0, None)[:, None, :], axis=2)
    found = np.where((place >= 0)[:, None, :], found, np.nan)
    mean = np.nanmean(found, axis=0) if len(found) else np.full(found.shape[1:], np.nan)
    return xr.DataArray(mean, {"layer": patching.layer.values, "pos": distances}, ("layer", "pos"))
