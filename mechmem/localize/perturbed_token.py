"""The paper's patching panels: what q, k and v of every head carry at the perturbed token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from mechmem.data.bounds import Share
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, part_of
from mechmem.localize.attribution import attribute, top_cells
from mechmem.localize.metrics import Metric, MetricName, effect_range, metric_of
from mechmem.localize.patch_pairs import ScoredAt, scored_count
from mechmem.localize.patching import patch
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import Range

Reading = Literal["memorized_own", "perturbed_own", "perturbed_memorized"]
HeadSite = Literal["q", "k", "v", "z", "pattern"]
# The run that is patched, then whose tokens are scored.
READINGS: dict[Reading, str] = {
    "memorized_own": "memorized run with activations of the perturbed run, scored on the memorized text's token",
    "perturbed_own": "perturbed run with activations of the memorized run, scored on the perturbed text's token",
    "perturbed_memorized": "perturbed run with activations of the memorized run, scored on the memorized text's token",
}
PAPER: tuple[Reading, ...] = ("memorized_own", "perturbed_own")
SITES: tuple[HeadSite, ...] = ("q", "k", "v")


@public("refuse", unused=("seed",))
def perturbed_token_effects(
    model: HookedTransformer,
    memorized: Paragraphs,
    perturbed: Paragraphs,
    *,
    sites: Sequence[HeadSite] = SITES,
    readings: Sequence[Reading] = (*PAPER, "perturbed_memorized"),
    scored: ScoredAt = "impact",
    metric: Metric | MetricName = "nll",
    fraction: Share | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """The exact effect of each head's q, k and v at the one perturbed prefix token, in each reading, with intervals.

    The two panels of Stoehr et al. (2024, section 3.2, figure 2) are `memorized_own` and `perturbed_own`: both score
    the patched run's own token at the first impacted position. `perturbed_memorized` patches as the second panel and
    scores the memorized text's token instead: whether a head's activation restores the memory. The latter two need not
    agree: a patch can make the perturbed text less likely without making the memorized text more likely.

    1. For a `fraction`, estimate every head by attribution, and choose those with the largest mean estimates.
    2. Patch each (chosen) head at each pair's own perturbed token, one at a time.
    3. Intervals: 95 %, of the mean over pairs, by the memorized paragraphs' clusters. They are computed without
       resampling: `seed` has no effect any more, and a DeprecationWarning says so where it is given.

    Args:
        model: left as it is; it must have no hooks.
        memorized: paragraphs, as the clean side of `worst_perturbations`; clusters from the column `cluster`.
        perturbed: row by row the same with one prefix token replaced, and the model's own continuation after it.
        sites: of heads: q, k, v, z, pattern.
        readings: which run is patched and whose tokens are scored, as above.
        scored: as `patch`; "impact": the first continuation token in which a pair differs.
        metric: as `patch`; its clean tokens are those that the reading scores.
        fraction: patch exactly this share of each site's and reading's heads, by attribution; None: all of them.
        progress: called with (done, total), in parts of the work.

    Returns:
        Dataset. effect [reading, site, paragraph, layer, head], after the patch minus before, in the metric's unit,
        NaN where not patched; effect_mean, effect_low, effect_high [reading, site, layer, head]; with a `fraction`
        estimate, of the shape of effect; base, source [reading]: the metric of the run that is patched, and of the run
        that activations come from, means over pairs. Coordinates: reading, site, paragraph (ids of the memorized
        paragraphs), layer, head; perturbed_pos [paragraph].

    Raises:
        InputError: as `patch`; no or an unknown site or reading, one named twice, or a pair whose prefixes do not
            differ in exactly one token.
    """
    _check_names("site", sites, HeadSite)
    _check_names("reading", readings, Reading)
    shared: dict[str, Any] = {"pos": "perturbed", "scored": scored, "metric": metric, "average": False}
    effects, estimates, ends = [], [], []
    for number, reading in enumerate(readings):
        pair: dict[str, Any] = {"clean": memorized, "corrupt": perturbed, "direction": "noising"}
        if reading == "perturbed_own":
            pair |= {"clean": perturbed, "corrupt": memorized}
        elif reading == "perturbed_memorized":
            pair["direction"] = "denoising"
        row = []
        for place, site in enumerate(sites):
            options: dict[str, Any] = {**pair, **shared, "site": site}
            if fraction is not None:
                estimates.append(attribute(model, **options))
                options["cells"] = top_cells(estimates[-1], fraction)
            part = part_of(progress, number * len(sites) + place, len(readings) * len(sites))
            row.append(patch(model, **options, progress=part))
        effects += row
        ends.append((row[-1].attrs["base"], row[-1].attrs["source"]))
    result = _labelled(effects, estimates, memorized.ids, readings, sites)
    units = {"units": effects[0].attrs["units"]}
    for name, values in zip(("base", "source"), zip(*ends, strict=True), strict=True):
        result[name] = ("reading", np.array(values), units)
    first = (memorized.tokens != perturbed.tokens).long().argmax(-1).cpu().numpy()
    meanings = [READINGS[reading] for reading in readings]
    attrs = {"scored": str(scored), "metric": effects[0].attrs["metric"], "pairs": len(memorized), "level": 0.95}
    result = result.assign_coords(perturbed_pos=("paragraph", first), meaning=("reading", meanings))
    within = effect_range(metric_of(metric), scored_count(memorized, scored))
    return _with_intervals(result, memorized.clusters, within).assign_attrs(attrs)


def _check_names(kind: str, names: Sequence[str], choices: Any) -> None:
    for name in names:
        check_choice(kind, name, choices)
    if not names or len(set(names)) < len(names):
        raise InputError(f"got {kind}s {list(names)}; need at least one, and each once")


def _labelled(
    effects: Sequence[xr.DataArray],
    estimates: Sequence[xr.DataArray],
    ids: np.ndarray,
    readings: Sequence[Reading],
    sites: Sequence[HeadSite],
) -> xr.Dataset:
    """Effects of every reading and site as one array, [reading, site, paragraph, layer, head]; estimates, too."""
    inner = effects[0]
    words = {
        "units": inner.attrs["units"],
        "higher": "the patch raises the metric of the token that the reading scores",
    }
    data: dict[str, Any] = {}
    for name, parts in (("effect", effects), ("estimate", estimates)):
        if parts:
            values = np.stack([part.values for part in parts]).reshape(len(readings), len(sites), *inner.shape)
            data[name] = (("reading", "site", *inner.dims), values, words)
    coords = {"reading": list(readings), "site": list(sites), "paragraph": ids}
    return xr.Dataset(data, coords | {"layer": inner.layer, "head": inner["head"]})


def _with_intervals(result: xr.Dataset, clusters: np.ndarray, within: Range) -> xr.Dataset:
    """With mean, low and high over pairs of every cell."""
    effect = result.effect
    low, high = cell_intervals(effect.transpose("paragraph", ...).values, clusters, within=within)
    cells = [name for name in effect.dims if name != "paragraph"]
    mean = effect.mean("paragraph", skipna=False).values
    ends = {"effect_mean": mean, "effect_low": low, "effect_high": high}
    return result.assign({name: (cells, values, effect.attrs) for name, values in ends.items()})
