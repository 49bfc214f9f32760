"""Curves of a suite's scores: means by ranges of counts, and the slope of each log-linear law, with intervals."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float, Int, Shaped

from mechmem.stats.cell_intervals import cell_intervals
from mechmem.stats.ranges import SHARE, Range, range_of

LAWS = {
    "per_count_doubling": "share extractable per doubling of the count",
    "per_prefix_doubling": "share extractable per doubling of the prefix length",
    "per_size_doubling": "share extractable per doubling of the weights",
}


def with_curves(scores: xr.Dataset, continuation_len: int) -> xr.Dataset:
    """Add curves and laws, as `scaling` describes them.

    Args:
        scores: em, nll and p_extractable [model, prefix_len, paragraph] with the coordinates count, cluster, n_weights.
        continuation_len: the EM of a paragraph that can be extracted.
    """
    extractable = scores.em == continuation_len
    measures = {
        "share_extractable": extractable,
        "mean_em": scores.em,
        "mean_nll": scores.nll,
        "mean_p_extractable": scores.p_extractable,
    }
    attributes = {name: values.attrs for name, values in measures.items()} | {
        "share_extractable": {
            "units": "1",
            "long_name": "share with the whole continuation",
            "higher": "more memorized",
        }
    }
    within = {"share_extractable": SHARE} | {
        f"mean_{name}": range_of(name, continuation_len) for name in ("em", "nll", "p_extractable")
    }
    ranges, clusters = count_ranges(scores["count"].values), scores.cluster.values
    for name, values in measures.items():
        by_paragraph = values.transpose("paragraph", "model", "prefix_len").values
        rows = [ranges == low for low in np.unique(ranges)]
        parts = [_means(by_paragraph[chosen], clusters[chosen], within[name]) for chosen in rows]
        for suffix, ends in zip(("", "_low", "_high"), np.stack(parts, -1), strict=True):
            scores[f"{name}{suffix}"] = (("model", "prefix_len", "count_range"), ends, attributes[name])
    lows = np.unique(ranges)
    labels = [scores.cluster.values[ranges == low] for low in lows]
    scores = scores.assign_coords(
        count_range=lows,
        n_paragraphs=("count_range", [len(label) for label in labels]),
        n_clusters=("count_range", [len(np.unique(label)) for label in labels]),
    )
    return scores.assign(_laws(scores, extractable.astype(np.float64)))


def count_ranges(counts: Int[np.ndarray, " paragraph"]) -> Int[np.ndarray, " paragraph"]:
    """The lowest count of each count's range: 0, 1, 2-3, 4-7 and so on."""
    counts = np.asarray(counts, dtype=np.int64)
    return np.where(counts > 0, 2 ** np.floor(np.log2(np.maximum(counts, 1))).astype(np.int64), 0)


def _means(values: Shaped[np.ndarray, "paragraph model prefix_len"], clusters: np.ndarray, within: Range) -> np.ndarray:
    """Mean, low and high over paragraphs, [end, model, prefix_len]; of truth values they are shares."""
    values = values if values.dtype == bool else values.astype(np.float64)
    return np.stack([values.mean(0), *cell_intervals(values, clusters, within=within)])


def _laws(scores: xr.Dataset, extractable: xr.DataArray) -> dict[str, xr.DataArray]:
    """The slopes; each is a mean over paragraphs, so that its interval is one of `cell_intervals`."""
    found: dict[str, xr.DataArray] = {}
    values = extractable.transpose("paragraph", "model", "prefix_len")
    trained = scores["count"].values > 0
    terms = {
        "per_count_doubling": (
            slope_terms(np.log2(scores["count"].values[trained]), values.values[trained]),
            scores.cluster.values[trained],
            ("model", "prefix_len"),
        ),
        "per_prefix_doubling": (
            _own_slopes(np.log2(scores.prefix_len.values), values.values),
            scores.cluster.values,
            ("model",),
        ),
        "per_size_doubling": (
            _own_slopes(np.log2(scores.n_weights.values), values.values.swapaxes(1, 2)),
            scores.cluster.values,
            ("prefix_len",),
        ),
    }
    for name, (each, clusters, dims) in terms.items():
        ends = (each.mean(0), *cell_intervals(each, clusters)) if len(each) else [np.full(each.shape[1:], np.nan)] * 3
        for suffix, end in zip(("", "_low", "_high"), ends, strict=True):
            attributes = {"units": "share per doubling", "long_name": LAWS[name], "higher": "steeper"}
            found[f"{name}{suffix}"] = xr.DataArray(end, dims=dims, attrs=attributes)
    return found


def slope_terms(x: Float[np.ndarray, " paragraph"], y: Float[np.ndarray, "paragraph ..."]) -> np.ndarray:
    """Least squares' slope as a mean of one number per paragraph: slope + n (x - mean) residual / sum (x - mean)^2.

    The terms' mean is the slope, and their spread by cluster is the slope's linearized one. NaN where all x are equal.
    """
    centred = (x - x.mean()) if len(x) else x
    centred = centred.reshape(-1, *[1] * (y.ndim - 1))
    square = (centred**2).sum()
    if not square > 0:
        return np.full(y.shape, np.nan)
    slope = (centred * y).sum(0) / square
    residual = y - y.mean(0) - slope * centred
    return slope + len(x) * centred * residual / square


def _own_slopes(x: Float[np.ndarray, " point"], y: Float[np.ndarray, "paragraph other point"]) -> np.ndarray:
    """Each paragraph's slope over the last axis, [paragraph, other]; their mean is the slope of the mean."""
    centred = x - x.mean()
    square = (centred**2).sum()
    return (y * centred).sum(-1) / square if square > 0 else np.full(y.shape[:-1], np.nan)
