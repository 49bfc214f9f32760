import numpy as np
import pytest
import scipy.stats

from mechmem.stats.balance import balance, total_variation


def test_numbers_are_compared_as_the_textbook_says():
    rng = np.random.default_rng(0)
    memorized, all_others, controls = rng.normal(1, 2, 30), rng.normal(0, 1, 80), rng.normal(0.8, 0.5, 20)
    matched = memorized[:20]
    result = balance(({"x": memorized}, {"x": all_others}), ({"x": matched}, {"x": controls})).sel(covariate="x")
    # The SD before matching divides both rows.
    spread = np.sqrt((memorized.var(ddof=1) + all_others.var(ddof=1)) / 2)
    for when, one, other in (("before", memorized, all_others), ("after", matched, controls)):
        row = result.sel(when=when)
        assert float(row.mean_memorized) == pytest.approx(one.mean())
        assert float(row.mean_controls) == pytest.approx(other.mean())
        assert float(row.smd) == pytest.approx((one.mean() - other.mean()) / spread)
        assert float(row.variance_ratio) == pytest.approx(one.var(ddof=1) / other.var(ddof=1))
        steps = [np.mean(one <= v) - np.mean(other <= v) for v in np.concatenate([one, other])]
        assert float(row.ks) == pytest.approx(np.abs(steps).max())
        assert np.isnan(row.total_variation)


def test_words_are_compared_by_their_shares():
    assert total_variation(np.array(list("aab")), np.array(list("aac"))) == pytest.approx(1 / 3)
    assert total_variation(np.array(list("ab")), np.array(list("bababa"))) == 0
    assert total_variation(np.array([True]), np.array([False, False])) == 1
    columns = {"s": np.array(list("aab"))}, {"s": np.array(list("ccc"))}
    result = balance(columns, columns)
    assert result.total_variation.values.tolist() == [[1, 1]] and np.isnan(result.smd.values).all()


def test_equal_sets_are_balanced_and_constants_that_differ_infinitely_far():
    values = np.random.default_rng(1).normal(size=9)
    same = balance(({"x": values}, {"x": values}), ({"x": values}, {"x": values}))
    assert same.smd.values.tolist() == [[0, 0]] and same.ks.values.tolist() == [[0, 0]]
    assert same.variance_ratio.values.tolist() == [[1, 1]]
    one, two = {"x": np.ones(3)}, {"x": np.full(4, 2.0)}
    apart = balance((one, two), (one, one))
    assert apart.smd.values.tolist() == [[-np.inf, 0]] and apart.ks.values.tolist() == [[1, 0]]


def test_random_halves_differ_by_chance_alone():
    """The standardized difference of two random halves has the spread that theory gives it."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(300):
        a, b = {"x": rng.normal(size=50)}, {"x": rng.normal(size=50)}
        found.append(float(balance((a, b), (a, b)).smd[0, 0]))
    assert scipy.stats.kstest(np.array(found) / np.sqrt(2 / 50), "norm").pvalue > 0.001
