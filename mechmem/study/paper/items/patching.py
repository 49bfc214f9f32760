"""Item 2: activation patching between memorized and perturbed paragraphs, at the replaced token."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.attribution import rank_correlation
from mechmem.localize.patching import patch
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.study.paper import published
from mechmem.study.paper.folder import NotPossibleError, PaperFolder
from mechmem.study.paper.intervals import interval
from mechmem.study.paper.rows import Finding, Reading, Row

ITEM, UNITS = "patching", "nats"
SITES = ("q", "k", "v")
# Which run is patched with the other's activations, and whose text is scored.
MEMORIZED_RUN = "memorized run, own text"
PERTURBED_RUN = "perturbed run, own text"
MEMORIZED_TEXT = "perturbed run, memorized text"
STATED = {MEMORIZED_RUN: published.PATCH_SCALE_MEMORIZED, PERTURBED_RUN: published.PATCH_SCALE_PERTURBED}
READINGS: tuple[Reading, Reading] = ("as published", "corrected")


def patching_item(paper: PaperFolder) -> Finding:
    """Patch every head's q, k and v at the replaced token, in both directions."""
    clean, corrupt, origin = _pairs(paper)
    effect = np.stack([_panel(paper, name, clean, corrupt) for name in (*STATED, MEMORIZED_TEXT)])
    clusters = clean.clusters
    rows = [row for panel, name in enumerate(STATED) for row in _scale_rows(paper, name, effect[panel], clusters)]
    mean = effect.mean(2)
    grids = [xr.DataArray(mean[panel], dims=("site", "layer", "head")) for panel in (1, 2)]
    agreement = float(rank_correlation(*grids))
    note = "the study's second panel and restoring the memorized text are different questions"
    quantity = "rank correlation of the perturbed run's two panels"
    rows.append(Row(ITEM, quantity, "corrected", agreement, None, None, None, "1", note))
    units = {"units": UNITS, "higher": "the patch makes the scored text less likely"}
    data = xr.Dataset(
        {
            "effect": (("panel", "site", "paragraph", "layer", "head"), effect, units),
            "perturbed_pos": ("paragraph", clean.column("perturbed_pos"), {"units": "token position"}),
            "impact_pos": ("paragraph", clean.column("impact_pos"), {"units": "token position"}),
            "cluster": ("paragraph", clusters),
        },
        {"panel": [*STATED, MEMORIZED_TEXT], "site": list(SITES), "paragraph": clean.ids},
    )
    strongest = [_strongest(mean[panel]) for panel in range(2)]
    data.attrs["finding"] = (
        f"On {len(clean)} pairs ({origin}), the head with the largest mean effect is {_named(strongest[0])} in the "
        f"memorized run ({mean[0][strongest[0]]:+.3f} nats) and {_named(strongest[1])} in the perturbed run "
        f"({mean[1][strongest[1]]:+.3f} nats)."
    )
    return Finding(tuple(rows), data)


def _pairs(paper: PaperFolder) -> tuple[Paragraphs, Paragraphs, str]:
    """The study's own pairs, one of each cluster first, or the worst perturbations of memorized paragraphs."""
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
    except ValueError as error:
        raise NotPossibleError(str(error)) from error
    return clean, corrupt, "the worst replacement of one prefix token"


def _panel(
    paper: PaperFolder, name: str, memorized: Paragraphs, perturbed: Paragraphs
) -> Float[np.ndarray, "site pair layer head"]:
    """Every head's effect at each pair's replaced token."""
    config = paper.model.cfg
    found = np.zeros((len(SITES), len(memorized), config.n_layers, config.n_heads))
    first, second = (perturbed, memorized) if name == PERTURBED_RUN else (memorized, perturbed)
    direction: Any = "denoising" if name == MEMORIZED_TEXT else "noising"
    progress = paper.at(f"patching the {name}")
    for pair, pos in enumerate(memorized.column("perturbed_pos").tolist()):
        shape = config.n_layers, config.n_heads, memorized.tokens.shape[1]
        cells = xr.DataArray(np.zeros(shape, dtype=bool), dims=("layer", "head", "pos"))
        cells[:, :, pos] = True
        for number, site in enumerate(SITES):
            effect = patch(
                paper.model, first[pair], second[pair], site=site, direction=direction, scored="impact", cells=cells
            )
            found[number, pair] = effect.values[:, :, pos]
        progress(pair + 1, len(memorized))
    return found


def _scale_rows(
    paper: PaperFolder, name: str, effect: Float[np.ndarray, "site pair layer head"], clusters: np.ndarray
) -> list[Row]:
    """The largest mean effect of a head; both readings are one run."""
    place = _strongest(effect.mean(1))
    values = np.abs(effect.mean(1)[place])
    own = effect[place[0], :, place[1], place[2]] * np.sign(effect.mean(1)[place])
    low, high = interval(paper, own, clusters)
    note = f"{_named(place)}, chosen on the same pairs; published is the end of a colour scale"
    quantity = f"largest mean |effect| of a head, {name}"
    return [Row(ITEM, quantity, reading, float(values), low, high, STATED[name], UNITS, note) for reading in READINGS]


def _strongest(mean: Float[np.ndarray, "site layer head"]) -> tuple[int, int, int]:
    site, layer, head = np.unravel_index(int(np.abs(mean).argmax()), mean.shape)
    return int(site), int(layer), int(head)


def _named(place: tuple[int, int, int]) -> str:
    return f"L{place[1]}H{place[2]} ({SITES[place[0]]})"
