"""Rows with their intervals: means and other statistics, by cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.stats.ranges import Range
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import Reading, Row


def mean_row(
    paper: PaperFolder,
    item: str,
    quantity: str,
    reading: Reading,
    values: Float[np.ndarray, " paragraph"],
    paragraphs: Paragraphs,
    *,
    published: float | None = None,
    units: str,
    within: Range,
    note: str = "",
) -> Row:
    """The mean over paragraphs with its interval by cluster.

    Args:
        paper: gives the seed and the number of resamples.
        item: of the row, as are `quantity`, `reading`, `published`, `units` and `note`.
        quantity: what is measured.
        reading: which recipe.
        values: one for each paragraph.
        paragraphs: with their clusters.
        published: the study's value.
        units: of the values.
        within: (least, largest) that their mean can be.
        note: what the reader must know.
    """
    low, high = interval(paper, values, paragraphs.clusters, within=within)
    return Row(item, quantity, reading, float(np.mean(values)), low, high, published, units, note)


def interval(
    paper: PaperFolder,
    values: np.ndarray,
    clusters: np.ndarray,
    statistic: Callable[[np.ndarray], Any] = np.mean,
    *,
    within: Range,
) -> tuple[float, float]:
    """95 % interval of a statistic of the values, by cluster; of another one than the mean by resampling.

    Args:
        paper: gives the seed and the number of resamples.
        values: [value], or [value, ...]: then the statistic gets the resampled rows.
        clusters: label of each value's cluster.
        statistic: of the values.
        within: (least, largest) that the statistic can be.
    """
    if statistic is np.mean:
        return cluster_bootstrap(values, clusters, within=within)
    draws, seed = paper.settings.draws, paper.seed
    if values.ndim == 1:
        return cluster_bootstrap(values, clusters, statistic=statistic, draws=draws, seed=seed, within=within)
    rows = np.arange(len(values))
    return cluster_bootstrap(
        rows,
        clusters,
        statistic=lambda chosen: statistic(values[chosen.astype(int)]),
        draws=draws,
        seed=seed,
        within=within,
    )
