import itertools

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from jaxtyping import TypeCheckError

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.permutation import Alternative, permutation_test

DESIGNS = ["pure", "mixed", "both"]


def design(kind: str, rng: np.random.Generator, clusters: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Group and cluster of each value: clusters of 1 to 9 values, of one group, of both groups, or some of each."""
    labels = np.repeat(np.arange(clusters), rng.integers(1, 10, size=clusters))
    pure = (rng.permutation(clusters) % 2 == 0)[labels]
    mixed = rng.random(len(labels)) < 0.5
    if kind == "both":
        return np.where(labels < clusters // 2, pure, mixed), labels
    return (pure if kind == "pure" else mixed), labels


def clustered(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values that share most of their spread within a cluster."""
    return rng.normal(size=labels.max() + 1)[labels] + 0.3 * rng.normal(size=len(labels))


def rejections(kind: str, runs: int, *, effect: float = 0.0, ignore_clusters: bool = False) -> float:
    """Share of simulated studies with p <= 0.05."""
    found = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        groups, labels = design(kind, rng)
        values = clustered(labels, rng) + effect * groups
        clusters = None if ignore_clusters else labels
        found += permutation_test(values, groups, clusters, permutations=199, seed=seed)[1] <= 0.05
    return found / runs


@pytest.mark.parametrize("kind", DESIGNS)
def test_groups_that_do_not_differ_are_found_different_in_one_study_of_twenty(kind):
    # The standard error of a share of 0.05 in 600 studies is 0.009.
    assert 0.025 <= rejections(kind, 600) <= 0.075


def test_the_naive_test_finds_differences_that_are_none():
    assert rejections("pure", 200, ignore_clusters=True) > 0.2


@pytest.mark.parametrize("kind", DESIGNS)
def test_a_planted_difference_is_found(kind):
    assert rejections(kind, 60, effect=1.5) > 0.8


def test_one_sided_tests_look_to_one_side():
    rng = np.random.default_rng(3)
    groups, labels = design("pure", rng)
    values = clustered(labels, rng) + 2.0 * groups
    up = permutation_test(values, groups, labels, alternative="greater", permutations=999)
    down = permutation_test(values, groups, labels, alternative="less", permutations=999)
    both = permutation_test(values, groups, labels, permutations=999)
    assert up[0] == both[0] == pytest.approx(values[groups].mean() - values[~groups].mean()) and up[0] > 0
    assert up[1] < 0.01 and down[1] > 0.99 and both[1] == pytest.approx(2 * up[1])
    swapped = permutation_test(values, ~groups, labels, alternative="less", permutations=999)
    assert swapped[0] == pytest.approx(-up[0]) and swapped[1] < 0.01


def relabellings(groups: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Every arrangement of the labels that the documentation allows, by brute force over all arrangements of values."""
    names = np.unique(labels)
    pure = [c for c in names if len(set(groups[labels == c])) == 1]
    allowed = []
    for bits in itertools.product([False, True], repeat=len(groups)):
        other = np.array(bits)
        whole = all(len(set(other[labels == c])) == 1 for c in pure)
        same = all(other[labels == c].sum() == groups[labels == c].sum() for c in names if c not in pure)
        trues = [sum(bool(g[labels == c][0]) for c in pure) for g in (other, groups)]
        if whole and same and trues[0] == trues[1]:
            allowed.append(other)
    return allowed


@pytest.mark.parametrize("statistic", [None, lambda a, b: np.median(a) - np.median(b)], ids=["mean", "median"])
@pytest.mark.parametrize(
    "groups",
    ["111000011100", "111010010110", "101001001010"],
    ids=DESIGNS,
)
def test_p_values_are_those_of_every_allowed_relabelling(groups, statistic):
    labels = np.array(list("xxxyyyyzzzww"))
    chosen = np.array([bit == "1" for bit in groups])
    values = np.random.default_rng(5).normal(size=12) + chosen
    compare = statistic or (lambda a, b: a.mean() - b.mean())
    null = np.array([compare(values[g], values[~g]) for g in relabellings(chosen, labels)])
    observed = compare(values[chosen], values[~chosen])
    expected: dict[Alternative, float] = {
        "greater": (null >= observed - 1e-9).mean(),
        "less": (null <= observed + 1e-9).mean(),
    }
    expected["two-sided"] = min(1.0, 2 * min(expected.values()))
    for alternative, p in expected.items():
        found = permutation_test(
            values, chosen, labels, statistic=statistic, alternative=alternative, permutations=10_000
        )
        assert found == (pytest.approx(observed), pytest.approx(p, abs=0.025))


def test_without_clusters_it_is_scipys():
    rng = np.random.default_rng(1)
    values, groups = rng.normal(size=9), np.arange(9) < 4
    ours = permutation_test(values + 0.5 * groups, groups, permutations=20_000)
    theirs = scipy.stats.permutation_test(
        [(values + 0.5)[:4], values[4:]], lambda a, b: a.mean() - b.mean(), n_resamples=1000
    )
    assert ours == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue, abs=0.015))


def test_the_mean_from_cluster_sums_is_the_slow_statistic():
    rng = np.random.default_rng(2)
    groups, labels = design("both", rng)
    values = clustered(labels, rng) + 1000.0
    slow = permutation_test(values, groups, labels, statistic=lambda a, b: a.mean() - b.mean(), permutations=300)
    assert permutation_test(values, groups, labels, permutations=300) == pytest.approx(slow)


def test_the_smallest_p_value_is_that_of_the_observed_draw_and_equal_values_say_nothing():
    groups = np.arange(200) < 100
    assert permutation_test(groups.astype(float), groups, permutations=99, alternative="greater")[1] == 0.01
    assert permutation_test(np.full(200, 0.1), groups, permutations=99)[1] == 1.0


def test_values_are_found_by_the_ids_of_the_paragraphs():
    rng = np.random.default_rng(3)
    groups, labels = design("both", rng)
    values = clustered(labels, rng)
    paragraphs = Paragraphs(torch.arange(2 * len(values)).view(-1, 2), 1).with_columns(cluster=labels)
    scores = xr.DataArray(values, {"paragraph": paragraphs.ids}, ("paragraph",))
    order = rng.permutation(len(values))
    expected = permutation_test(values, groups, labels, permutations=99)
    assert permutation_test(scores[order], groups, paragraphs, permutations=99) == expected
    with pytest.raises(InputError, match="paragraphs are not in this result"):
        permutation_test(scores[1:], groups, paragraphs, permutations=99)


def test_bad_input_is_refused():
    values, groups = np.arange(4.0), np.array([True, True, False, False])
    with pytest.raises(InputError, match=r"groups of type bool and shape .4. with .True. for 4 values"):
        permutation_test(values, np.ones(4, bool))
    with pytest.raises(InputError, match="groups of type int64"):
        permutation_test(values, groups.astype(int))
    with pytest.raises(InputError, match=r"values of shape .4. and clusters of shape .3."):
        permutation_test(values, groups, np.arange(3))
    with pytest.raises(InputError, match="got 4 values, 1 of them not finite"):
        permutation_test(np.array([1.0, np.nan, 0.0, 0.0]), groups)
    with pytest.raises(InputError, match="got 0 as permutations"):
        permutation_test(values, groups, permutations=0, alternative="less")
    with pytest.raises((InputError, TypeCheckError)):
        permutation_test(values, groups, alternative="more")  # pyright: ignore[reportArgumentType]
