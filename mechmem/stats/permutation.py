"""Permutation tests for paragraphs that are not independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Integer, Num

from mechmem.data.bounds import Count, Seed, checked
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.bootstrap import values_and_clusters

Alternative = Literal["two-sided", "greater", "less"]
# Shuffled labels of all draws held at once: 8 bytes each.
_CHUNK = 4_000_000
# Rounding, as a share of the largest value: what differs by less is a tie, and a tie counts against a finding.
_TIE = 1e-10


@checked
def permutation_test(
    values: Num[np.ndarray, " value"] | xr.DataArray,
    groups: np.ndarray,
    clusters: np.ndarray | Paragraphs | None = None,
    *,
    statistic: Callable[..., object] | None = None,
    alternative: Alternative = "two-sided",
    permutations: Count = 10_000,
    seed: Seed = 0,
) -> tuple[float, float]:
    """Test whether two groups of paragraphs differ, by shuffling what is exchangeable under the null hypothesis.

    1. A cluster whose values are all in one group is one unit: its label goes to all of its values, and the labels of
       such clusters are shuffled among them.
    2. In a cluster that holds both groups, labels are shuffled within it: what its values share stays shared.
    3. The statistic of the shuffled labels is the null distribution; the observed one counts as one of its draws.

    SciPy's `permutation_test` shuffles all labels alike; here they keep to the blocks of steps 1 and 2.

    Shuffling of either kind leaves the null distribution as it is, so both together are an exact test of what both
    kinds of clusters say. Near-duplicates shuffled one by one would find differences everywhere. The null hypothesis
    of step 1 is that a cluster's label has nothing to do with the cluster, its size included.

    Args:
        values: one number per paragraph.
        groups: bool, [value]: True where the value is of the first group.
        clusters: label of each value's cluster, [value]; None: every value is a cluster of its own. Or the paragraphs
            that the values and groups are about: then a DataArray's values are found by the paragraphs' ids, and
            groups are in the paragraphs' order.
        statistic: called with (values of the first group, of the second), returns a number; None: the difference of
            the means, computed from cluster sums, much faster.
        alternative: "greater": the statistic is larger than by chance; "two-sided": twice the smaller one-sided
            p-value, which needs no symmetry.
        permutations: shuffles; the smallest one-sided p-value is 1 / (permutations + 1), or about one in the number of
            distinct shuffles where that is smaller: with three clusters a group, 1 / 20.
        seed: of the shuffles.

    Returns:
        (statistic, p_value). The statistic is in its own unit, for the default positive: the first group is higher.
        The chance of a p-value of at most q is at most q under the null hypothesis.

    Raises:
        InputError: no value, one that is not finite, labels of another length, groups that are not bool or all the
            same, or an unknown alternative.
    """
    check_choice("alternative", alternative, Alternative)
    groups = np.asarray(groups)
    values, clusters = values_and_clusters(values, np.arange(len(values)) if clusters is None else clusters)
    if groups.shape != values.shape or groups.dtype != bool or groups.all() or not groups.any():
        raise InputError(
            f"got groups of type {groups.dtype} and shape {list(groups.shape)} with "
            f"{np.unique(groups).tolist()[:4]} for {len(values)} values; need one bool for each, some True and some "
            "False: compare labels, for example source == 'book'"
        )
    units, blocks = _exchangeable(groups, np.unique(clusters, return_inverse=True)[1])
    labels = np.zeros(len(blocks), dtype=bool)
    labels[units] = groups
    compute = _mean_differences if statistic is None else _differences
    extra = () if statistic is None else (statistic,)
    observed = float(compute(values, units, labels[None], *extra)[0])
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // len(values))
    null = []
    for start in range(0, permutations, chunk):
        shuffled = _shuffled(labels, blocks, min(chunk, permutations - start), rng)
        null.append(compute(values, units, shuffled, *extra))
    return observed, _p_value(observed, np.concatenate(null), alternative, np.abs(values).max())


def _exchangeable(
    groups: Bool[np.ndarray, " value"], members: Integer[np.ndarray, " value"]
) -> tuple[Integer[np.ndarray, " value"], Integer[np.ndarray, " unit"]]:
    """The unit of each value and the block of each unit: labels may change places within a block.

    Block 0 holds the clusters of one group, a unit each; every other block is a cluster of both, its values its units.
    """
    sizes, trues = np.bincount(members), np.bincount(members, groups)
    mixed = (trues > 0) & (trues < sizes)
    single = mixed[members]
    units = np.where(single, (~mixed).sum() + np.cumsum(single) - 1, (np.cumsum(~mixed) - 1)[members])
    blocks = np.zeros(units.max() + 1, dtype=np.int64)
    blocks[units[single]] = 1 + members[single]
    return units, blocks


def _shuffled(
    labels: Bool[np.ndarray, " unit"], blocks: Integer[np.ndarray, " unit"], draws: int, rng: np.random.Generator
) -> Bool[np.ndarray, "draw unit"]:
    order = np.argsort(blocks, kind="stable")
    # Random keys between block and block + 1: sorting keeps units in their block, in random order.
    keys = rng.random((draws, len(blocks))) + blocks[order]
    shuffled = np.empty(keys.shape, dtype=bool)
    shuffled[:, order] = labels[order][keys.argsort(1)]
    return shuffled


def _mean_differences(
    values: Float[np.ndarray, " value"], units: Integer[np.ndarray, " value"], labels: Bool[np.ndarray, "draw unit"]
) -> Float[np.ndarray, " draw"]:
    sums, sizes, chosen = np.bincount(units, values), np.bincount(units).astype(float), labels.astype(float)
    first, count = chosen @ sums, chosen @ sizes
    return first / count - (sums.sum() - first) / (sizes.sum() - count)


def _differences(
    values: Float[np.ndarray, " value"],
    units: Integer[np.ndarray, " value"],
    labels: Bool[np.ndarray, "draw unit"],
    statistic: Callable[..., object],
) -> Float[np.ndarray, " draw"]:
    return np.array([statistic(values[draw[units]], values[~draw[units]]) for draw in labels], dtype=np.float64)


def _p_value(observed: float, null: Float[np.ndarray, " draw"], alternative: Alternative, scale: float) -> float:
    tie = _TIE * max(abs(observed), scale)
    greater = (1 + int((null >= observed - tie).sum())) / (1 + len(null))
    less = (1 + int((null <= observed + tie).sum())) / (1 + len(null))
    return {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}[alternative]
