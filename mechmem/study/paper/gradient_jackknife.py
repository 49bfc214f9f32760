"""Component scores of the gradient of a mean, with intervals: a jackknife over groups of clusters.

The score of a component is the largest |entry| of the gradient of the mean NLL. Drawn anew with replacement, a set has
more noise than it had, which makes every largest entry larger: the value itself can lie below such an interval. Leaving
out one group at a time adds little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import t

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.localize.gradient_resamples import grouped_gradients
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import reduce_by_component

LEVEL = 0.95


@dataclass(frozen=True)
class Jackknife:
    """Scores of all paragraphs, and without each group.

    Attributes:
        scores: [layer, component], largest |gradient| of the mean NLL over all paragraphs.
        without: [group, layer, component], the same over the paragraphs of all other groups.
    """

    scores: xr.DataArray
    without: Float[np.ndarray, "group layer component"]

    def estimate(self, statistic: Callable[[np.ndarray], float]) -> tuple[float, float | None, float | None]:
        """A positive statistic of scores [layer, component] and its 95 % interval; None where nothing can be said.

        The interval is value * exp(± t * SE), SE² = (K - 1) / K * the sum of squared deviations of the logarithms of
        the K values without a group from their mean: sizes of gradients vary by factors.
        """
        value, count = float(statistic(self.scores.values)), len(self.without)
        others = np.array([statistic(scores) for scores in self.without])
        if count < 2 or value <= 0 or (others <= 0).any():
            return value, None, None
        logs = np.log(others)
        error = np.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum())
        factor = float(np.exp(t.ppf((1 + LEVEL) / 2, count - 1) * error))
        return value, value / factor, value * factor


def component_jackknife(
    model: HookedTransformer, paragraphs: Paragraphs, *, seed: int = 0, progress: Progress | None = None
) -> Jackknife:
    """Component scores of the gradient of the mean NLL, and those without each of at most eight groups of clusters.

    Args:
        model: left as it is.
        paragraphs: with clusters.
        seed: which clusters go together.
        progress: called with (paragraphs done, paragraphs).
    """
    grouped = grouped_gradients(model, paragraphs, seed=seed, progress=progress)
    total, count = grouped.whole(), int(grouped.sizes.sum())
    without = []
    for part, size in zip(grouped.parts, grouped.sizes.tolist(), strict=True):
        if size < count:
            rest = {name: (count * value - part[name]) / (count - size) for name, value in total.items()}
            without.append(reduce_by_component(model, rest, "max").values)
    scores = reduce_by_component(model, total, "max")
    return Jackknife(scores, np.array(without).reshape(-1, *scores.shape))
