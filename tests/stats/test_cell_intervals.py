"""All cells at once give the very intervals that one cell at a time gives."""

import numpy as np
import pytest

from mechmem.data.errors import InputError
from mechmem.stats import cell_intervals as module
from mechmem.stats.bootstrap import cluster_bootstrap
from mechmem.stats.cell_intervals import cell_intervals


def test_each_cell_has_the_interval_of_cluster_bootstrap(monkeypatch):
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=(9, 2, 5)), np.array([4, 4, 1, 7, 7, 7, 2, 3, 9])
    values[3, 1, 2] = np.nan
    monkeypatch.setattr(module, "_CHUNK", 3 * 7)
    low, high = cell_intervals(values, clusters, level=0.9)
    for cell in np.ndindex(2, 5):
        expected = (np.nan, np.nan)
        if cell != (1, 2):
            expected = cluster_bootstrap(values[:, *cell], clusters, level=0.9)
        np.testing.assert_allclose((low[cell], high[cell]), expected, atol=1e-12)
    yes = values > 0
    shares = cell_intervals(yes, clusters)
    for cell in np.ndindex(2, 5):
        np.testing.assert_allclose([end[cell] for end in shares], cluster_bootstrap(yes[:, *cell], clusters))
    alone = cell_intervals(values, np.arange(9), level=0.9)
    assert not np.allclose(alone[0], low, equal_nan=True), "clusters count"


def test_one_cluster_says_nothing_of_the_spread():
    low, high = cell_intervals(np.arange(6.0).reshape(3, 2), np.zeros(3))
    np.testing.assert_allclose([low, high], [[2, 3], [2, 3]])


def test_labels_of_another_length_are_refused():
    for values, clusters in ((np.zeros((3, 2)), np.zeros(2)), (np.zeros((0, 2)), np.zeros(0))):
        with pytest.raises(InputError, match="need at least 1 value, and one label for each"):
            cell_intervals(values, clusters)
