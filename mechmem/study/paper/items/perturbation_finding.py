"""Item 1: how much EM one replaced prefix token costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.replacements import allowed_ids
from mechmem.stats.ranges import range_of
from mechmem.study.paper import published
from mechmem.study.paper.intervals import interval, mean_row
from mechmem.study.paper.paper_folder import NotPossibleError, PaperFolder
from mechmem.study.paper.readings import own_text
from mechmem.study.paper.rows import Finding, Row, Trap

ITEM, UNITS = "perturbation", "tokens"
MEMORIZED, OTHER, OTHER_TRUE = "memorized", "other, own text", "other, true text"


def perturbation_item(paper: PaperFolder) -> Finding:
    """Replace every prefix token of memorized and other paragraphs; traps 10 and 12."""
    found: dict[str, tuple[Paragraphs, xr.Dataset]] = {}
    for name, paragraphs in _compared(paper).items():
        progress = paper.at(f"replacing prefix tokens of {name.split(',')[0]} paragraphs")
        changed = perturb_prefix(
            paper.model, paragraphs, seed=paper.seed, edit_distance=name == MEMORIZED, progress=progress
        )
        found[name] = paragraphs, changed
    rows: list[Row] = []
    for name, stated in ((MEMORIZED, published.EM_DROP_MEMORIZED), (OTHER, published.EM_DROP_OTHER)):
        if name in found:
            rows += _drop_rows(paper, name, *found[name], stated)
    rows += _further_rows(paper, found)
    names = list(found)
    profile = np.stack([found[name][1].em_change.mean("paragraph").values for name in names])
    ends = np.stack([[found[name][1][f"em_change_{end}"].values for name in names] for end in ("low", "high")])
    units = {"units": "tokens", "higher": "more survives"}
    data = xr.Dataset(
        {
            "em_change": (("set", "pos"), profile, units),
            "em_change_low": (("set", "pos"), ends[0], units),
            "em_change_high": (("set", "pos"), ends[1], units),
        },
        {"set": names, "pos": np.arange(profile.shape[1])},
    )
    said = [f"{row.measured:.2f} tokens of EM ({row.quantity.split(', ', 1)[1]})" for row in rows[1:4:2]]
    data.attrs["finding"] = f"One replaced prefix token costs {' and '.join(said)} on average."
    return Finding(tuple(rows), data, _traps(paper, *found[MEMORIZED]))


def _compared(paper: PaperFolder) -> dict[str, Paragraphs]:
    """The sets whose prefixes are perturbed; others with the model's text, as published, and with the true one."""
    count = paper.settings.perturbed
    sets = {MEMORIZED: paper.sample("memorized", count)}
    try:
        other = paper.sample("other", count)
    except NotPossibleError:
        return sets
    if other.column("own_text").any():
        return sets | {OTHER: other}
    return sets | {OTHER: own_text(paper.model, other), OTHER_TRUE: other}


def _drop(changed: xr.Dataset, *, slips: bool) -> np.ndarray:
    """Each paragraph's mean fall of EM over positions, [paragraph]; with the slips, position 0 falls by nothing."""
    fall = -changed.em_change.values
    return fall[:, 1:].sum(1) / fall.shape[1] if slips else fall.mean(1)


def _drop_rows(paper: PaperFolder, name: str, paragraphs: Paragraphs, changed: xr.Dataset, stated: float) -> list[Row]:
    within = range_of("em_change", paragraphs.continuation_len)
    common: dict[str, Any] = {"published": stated, "units": UNITS, "within": within}
    quantity = f"mean EM drop per token, {name}"
    return [
        mean_row(paper, ITEM, quantity, "as published", _drop(changed, slips=True), paragraphs, **common),
        mean_row(paper, ITEM, quantity, "corrected", _drop(changed, slips=False), paragraphs, **common),
    ]


def _further_rows(paper: PaperFolder, found: dict[str, tuple[Paragraphs, xr.Dataset]]) -> list[Row]:
    rows: list[Row] = []
    if OTHER_TRUE in found:
        paragraphs, changed = found[OTHER_TRUE]
        drop = _drop(changed, slips=False)
        quantity = f"mean EM drop per token, {OTHER_TRUE}"
        note = "little EM is there to lose: the model does not know the text"
        within = range_of("em_change", paragraphs.continuation_len)
        rows.append(
            mean_row(paper, ITEM, quantity, "corrected", drop, paragraphs, units=UNITS, within=within, note=note)
        )
    paragraphs, changed = found[MEMORIZED]
    length = paragraphs.continuation_len
    most = -changed.em_change.values.min(1)
    low, high = interval(paper, most, paragraphs.clusters, np.max, within=range_of("em_change", length))
    quantity, note = "largest EM drop by one token, memorized", "the study says up to 45"
    for reading in ("as published", "corrected"):
        rows.append(Row(ITEM, quantity, reading, float(most.max()), low, high, published.EM_DROP_LARGEST, UNITS, note))
    edits = changed.edit_distance.values.mean(1)
    quantity = "mean edit distance of the continuation, memorized"
    within = range_of("edit_distance", length)
    rows.append(mean_row(paper, ITEM, quantity, "corrected", edits, paragraphs, units=UNITS, within=within))
    return rows


def _traps(paper: PaperFolder, paragraphs: Paragraphs, changed: xr.Dataset) -> tuple[Trap, ...]:
    slipped, corrected = (float(_drop(changed, slips=slips).mean()) for slips in (True, False))
    first = float(-changed.em_change.values[:, 0].mean())
    choices = len(allowed_ids(paper.model))
    length = paragraphs.continuation_len
    em, match = corrected / length, float(1 - changed.match_fraction.mean())
    edits = float(changed.edit_distance.mean()) / length
    return (
        Trap(
            10,
            "Position 0 is never replaced, and a token may replace itself",
            slipped,
            corrected,
            UNITS,
            f"Replacing the first token costs {first:.2f} tokens of EM, and counts as nothing as published; one random "
            f"token in {choices:,} is the one that it replaces.",
        ),
        Trap(
            12,
            "EM until the first mismatch exaggerates damage",
            em,
            match,
            "share of the continuation lost",
            f"By EM {100 * em:.0f} % of the continuation is lost, by tokens that are still the most likely "
            f"{100 * match:.0f} %, by edit distance of the greedy text {100 * edits:.0f} %.",
        ),
    )
