import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.stats.bootstrap import cluster_bootstrap, cluster_bootstrap_difference


def sample(seed: int, clusters: int = 23, size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Values that share most of their spread within a cluster; true mean 0."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), size)
    return rng.normal(size=clusters)[labels] + 0.2 * rng.normal(size=len(labels)), labels


def test_another_statistic_is_resampled_one_draw_at_a_time():
    values, labels = sample(0)
    # Clusters of unequal size, in no order, with labels that are words.
    keep = np.random.default_rng(1).permutation(len(values))[:97]
    values, labels = values[keep], np.array([f"c{label}" for label in labels[keep]])
    found = cluster_bootstrap(values, labels, draws=500, seed=3, statistic=np.median)
    names, rng, medians = np.unique(labels), np.random.default_rng(3), []
    for chosen in rng.integers(0, 23, (500, 23)):
        medians.append(np.median(np.concatenate([values[labels == names[c]] for c in chosen])))
    share = np.unique(labels, return_counts=True)[1] / 97
    p = share / (1 - share) ** 0.5
    degrees = 1 / ((share**2).sum() + (p**2).sum() ** 2 - (p**4).sum())
    t = scipy.stats.t.ppf(0.975, degrees) * (23 / 22) ** 0.5
    np.testing.assert_allclose(found, np.quantile(medians, scipy.stats.norm.cdf([-t, t])))
    assert found[0] < np.median(values) < found[1]
    assert found != cluster_bootstrap(values, labels, draws=500, seed=4, statistic=np.median)


def test_the_quantiles_of_resampled_means_are_scipys():
    """Of the same draws, at the quantiles of an expanded percentile interval of clusters of one size."""
    values, labels = sample(4)
    sums, sizes = np.bincount(labels, values), np.bincount(labels).astype(float)
    beyond = scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.95, 22) * (23 / 22) ** 0.5)
    theirs = scipy.stats.bootstrap(
        (sums, sizes),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=700,
        confidence_level=float(1 - 2 * beyond),
        rng=5,
    ).confidence_interval
    ours = cluster_bootstrap(values, labels, draws=700, seed=5, level=0.9, statistic=lambda v: v.mean())
    np.testing.assert_allclose(ours, (theirs.low, theirs.high), rtol=1e-12)


@pytest.mark.parametrize("clusters", [5, 20])
def test_medians_are_covered(clusters):
    """Fewer clusters than it takes have an interval that is a little narrow, much less so than plain percentiles'."""
    covered = {"ours": 0, "percentile": 0}
    for seed in range(300):
        values, labels = sample(seed, clusters, 5)
        low, high = cluster_bootstrap(values, labels, draws=300, seed=seed, statistic=np.median)
        covered["ours"] += low <= 0 <= high
        medians = np.median(
            values.reshape(clusters, 5)[np.random.default_rng(seed).integers(0, clusters, (300, clusters))], (1, 2)
        )
        low, high = np.quantile(medians, [0.025, 0.975])
        covered["percentile"] += low <= 0 <= high
    assert 0.88 * 300 <= covered["ours"] and covered["percentile"] <= covered["ours"]


def test_values_are_found_by_the_ids_of_the_paragraphs():
    values, labels = sample(5)
    paragraphs = Paragraphs(torch.arange(2 * len(values)).view(-1, 2), 1).with_columns(cluster=labels)
    scores = xr.DataArray(values, {"paragraph": paragraphs.ids}, ("paragraph",))
    order = np.random.default_rng(0).permutation(len(values))
    expected = cluster_bootstrap(values, labels)
    assert cluster_bootstrap(scores[order], paragraphs) == expected
    assert cluster_bootstrap(values, paragraphs) == expected
    assert cluster_bootstrap(scores[order], labels) != expected
    part = paragraphs.select(order[:50])
    found = cluster_bootstrap_difference(scores, scores, part, paragraphs)
    assert found == cluster_bootstrap_difference(values[order[:50]], values, labels[order[:50]], labels)
    with pytest.raises(InputError, match="1 of 161 paragraphs are not in this result"):
        cluster_bootstrap(scores[1:], paragraphs)


