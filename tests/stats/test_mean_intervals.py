"""Intervals of means cover the truth as often as they say, and are those of a slow computation of their steps."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from mechmem.stats.bootstrap import cluster_bootstrap, cluster_bootstrap_difference
from mechmem.stats.cell_intervals import cell_intervals

COUNTS = (5, 10, 20, 30, 80)
Sets = list[tuple[np.ndarray, np.ndarray]]


def slow_interval(sets: Sets, level: float) -> tuple[float, float]:
    """Each cluster really left out; Bell and McCaffrey's matrices; the transformation inverted by a search."""
    labels = np.unique(np.concatenate([clusters for _, clusters in sets]))
    signs = (1, -1)

    def contrast(without: object) -> np.ndarray:
        return np.array([values[clusters != without].mean() for values, clusters in sets])

    means, left_out, influence = contrast(None), [], []
    for label in labels:
        left_out.append(contrast(label) - means)
        influence.append([(v[c == label] - m).sum() / len(v) for (v, c), m in zip(sets, means, strict=True)])
    numbers = np.array([len(np.unique(clusters)) for _, clusters in sets])
    jackknife = np.array(left_out) * np.sqrt((numbers - 1) / numbers) * signs[: len(sets)]
    variances, error = (jackknife**2).sum(0), float(np.sqrt((jackknife.sum(1) ** 2).sum()))
    q = float(scipy.stats.t.ppf((1 + level) / 2, matrix_degrees(sets, variances)))
    u = (np.array(influence) * signs[: len(sets)]).sum(1)
    g = float(scipy.stats.skew(u, bias=False)) / len(labels) ** 0.5

    def inverse(y: float) -> float:
        cubic = scipy.optimize.brentq(lambda t: t + g * t**2 / 3 + g**2 * t**3 / 27 + g / 6 - y, -1e4, 1e4, xtol=1e-13)
        return float(np.asarray(cubic))

    mean = float((means * signs[: len(sets)]).sum())
    return mean - error * max(q, inverse(q)), mean + error * max(q, -inverse(-q))


def matrix_degrees(sets: Sets, variances: np.ndarray) -> float:
    """Satterthwaite's, of the bias-reduced variance of a regression on one dummy for each set."""
    side = np.repeat(np.arange(len(sets)), [len(values) for values, _ in sets])
    clusters = np.concatenate([clusters for _, clusters in sets])
    x = (side[:, None] == np.arange(len(sets))).astype(float)
    outside = np.eye(len(x)) - x @ np.linalg.inv(x.T @ x) @ x.T
    weights = x @ np.linalg.inv(x.T @ x) @ np.array([1.0, -1.0])[: len(sets)]
    columns = []
    for label in np.unique(clusters):
        own = np.flatnonzero(clusters == label)
        values, vectors = np.linalg.eigh(outside[np.ix_(own, own)])
        columns.append(outside[:, own] @ (vectors / np.sqrt(values)) @ vectors.T @ weights[own])
    # Each value's variance in its own set, so that the set's mean has the variance that was found.
    scale = (variances * [len(values) for values, _ in sets])[side]
    covariance = np.array(columns) * scale @ np.array(columns).T
    return float(np.trace(covariance) ** 2 / (covariance**2).sum())


def unequal(seed: int, clusters: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(clusters), rng.geometric(0.3, clusters))
    return rng.exponential(size=clusters)[labels] + rng.normal(size=len(labels)), labels


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_the_slow_one(seed):
    values, labels = unequal(seed)
    for level in (0.8, 0.95):
        found = cluster_bootstrap(values, labels, level=level)
        np.testing.assert_allclose(found, slow_interval([(values, labels)], level), rtol=1e-9)
    other, theirs = unequal(seed + 10, 6)
    # Clusters of their own, and clusters with values in both sets.
    for shift in (100, 0, 3):
        sets = [(values, labels), (other, theirs + shift)]
        found = cluster_bootstrap_difference(values, other, labels, theirs + shift)
        np.testing.assert_allclose(found, slow_interval(sets, 0.95), rtol=1e-9)
        swapped = cluster_bootstrap_difference(other, values, theirs + shift, labels)
        np.testing.assert_allclose(swapped, (-found[1], -found[0]), rtol=1e-9)


