"""Item 5: the table of sparse fine-tuning, in both readings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mechmem.stats.ranges import range_of
from mechmem.study.paper import published
from mechmem.study.paper.intervals import interval
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import Finding, Reading, Row
from mechmem.study.paper.tuning_runs import READINGS, SLIPPED_SHARE, TASKS, WAYS, Draw, Outcome, draws, run
from mechmem.study.paper.tuning_traps import tuning_traps

ITEM = "finetuning"
SETS = ("memorized", "other")
WORDS = {"all": "all weights", "top": "the {} with the largest gradients", "random": "random {}"}
PUBLISHED = {"unlearn": published.UNLEARNED_EM, "edit": published.EDITED_EM}
Outcomes = dict[Any, Outcome]


def finetuning_item(paper: PaperFolder) -> Finding:
    """Unlearn and edit through all, the top and random weights; traps 1, 6, 9 and 11.

    1. As published, on folded weights: `published_recipe`, whose decay moves every weight, a mask of half the share,
       random weights by chance, and pairs of different paragraphs.
    2. Corrected, on raw weights: `mechmem.unlearn` (contrastive) and `mechmem.edit` (rewrite) with as many steps at a
       rate that is searched on part of the targets; they end when EM is a fifth or less, or the new text is learned.
    3. Every run is evaluated on its targets, and on other paragraphs that it was not given.
    """
    repeated = draws(paper)
    runs = [run(paper, draw) for draw in repeated]
    outcomes = [found for found, _ in runs]
    rows = [row for reading in READINGS for row in _rows(paper, repeated, outcomes, reading)]
    rows += _half_rows(paper, repeated, outcomes)
    share = 100 * paper.settings.fraction
    for reading in READINGS:
        mask = runs[0][1]["masks"][reading]["top"]
        measured = 100 * mask.count / mask.total
        quantity, units = f"weights of a mask that is called {share:g} %", "% of the attention and MLP weights"
        rows.append(Row(ITEM, quantity, reading, measured, measured, measured, share, units))
    data = _data(paper, repeated, outcomes)
    return Finding(tuple(rows), data, tuple(tuning_traps(paper, repeated[0], *runs[0])))


def _rows(paper: PaperFolder, repeated: list[Draw], outcomes: list[Outcomes], reading: Reading) -> list[Row]:
    rows = []
    share = 100 * paper.settings.fraction
    for task in TASKS:
        for way in WAYS:
            for number, name in enumerate(SETS):
                mean, low, high = _mean(paper, repeated, outcomes, (reading, task, way), name)
                place = WORDS[way].format(f"{share:g} %")
                quantity = f"EM of {name} paragraphs after: {task}, {place}"
                known = PUBLISHED[task][way][number]
                rows.append(Row(ITEM, quantity, reading, mean, low, high, known, "tokens", ""))
    return rows


def _half_rows(paper: PaperFolder, repeated: list[Draw], outcomes: list[Outcomes]) -> list[Row]:
    """The paper names ten steps and its public code takes five."""
    rows = []
    half, share = max(1, paper.settings.steps // 2), 100 * paper.settings.fraction
    for number, name in enumerate(SETS):
        found = _mean(paper, repeated, outcomes, ("as published", "unlearn", "top, half the steps"), name)
        quantity = f"EM of {name} paragraphs after: unlearn, {WORDS['top'].format(f'{share:g} %')}, {half} steps"
        known, note = (
            PUBLISHED["unlearn"]["top"][number],
            "The public code takes half of the steps that the paper names.",
        )
        rows.append(Row(ITEM, quantity, "as published", *found, known, "tokens", note))
    return rows


def _mean(
    paper: PaperFolder, repeated: Sequence[Draw], outcomes: Sequence[Outcomes], key: Any, field: str
) -> tuple[float, float, float]:
    """Mean over the paragraphs of all repetitions, with its interval by cluster."""
    values = np.concatenate([getattr(found[key], field) for found in outcomes]).astype(float)
    own = {"memorized": "targets", "rewritten": "clean"}.get(field, "held")
    clusters = np.concatenate([getattr(draw, own).clusters for draw in repeated])
    within = range_of("kl" if field == "kl" else "em", repeated[0].targets.continuation_len)
    return float(values.mean()), *interval(paper, values, clusters, within=within)


def _data(paper: PaperFolder, repeated: list[Draw], outcomes: list[Outcomes]) -> xr.Dataset:
    dims = ("reading", "task", "weights")
    keys = [[[(r, t, w) for w in WAYS] for t in TASKS] for r in READINGS]
    fields = {
        "memorized": ("em_memorized", "tokens", "more of the targets is left"),
        "other": ("em_other", "tokens of the model's own text", "other text is changed less"),
        "kl": ("kl_other", "nats per token", "other text is changed more"),
        "rewritten": ("em_rewritten", "tokens of the perturbed text", "more of the new text is said"),
    }
    data: dict[str, Any] = {}
    for field, (name, units, higher) in fields.items():
        found = np.array([[[_mean(paper, repeated, outcomes, k, field) for k in row] for row in part] for part in keys])
        for place, end in enumerate(("", "_low", "_high")):
            data[name + end] = (dims, found[..., place], {"units": units, "higher": higher})
    outside = np.array([[[np.mean([o[k].outside for o in outcomes]) for k in row] for row in part] for part in keys])
    data["moved_outside"] = (dims, outside, {"units": "weights", "higher": "the edit is less sparse"})
    data["target_id"] = (("repeat", "target"), np.stack([draw.targets.ids for draw in repeated]))
    top, random = (float(data["em_memorized"][1][1, 0, WAYS.index(way)]) for way in ("top", "random"))
    attrs = {
        "finding": f"Sparse unlearning leaves the targets a mean EM of {top:.1f} through the chosen weights and "
        f"{random:.1f} through as many random ones.",
        "slipped_share": SLIPPED_SHARE,
    }
    return xr.Dataset(data, {"reading": list(READINGS), "task": list(TASKS), "weights": list(WAYS)}, attrs)