def test_clusters_are_resampled_whole():
    """The interval covers the truth about as often as it says; one that ignores clusters is far too narrow."""
    covered = {"whole": 0, "single": 0}
    for seed in range(200):
        values, labels = sample(seed)
        for name, groups in {"whole": labels, "single": np.arange(len(values))}.items():
            low, high = cluster_bootstrap(values, groups)
            covered[name] += low <= 0 <= high
    assert 0.88 * 200 <= covered["whole"] and covered["single"] < 0.65 * 200


def test_a_higher_level_is_a_wider_interval():
    values, labels = sample(2)
    low, high = cluster_bootstrap(values, labels, level=0.5)
    wide = cluster_bootstrap(values, labels, level=0.99)
    assert wide[0] < low < high < wide[1]
    spread = values.reshape(23, 7).mean(1).std() / 23**0.5
    assert high - low == pytest.approx(2 * 0.6745 * spread, rel=0.1)


def test_one_cluster_says_nothing_about_spread():
    for statistic in (np.mean, np.median):
        found = cluster_bootstrap(np.array([1.0, 2.0, 6.0, 3.0]), np.zeros(4), statistic=statistic)
        assert found == (statistic([1, 2, 3, 6]),) * 2


def two_samples(seed: int, shared: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two sets whose true difference is 1; clusters are each set's own, or each has values in both sets."""
    values, labels = sample(seed, clusters=34, size=6)
    first = np.arange(len(values)) % 2 == 0 if shared else labels < 17
    values = values + first
    return values[first], values[~first], labels[first], labels[~first]


def test_a_difference_of_another_statistic_has_its_sign():
    for shared in (True, False):
        first, second, one, other = two_samples(0, shared)
        found = cluster_bootstrap_difference(first, second, one, other, draws=300, seed=3, statistic=np.median)
        assert found[0] < np.median(first) - np.median(second) < found[1]
        swapped = cluster_bootstrap_difference(second, first, other, one, draws=300, seed=3, statistic=np.median)
        np.testing.assert_allclose(swapped, (-found[1], -found[0]))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says(shared):
    covered = {"clusters": 0, "single": 0}
    widths = []
    for seed in range(200):
        first, second, one, other = two_samples(seed, shared)
        low, high = cluster_bootstrap_difference(first, second, one, other)
        covered["clusters"] += low <= 1 <= high
        widths.append(high - low)
        one, other = np.arange(len(first)), np.arange(len(second)) + len(first)
        low, high = cluster_bootstrap_difference(first, second, one, other)
        covered["single"] += low <= 1 <= high
    assert covered["clusters"] >= 0.88 * 200
    # Apart, single draws are far too sure; shared, they miss that what the clusters share cancels.
    assert covered["single"] == 200 if shared else covered["single"] < 0.7 * 200
    assert (np.mean(widths) < 0.25) if shared else (np.mean(widths) > 1.0)


def test_no_draw_leaves_a_set_empty():
    for statistic in (np.mean, np.median):
        low, high = cluster_bootstrap_difference(
            np.ones(1), np.zeros(2), np.array([7]), np.array([1, 2]), statistic=statistic
        )
        assert (low, high) == (1.0, 1.0)


def test_draws_and_seed_change_nothing_of_a_mean():
    values, labels = sample(6)
    for draws, seed in ((500, 0), (2000, 3)):
        assert cluster_bootstrap(values, labels, draws=draws, seed=seed) == cluster_bootstrap(values, labels)
        found = cluster_bootstrap_difference(values, -values, labels, labels, draws=draws, seed=seed)
        assert found == cluster_bootstrap_difference(values, -values, labels, labels)


def test_bad_sets_are_refused():
    one = np.ones(3)
    with pytest.raises(InputError, match="got 0 values"):
        cluster_bootstrap_difference(one, np.zeros(0), one, np.zeros(0))
    with pytest.raises(InputError, match=r"values of shape .3. and clusters of shape .2."):
        cluster_bootstrap_difference(one, one, one, np.ones(2))


def test_bad_input_is_refused():
    one = np.ones(3)
    with pytest.raises(InputError, match=r"values of shape .3. and clusters of shape .2."):
        cluster_bootstrap(one, np.zeros(2))
    with pytest.raises(InputError, match="got 2 values, 1 of them not finite"):
        cluster_bootstrap(np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(InputError, match="got 0 values"):
        cluster_bootstrap(np.zeros(0), np.zeros(0))
    with pytest.raises(InputError, match="got 95.0 as level; need a finite number above 0 and below 1"):
        cluster_bootstrap(one, one, draws=9, level=95.0)