def test_of_symmetric_single_values_it_is_students_and_welchs():
    half = np.random.default_rng(0).normal(size=6)
    values, other = np.concatenate([half, -half]), 3 * np.concatenate([half[:3], -half[:3]]) + 1
    one, two = np.arange(12), np.arange(6) + 100
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    np.testing.assert_allclose(cluster_bootstrap(values, one, level=0.9), expected, rtol=1e-9)
    expected = scipy.stats.ttest_ind(values, other, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(cluster_bootstrap_difference(values, other, one, two, level=0.9), expected, rtol=1e-9)


def percentile(sums: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval of resampled clusters, of each column: what fails."""
    weights = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), 500).astype(float)
    low, high = np.quantile((weights @ sums) / (weights @ sizes)[:, None], [0.025, 0.975], axis=0)
    return low, high


@pytest.mark.parametrize("clusters", COUNTS)
@pytest.mark.parametrize("effects", ["normal", "exponential"])
def test_means_are_covered_at_few_and_many_clusters(effects, clusters):
    rng = np.random.default_rng(clusters)
    # Eight draws of unequal sizes, 400 trials each, and one of equal sizes.
    for shapes in ([np.full(clusters, 5)] * 2, [rng.geometric(0.25, clusters) for _ in range(8)]):
        covered, resampled = [], []
        for sizes in shapes:
            labels, trials = np.repeat(np.arange(clusters), sizes), 3200 // len(shapes)
            each = rng.normal(size=(clusters, trials))
            if effects == "exponential":
                each = rng.exponential(size=(clusters, trials)) - 1
            values = each[labels] + 0.5 * rng.normal(size=(len(labels), trials))
            low, high = cell_intervals(values, labels)
            covered.append((low <= 0) & (high >= 0))
            sums = np.add.reduceat(values, np.concatenate([[0], np.cumsum(sizes)[:-1]]))
            low, high = percentile(sums, sizes.astype(float), rng)
            resampled.append((low <= 0) & (high >= 0))
        # Standard error of a share of 0.95 of 3,200: 0.4 %. Unequal sizes differ from draw to draw.
        least, most = (0.935, 0.98) if effects == "normal" else (0.91, 0.97)
        assert least <= np.mean(covered) <= most
        assert clusters > 10 or np.mean(resampled) < 0.915, "the control must fail"


@pytest.mark.parametrize(("first", "second"), [(5, 5), (10, 10), (20, 20), (30, 80), (5, 80), (80, 10)])
def test_differences_are_covered_at_few_and_many_clusters(first, second):
    rng = np.random.default_rng(first + second)
    for skewed, shared in ((False, False), (True, False), (False, True)):
        covered = 0
        for _ in range(250):
            labels = np.repeat(np.arange(first + second), rng.geometric(0.3, first + second))
            each = rng.exponential(size=first + second) - 1 if skewed else rng.normal(size=first + second)
            values = each[labels] + rng.normal(size=len(labels))
            chosen = labels < first
            if shared:
                # What clusters share cancels: the difference is of single values.
                chosen = np.arange(len(values)) % 2 == 0
            low, high = cluster_bootstrap_difference(values[chosen], values[~chosen], labels[chosen], labels[~chosen])
            covered += low <= 0 <= high
        # Standard error of a share of 0.95 of 250: 1.4 %.
        assert (0.87 if skewed and min(first, second) == 5 else 0.91) * 250 <= covered <= 250


@pytest.mark.parametrize("clusters", [5, 20])
def test_shares_are_covered_also_where_all_are_alike(clusters):
    rng = np.random.default_rng(clusters)
    for share in (0.5, 0.8, 0.95):
        covered = {bool: 0, float: 0}
        for _ in range(250):
            labels = np.repeat(np.arange(clusters), rng.geometric(0.25, clusters))
            values = rng.random(len(labels)) < rng.beta(share, 1 - share, clusters)[labels]
            for kind in covered:
                low, high = cluster_bootstrap(values.astype(kind), labels)
                covered[kind] += low <= share <= high
        assert covered[bool] >= 0.91 * 250
        # Numbers without a range have no bound where none differs.
        assert clusters > 5 or share < 0.8 or covered[float] < 0.9 * 250


def test_shares_have_bounds_and_numbers_have_none():
    ten = np.arange(10)
    low, high = cluster_bootstrap(np.ones(10, bool), ten)
    assert (low, high) == (pytest.approx(0.025**0.1), 1.0)
    assert low == pytest.approx(scipy.stats.binomtest(10, 10).proportion_ci(0.95, "exact").low)
    assert cluster_bootstrap(np.zeros(10, bool), ten) == (0.0, pytest.approx(1 - low))
    assert cluster_bootstrap(np.ones(10), ten) == (1.0, 1.0)
    assert cluster_bootstrap(np.full(10, 0.1), ten) == pytest.approx((0.1, 0.1))
    # Within the range of shares, where the t-interval leaves it.
    few = np.array([True, True, False])
    assert cluster_bootstrap(few, np.arange(3)) == (0.0, 1.0)
    assert cluster_bootstrap(few.astype(float), np.arange(3))[1] > 1
    # All of one set, none of the other: the distances add as squares. Two sets alike: no difference is known better.
    yes, no = np.ones(10, bool), np.zeros(10, bool)
    assert cluster_bootstrap_difference(yes, no, ten, ten + 10) == (pytest.approx(1 - 2**0.5 * (1 - low)), 1.0)
    alike = cluster_bootstrap_difference(yes, yes, ten, ten + 10)
    np.testing.assert_allclose(alike, (low - 1, 1 - low))


def test_no_interval_is_infinite_or_missing():
    rng = np.random.default_rng(0)
    for clusters in (1, 2, 3):
        for values in (rng.normal(size=9), np.ones(9), np.zeros(9, bool), 1e-300 * rng.normal(size=9)):
            labels = np.arange(9) % clusters
            assert np.isfinite(cluster_bootstrap(values, labels)).all()
            assert np.isfinite(cluster_bootstrap_difference(values, values, labels, labels + 1)).all()
    # One cluster holds nearly all values: as few degrees of freedom as two clusters.
    labels = np.r_[np.zeros(500), 1:21]
    values = rng.normal(size=520)
    low, high = cluster_bootstrap(values, labels)
    assert high - low > 5 * values.std() * 2 / 520**0.5
