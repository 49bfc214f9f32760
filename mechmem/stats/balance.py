"""How similar two sets of paragraphs are in covariates that might explain a difference between them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import ks_2samp

from mechmem.stats.covariates import UNITS

Columns = Mapping[str, np.ndarray]
WHEN = ("before", "after")
CONVENTION = (
    "|smd| < 0.1 is conventionally balanced (Austin 2009, Statistics in Medicine 28:3083-3107, "
    "doi:10.1002/sim.3697); a variance ratio near 1 and small distances say that more than the means agree"
)


def is_categorical(values: np.ndarray) -> bool:
    """Whether a column is compared as categories (strings, booleans) or as numbers (everything else)."""
    return values.dtype.kind in "USTb"


def pooled_variance(first: Float[np.ndarray, " first"], second: Float[np.ndarray, " second"]) -> float:
    """Mean of the two sets' variances (n - 1); a set of one paragraph has none and is left out; 0 where both have none.

    The plain mean and not one weighted by size: many candidates would otherwise decide alone (Austin 2009).
    """
    variances = [values.var(ddof=1) for values in (first, second) if len(values) > 1]
    return float(np.mean(variances)) if variances else 0.0


def balance(before: tuple[Columns, Columns], after: tuple[Columns, Columns]) -> xr.Dataset:
    """Compare memorized paragraphs and controls, covariate by covariate, before and after matching.

    Args:
        before: columns of the memorized paragraphs and of all candidates.
        after: columns of the matched memorized paragraphs and of their controls, of the same names.

    Returns:
        Dataset [covariate, when], when = before, after; NaN where a number says nothing of that kind of column:
        mean_memorized, mean_controls: in the covariate's unit;
        smd: standardized mean difference, (mean_memorized - mean_controls) / pooled SD, where both rows divide by the
        SD before matching (a smaller SD after it would hide what matching gained); positive: higher in the memorized;
        variance_ratio: variance of the memorized over that of the controls, 1: alike;
        ks: Kolmogorov-Smirnov distance of the two distributions, 0: alike, 1: nothing in common;
        total_variation: of columns of words, half the sum of the shares' differences, 0: alike, 1: nothing in common.
    """
    names = list(before[0])
    rows: list[list[dict[str, float]]] = []
    for name in names:
        memorized, controls = before[0][name], before[1][name]
        if is_categorical(memorized):
            rows.append([{"total_variation": total_variation(a[name], b[name])} for a, b in (before, after)])
            continue
        spread = pooled_variance(memorized, controls) ** 0.5
        rows.append([_numeric(a[name], b[name], spread) for a, b in (before, after)])
    attributes = _attributes(names)
    data = {
        statistic: (("covariate", "when"), [[cell.get(statistic, np.nan) for cell in row] for row in rows], attrs)
        for statistic, attrs in attributes.items()
    }
    return xr.Dataset(data, {"covariate": names, "when": list(WHEN)}, {"convention": CONVENTION})


def _numeric(
    memorized: Float[np.ndarray, " memorized"], controls: Float[np.ndarray, " control"], spread: float
) -> dict[str, float]:
    difference = memorized.mean() - controls.mean()
    variances = [values.var(ddof=1) if len(values) > 1 else np.nan for values in (memorized, controls)]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Constant columns: no difference is balanced, any difference is infinitely many SDs.
        smd = 0.0 if difference == 0 else float(np.float64(difference) / spread)
        ratio = float(np.float64(variances[0]) / variances[1])
        # The p-value, which is undefined for a single paragraph, is not used.
        distance = ks_2samp(memorized, controls, method="asymp")
    return {
        "mean_memorized": float(memorized.mean()),
        "mean_controls": float(controls.mean()),
        "smd": smd,
        "variance_ratio": ratio,
        "ks": float(getattr(distance, "statistic")),  # noqa: B009 (SciPy's result has no type)
    }


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the sum over categories of the absolute difference of their shares, 0 to 1."""
    categories, members = np.unique(np.concatenate([first, second]), return_inverse=True)
    shares = [
        np.bincount(part, minlength=len(categories)) / len(part)
        for part in (members[: len(first)], members[len(first) :])
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _attributes(names: list[str]) -> dict[str, dict[str, str]]:
    known = "; ".join(f"{name}: {UNITS[name]}" for name in names if name in UNITS) or "of the covariate"
    return {
        "mean_memorized": {"units": known, "long_name": "mean of the memorized paragraphs"},
        "mean_controls": {"units": known, "long_name": "mean of the controls"},
        "smd": {
            "units": "pooled standard deviations before matching",
            "long_name": "standardized mean difference, memorized minus controls",
            "higher": "higher in the memorized; 0: alike",
        },
        "variance_ratio": {"units": "1", "long_name": "variance, memorized over controls", "higher": "1: alike"},
        "ks": {"units": "1", "long_name": "Kolmogorov-Smirnov distance", "higher": "less alike"},
        "total_variation": {"units": "1", "long_name": "total-variation distance", "higher": "less alike"},
    }
