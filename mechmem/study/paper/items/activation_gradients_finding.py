"""Item 6: the loss's gradient with respect to the values of every head."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.localize.activation_gradients import activation_gradients
from mechmem.stats.ranges import NOT_NEGATIVE
from mechmem.study.paper import published
from mechmem.study.paper.intervals import interval
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.readings import published_columns
from mechmem.study.paper.rows import Finding, Reading, Row

ITEM, UNITS = "activation_gradients", "nats per token per unit of activation"
SITE = "v"
HEAD = published.SALIENT_LAYER, published.SALIENT_HEAD


def activation_gradients_item(paper: PaperFolder) -> Finding:
    """The largest |d NLL / d v| of every head, over its vector and the positions."""
    sample = paper.sample("memorized", paper.settings.activation_sample)
    runs: dict[Reading, Any] = {
        "as published": (paper.folded, published_columns(sample)),
        "corrected": (paper.model, sample),
    }
    grids: list[np.ndarray] = []
    rows: list[Row] = []
    for reading, (model, paragraphs) in runs.items():
        gradient = activation_gradients(
            model, paragraphs, site=SITE, average=False, progress=paper.at(f"gradients of values, {reading}")
        )
        grids.append(gradient.max("pos").values)
        rows += _rows(paper, reading, grids[-1], sample.clusters)
    common = {"units": UNITS, "higher": "the NLL depends more on the head's values"}
    data = xr.Dataset(
        {"gradient": (("reading", "paragraph", "layer", "head"), np.stack(grids), common)},
        {"reading": list(runs), "paragraph": sample.ids},
    )
    layer, head = _strongest(grids[0].mean(0))
    data.attrs["finding"] = (
        f"As published, the head whose values the loss depends on most is L{layer}H{head}; the study's is "
        f"L{HEAD[0]}H{HEAD[1]}."
    )
    return Finding(tuple(rows), data)


def _rows(paper: PaperFolder, reading: Reading, values: np.ndarray, clusters: np.ndarray) -> list[Row]:
    """Rank of the study's head and its gradient, and the gradient of the strongest head."""
    rows: list[Row] = []
    if HEAD[0] < values.shape[1] and HEAD[1] < values.shape[2]:
        name = f"L{HEAD[0]}H{HEAD[1]}"
        low, high = interval(paper, values, clusters, lambda some: _rank(some.mean(0)), within=(1.0, None))
        count = values.shape[1] * values.shape[2]
        quantity = f"rank of {name} among {count} heads"
        rows.append(Row(ITEM, quantity, reading, _rank(values.mean(0)), low, high, 1.0, "rank", "1: the largest"))
    layer, head = _strongest(values.mean(0))
    own = values[:, layer, head]
    low, high = interval(paper, own, clusters, within=NOT_NEGATIVE)
    quantity, note = "largest mean |gradient| of a head", f"{reading}: L{layer}H{head}"
    rows.append(Row(ITEM, quantity, reading, float(own.mean()), low, high, None, UNITS, note))
    return rows


def _rank(mean: np.ndarray) -> float:
    return float((mean > mean[HEAD]).sum()) + 1


def _strongest(mean: np.ndarray) -> tuple[int, int]:
    layer, head = np.unravel_index(int(mean.argmax()), mean.shape)
    return int(layer), int(head)
