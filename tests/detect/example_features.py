"""Features of made-up texts: what separates them is known."""

from typing import Any

import numpy as np
import xarray as xr

from mechmem.detect.features.feature_choice import FeatureChoice
from mechmem.detect.features.running_output import OUTPUT_STATISTICS
from mechmem.detect.identity import Identity
from mechmem.detect.probes.choose import Candidate
from mechmem.detect.probes.examples import Examples

IDENTITY = Identity("made up", 2, 6, 61, "float32")
KS = (0, 1, 2, 4, 8)
OUTPUT = Candidate("logistic", FeatureChoice(("output",)))
DEEP = tuple(Candidate("logistic", FeatureChoice(("output", "residual"), (depth,))) for depth in (0, 1, 2))
TREES = Candidate("boosting", FeatureChoice(("output",)))


def made_up(
    count: int = 240,
    seed: int = 0,
    *,
    told_by_output: float = 0.0,
    told_at_depth: int | None = None,
    labels: str = "true",
    ks: tuple[int, ...] = KS,
) -> Examples:
    """Texts in clusters of one to four near-duplicates, a third of them recited.

    Args:
        count: of texts.
        seed: of everything.
        told_by_output: by how many standard deviations the first statistic of the output tells recited texts.
        told_at_depth: a depth whose residual stream tells them by two standard deviations in two directions.
        labels: "true", or "shuffled" over clusters.
        ks: steps.
    """
    rng = np.random.default_rng(seed)
    clusters = np.sort(rng.integers(0, count // 2, count))
    of_cluster = rng.random(count // 2) < 1 / 3
    recites = of_cluster[clusters]

    def noise(*shape: int) -> np.ndarray:
        common = rng.normal(size=(count // 2, *shape))
        return 0.8 * common[clusters] + 0.6 * rng.normal(size=(count, *shape))

    output, residual = noise(len(ks), len(OUTPUT_STATISTICS)), noise(len(ks), 3, 6)
    output[:, :, 0] += told_by_output * recites[:, None]
    if told_at_depth is not None:
        residual[:, :, told_at_depth, :2] += 2 * recites[:, None, None]
    if labels == "shuffled":
        recites = rng.permutation(of_cluster)[clusters]
    data: dict[str, Any] = {
        "output": (("paragraph", "k", "statistic"), output.astype(np.float32)),
        "residual": (("paragraph", "k", "depth", "d_model"), residual.astype(np.float32)),
        "said": (("paragraph", "pos"), np.zeros((count, 10), dtype=np.int64)),
    }
    coords = {"paragraph": np.arange(count), "k": list(ks), "statistic": list(OUTPUT_STATISTICS), "depth": [0, 1, 2]}
    return Examples(xr.Dataset(data, coords), recites, clusters)
