"""Item 3: size of the parameter gradients by group of EM, layer and component."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.study.paper import published
from mechmem.study.paper.gradient_jackknife import Jackknife, component_jackknife
from mechmem.study.paper.paper_folder import NotPossibleError, PaperFolder
from mechmem.study.paper.paper_sets import GROUPS
from mechmem.study.paper.readings import own_text, published_columns
from mechmem.study.paper.rows import Finding, Reading, Row

ITEM = "parameter_gradients"
UNITS, SQUARED = "nats per token per unit of weight", "(nats per token per unit of weight)²"
READINGS: tuple[Reading, Reading] = ("as published", "corrected")
# Layers 0 to 3 of the study's twelve.
LOWER = 1 / 3


@dataclass(frozen=True)
class _Measured:
    """One group in one reading."""

    group: str
    reading: Reading
    found: Jackknife


def parameter_gradients_item(paper: PaperFolder) -> Finding:
    """Component scores of every group, in both readings."""
    measured = [entry for name in GROUPS if name in paper.sets.groups for entry in _group(paper, name)]
    if not measured:
        raise NotPossibleError("no group of EM has two clusters of near-duplicates")
    rows = [row for entry in measured for row in _rows(entry)]
    scores = np.full((2, len(GROUPS), *measured[0].found.scores.shape), np.nan)
    for entry in measured:
        scores[READINGS.index(entry.reading), GROUPS.index(entry.group)] = entry.found.scores
    first = measured[0].found.scores
    units = {"units": UNITS, "higher": "the group's NLL depends more on the component"}
    data = xr.Dataset(
        {"gradient": (("reading", "group", "layer", "component"), scores, units)},
        {
            "reading": list(READINGS),
            "group": list(GROUPS),
            "layer": first.layer.values,
            "component": first.component.values,
        },
    )
    data.attrs["finding"] = _sentence(rows)
    return Finding(tuple(rows), data)


def _group(paper: PaperFolder, name: str) -> list[_Measured]:
    """The group as published: folded weights, the model's own text, columns from prefix_len on; and corrected."""
    try:
        sample = paper.sample(name, paper.settings.gradient_sample)
    except NotPossibleError:
        return []
    known_text = not sample.column("own_text").any()
    written = own_text(paper.model, sample) if known_text and name != GROUPS[-1] else sample
    runs: list[tuple[Reading, HookedTransformer, Paragraphs]] = [
        ("as published", paper.folded, published_columns(written))
    ]
    if known_text:
        runs.append(("corrected", paper.model, sample))
    return [
        _Measured(
            name,
            reading,
            component_jackknife(
                model, paragraphs, seed=paper.seed, progress=paper.at(f"gradients, EM {name}, {reading}")
            ),
        )
        for reading, model, paragraphs in runs
    ]


def _rows(entry: _Measured) -> list[Row]:
    name, layers = entry.group, entry.found.scores.sizes["layer"]
    lower = max(1, round(LOWER * layers))

    def row(quantity: str, statistic: object, stated: float | None, units: str) -> Row:
        value, low, high = entry.found.estimate(statistic)  # pyright: ignore[reportArgumentType]
        return Row(ITEM, f"{quantity}, EM {name}", entry.reading, value, low, high, stated, units)

    rows = [
        row("sum of component scores", lambda s: s.sum(), published.GRADIENT_SUM[name], UNITS),
        row("variance of component scores", lambda s: s.var(), published.GRADIENT_VARIANCE[name], SQUARED),
        row(
            f"share of layers 0 to {lower - 1}",
            lambda s: s[:lower].sum() / s.sum(),
            published.LOWER_SHARE.get(name),
            "1",
        ),
    ]
    stated = published.GRADIENT_LAYERS[name]
    for layer in range(layers):
        known = stated[layer] if layer < len(stated) else None
        rows.append(row(f"sum of layer {layer}", lambda s, layer=layer: s[layer].sum(), known, UNITS))
    return rows


def _sentence(rows: list[Row]) -> str:
    def value(quantity: str, group: str) -> float | None:
        found = [r.measured for r in rows if r.reading == "as published" and r.quantity == f"{quantity}, EM {group}"]
        return found[0] if found else None

    share = next(row.quantity.split(", EM")[0] for row in rows if row.quantity.startswith("share"))
    high, low = value("sum of component scores", "50"), value("sum of component scores", "0-10")
    shares = value(share, "50"), value(share, "0-10")
    if high is None or low is None or shares[0] is None or shares[1] is None:
        return "Only some groups of EM have paragraphs enough for gradients."
    return (
        f"As published, the component scores sum to {high:.2f} for EM 50 and to {low:.2f} for EM 0 to 10; the {share} "
        f"is {100 * shares[0]:.0f} % against {100 * shares[1]:.0f} %."
    )
