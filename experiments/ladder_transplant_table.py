"""The table of what transplants bring back, and of which localizers find the part that does."""

from collections.abc import Mapping

import numpy as np
import xarray as xr
from ladder_agreement import over_rows
from ladder_tables import head, row, said
from scipy.stats import rankdata

LOCALIZERS = ("patching", "attribution", "parameter_gradients")


def transplants(results: Mapping[str, xr.Dataset]) -> list[str]:
    """A line for each model: the gap, the best part, and how each localizer ranks the parts."""
    lines = head(["model", "gap, nats per token", "best part", "it brings", "it brings others", *LOCALIZERS])
    for name, result in results.items():
        gap = (result.nll_target - result.nll_source).values
        brought = -result.nll_change.transpose("paragraph", "component").values
        best = int(brought.mean(0).argmax())
        others = -result.other_nll_change.transpose("other", "component").values[:, best]
        clusters = result.cluster.values
        cells = [said(gap, clusters), str(result.component.values[best]), said(brought[:, best], clusters)]
        cells.append(said(others, result.other.values))
        for localizer in LOCALIZERS:
            value, low, high = ranked_alike(brought, scores_of(result, localizer), clusters)
            found = "first" if scores_of(result, localizer).mean(0).argmax() == best else "not first"
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}], {found}")
        lines.append(row([name, *cells]))
    return lines


def scores_of(result: xr.Dataset, localizer: str) -> np.ndarray:
    """A localizer's scores of each document, [paragraph, component]; those of all together are repeated."""
    scores = result[localizer]
    if "paragraph" not in scores.dims:
        scores = scores.expand_dims(paragraph=result.sizes["paragraph"])
    return scores.transpose("paragraph", "component").values


def ranked_alike(brought: np.ndarray, scores: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """Spearman correlation over components of two means over documents, and its interval by cluster of documents.

    Args:
        brought: by the transplants, [paragraph, component].
        scores: of a localizer, [paragraph, component].
        clusters: of each document.
    """

    def agreement(chosen: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(brought[chosen].mean(0)), rankdata(scores[chosen].mean(0)))[0, 1])

    return over_rows(agreement, clusters)
