"""Intervals of many means at once: one for each cell of a grid, over pairs or paragraphs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

from mechmem.data.bounds import Level, checked
from mechmem.data.errors import InputError
from mechmem.stats.mean_intervals import Side, contrast_interval
from mechmem.stats.ranges import ANY, Range

# Influences of all clusters held at once: 8 bytes each.
_CHUNK = 4_000_000


@checked
def cell_intervals(
    values: Shaped[np.ndarray, "paragraph ..."],
    clusters: np.ndarray,
    *,
    level: Level = 0.95,
    within: Range = ANY,
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of `cluster_bootstrap` for the mean of every cell.

    Each interval is about one cell alone: of many cells, 5 % lie outside theirs.

    Args:
        values: of each paragraph in each cell; a cell with a NaN has no interval; bools are shares, as there.
        clusters: label of each paragraph's cluster, [paragraph].
        level: how often each interval should hold the true mean.
        within: (least, largest) that each mean can be, as there.

    Returns:
        (low, high), one for each cell, in the values' unit; NaN where a value is missing.

    Raises:
        InputError: no paragraph, labels of another length, or a mean that is not within the range.
    """
    if not len(values) or np.shape(clusters) != (len(values),):
        raise InputError(
            f"got {len(values)} values in every cell and clusters of shape {list(np.shape(clusters))}; need at least 1 "
            "value, and one label for each"
        )
    labels, members = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(members).astype(np.float64)
    flat = values.reshape(len(values), -1)
    whole = np.flatnonzero(np.isfinite(flat).all(0))
    ends = np.full((2, flat.shape[1]), np.nan)
    step = max(1, _CHUNK // len(labels))
    for start in range(0, len(whole), step):
        cells = whole[start : start + step]
        sums = np.zeros((len(labels), len(cells)))
        np.add.at(sums, members, flat[:, cells])
        ends[:, cells] = contrast_interval([Side(sums, sizes, values.dtype == bool)], level, within)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high
