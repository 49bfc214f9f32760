"""Item 2: activation patching between memorized and perturbed paragraphs, at the replaced token."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.attribution import rank_correlation
from mechmem.localize.perturbed_token import perturbed_token_effects
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.study.paper import published
from mechmem.study.paper.paper_folder import NotPossibleError, PaperFolder
from mechmem.study.paper.patch_speed import patch_speed
from mechmem.study.paper.rows import Finding, Reading, Row

ITEM, UNITS = "patching", "nats"
# The study's two panels: each scores the patched run's own text.
PANELS = {"memorized_own": "memorized run, own text", "perturbed_own": "perturbed run, own text"}
STATED = {"memorized_own": published.PATCH_SCALE_MEMORIZED, "perturbed_own": published.PATCH_SCALE_PERTURBED}
RESTORING = "perturbed_memorized"
READINGS: tuple[Reading, Reading] = ("as published", "corrected")


def patching_item(paper: PaperFolder) -> Finding:
    """Patch every head's q, k and v at the replaced token, in both directions."""
    clean, corrupt, origin = _pairs(paper)
    data = perturbed_token_effects(paper.model, clean, corrupt, progress=paper.at("patching heads"))
    rows: list[Row] = []
    named: list[str] = []
    for panel in PANELS:
        place = _strongest(data, panel)
        rows += _scale_rows(data, panel, place)
        named.append(f"{_named(place)} in the {PANELS[panel]} ({float(data.effect_mean.sel(place)):+.3f} nats)")
    grids = [data.effect_mean.sel(reading=panel) for panel in ("perturbed_own", RESTORING)]
    note = "the study's second panel and restoring the memorized text are different questions"
    quantity = "rank correlation of the perturbed run's two scorings"
    agreement = rank_correlation(*grids)
    rows.append(Row(ITEM, quantity, "corrected", agreement, None, None, None, "1", note))
    data.attrs["finding"] = (
        f"On {len(clean)} pairs ({origin}), the heads with the largest mean effects are {' and '.join(named)}."
    )
    return Finding(tuple(rows), data, (patch_speed(paper.model, clean, corrupt, seed=paper.seed),))


def _pairs(paper: PaperFolder) -> tuple[Paragraphs, Paragraphs, str]:
    """Some of the study's own pairs, or the worst perturbations of memorized paragraphs."""
    count = paper.settings.pairs
    if paper.sets.pairs is not None:
        clean, corrupt = paper.sets.pairs
        chosen = np.flatnonzero(clean.column("impact_pos") >= 0)
        chosen = np.sort(np.random.default_rng(paper.seed).permutation(chosen)[:count])
        return clean.select(chosen), corrupt.select(chosen), "the study's own"
    memorized = paper.sample("memorized", count)
    changed = perturb_prefix(paper.model, memorized, seed=paper.seed, progress=paper.at("perturbing pairs"))
    try:
        clean, corrupt = worst_perturbations(paper.model, memorized, changed, before="all")
    except InputError as error:
        raise NotPossibleError(str(error)) from error
    return clean, corrupt, "the worst replacement of one prefix token"


def _scale_rows(data: xr.Dataset, panel: str, place: dict[str, Any]) -> list[Row]:
    """The largest mean effect of a head; both readings are one run."""
    mean, *ends = (float(data[name].sel(place)) for name in ("effect_mean", "effect_low", "effect_high"))
    low, high = sorted(float(np.sign(mean)) * end for end in ends)
    note = f"{_named(place)}, chosen on the same pairs; published is the end of a colour scale"
    quantity = f"largest mean |effect| of a head, {PANELS[panel]}"
    return [Row(ITEM, quantity, reading, abs(mean), low, high, STATED[panel], UNITS, note) for reading in READINGS]


def _strongest(data: xr.Dataset, panel: str) -> dict[str, Any]:
    """Where a panel's largest mean effect is."""
    size = np.abs(data.effect_mean.sel(reading=panel))
    found = {str(dim): size[dim].values[int(index)] for dim, index in size.argmax(size.dims).items()}  # pyright: ignore
    return {"reading": panel} | found


def _named(place: dict[str, Any]) -> str:
    return f"L{place['layer']}H{place['head']} ({place['site']})"
