import numpy as np
import pytest
import torch
from scipy.stats import t

import mechmem as mm
from mechmem.localize.gradient_resamples import grouped_gradients
from mechmem.study.paper.gradient_jackknife import Jackknife, component_jackknife


def test_scores_without_a_group_are_those_of_the_other_paragraphs(tiny_model, tiny_paragraphs):
    paragraphs = tiny_paragraphs.with_columns(cluster=[0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    found = component_jackknife(tiny_model, paragraphs, seed=3)
    whole = mm.parameter_gradients(tiny_model, paragraphs).values
    np.testing.assert_allclose(found.scores.values, whole, rtol=1e-4)
    sizes = grouped_gradients(tiny_model, paragraphs, seed=3).sizes.tolist()
    assert sorted(sizes) == [2, 3, 6]
    clusters = paragraphs.clusters
    for group, size in enumerate(sizes):
        (own,) = (label for label in range(3) if (clusters == label).sum() == size)
        oracle = mm.parameter_gradients(tiny_model, paragraphs.select(clusters != own)).values
        np.testing.assert_allclose(found.without[group], oracle, rtol=1e-3)


def test_one_cluster_has_no_interval(tiny_model, tiny_paragraphs):
    found = component_jackknife(tiny_model, tiny_paragraphs[:3].with_columns(cluster=[0, 0, 0]))
    value, low, high = found.estimate(lambda scores: scores.sum())
    assert value > 0 and low is None and high is None


def test_the_interval_is_the_jackknife_s(tiny_model, tiny_paragraphs):
    """Of means, the jackknife's standard error is the usual one: here on the logarithm of nearly equal values."""
    values = 100 + np.random.default_rng(0).normal(size=8)
    without = (values.sum() - values) / 7
    scores = mm.parameter_gradients(tiny_model, tiny_paragraphs[:2]) * 0 + values.mean()
    found = Jackknife(scores, np.broadcast_to(without[:, None, None], (8, *scores.shape)))
    value, low, high = found.estimate(lambda scores: float(scores.mean()))
    half = t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    assert value == pytest.approx(values.mean())
    assert low == pytest.approx(value - half, rel=1e-3) and high == pytest.approx(value + half, rel=1e-3)


def test_the_interval_covers_what_more_paragraphs_give(tiny_model):
    """The largest |gradient| of many paragraphs lies in most intervals of few, and not in an interval of one tenth."""
    tokens = torch.randint(0, 61, (320, 23), generator=torch.Generator().manual_seed(0))
    every = mm.Paragraphs(tokens, 13)
    covered = []
    for start in range(0, 320, 32):
        found = component_jackknife(tiny_model, every[start : start + 32])
        other = component_jackknife(tiny_model, every[(start + 32) % 320 : (start + 32) % 320 + 32])
        _, low, high = found.estimate(lambda scores: scores.sum())
        assert low is not None and high is not None
        covered.append(low <= other.scores.values.sum() <= high)
    assert np.mean(covered) >= 0.6
