"""Whether a probability means what it says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Predicted and observed shares in bins of equal mass, at even odds, for each resample.

    Attributes:
        predicted: mean probability of each bin.
        observed: share of it that recites.
        mass: weight of each bin; they sum to one.
    """

    predicted: Float[np.ndarray, "draw bin"]
    observed: Float[np.ndarray, "draw bin"]
    mass: Float[np.ndarray, "draw bin"]

    @property
    def error(self) -> Float[np.ndarray, " draw"]:
        """Expected calibration error: the mean over bins, by mass, of |observed - predicted|."""
        return np.nansum(self.mass * np.abs(self.observed - self.predicted), 1)


def reliability(
    probability: Float[np.ndarray, " row"],
    recites: Bool[np.ndarray, " row"],
    weights: Float[np.ndarray, "draw row"],
    bins: int = BINS,
) -> Reliability:
    """Compare probabilities with what happened.

    1. Weight the rows so that both classes have one half: the probabilities are those at even odds.
    2. Cut the rows, sorted by probability, into bins of equal weight; equal probabilities stay in one bin. The cuts
       are those of the data, in every resample.
    3. In each bin, take the mean probability and the share that recites.

    Args:
        probability: that the row recites.
        recites: the truth.
        weights: of each row in each resample, before step 1.
        bins: how many; fewer are filled where many probabilities are equal.
    """
    members = _equal_mass_bins(probability, recites, bins)
    ones = np.zeros((len(members), bins), dtype=np.float32)
    ones[np.arange(len(members)), members] = 1
    recited = (weights * recites).astype(np.float32)
    other = weights.astype(np.float32) - recited
    recited = recited / (2 * recited.sum(1, keepdims=True))
    other = other / (2 * other.sum(1, keepdims=True))
    mass = (recited + other) @ ones
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted = ((recited + other) * probability.astype(np.float32)) @ ones / mass
        observed = recited @ ones / mass
    return Reliability(*(array.astype(np.float64) for array in (predicted, observed, mass)))


def _equal_mass_bins(
    probability: Float[np.ndarray, " row"], recites: Bool[np.ndarray, " row"], bins: int
) -> Int[np.ndarray, " row"]:
    sizes = np.bincount(recites, minlength=2)
    weight = 0.5 / sizes[recites.astype(int)]
    _, group = np.unique(probability, return_inverse=True)
    mass = np.bincount(group, weight)
    # A group of equal values belongs where its middle lies.
    middle = np.cumsum(mass) - mass / 2
    return np.minimum((middle * bins).astype(int), bins - 1)[group]
