"""Probabilities out of a probe's log odds, fitted on clusters that the probe has not seen, one for each bucket."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.probes.stored_arrays import check_finite, shaped

CalibrationMethod = Literal["platt", "isotonic"]
# Paragraphs of each class from which on isotonic regression has steps fine enough for low rates of false alarms.
ENOUGH = 1000
# Points of an isotonic curve that are kept for each bucket.
KNOTS = 64


@dataclass(frozen=True)
class PlattCalibration:
    """score = sigmoid(slope * log odds + offset) (Platt 1999).

    Attributes:
        slope: at least 0, [bucket].
        offset: [bucket].
    """

    slope: Float[Tensor, " bucket"]
    offset: Float[Tensor, " bucket"]

    def score(self, odds: Float[Tensor, " row"], bucket: int) -> Float[Tensor, " row"]:
        """Probability at even odds."""
        return torch.sigmoid(self.slope[bucket] * odds + self.offset[bucket])

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {"slope": self.slope, "offset": self.offset}

    def to(self, device: torch.device | str) -> PlattCalibration:
        """The same there."""
        return PlattCalibration(self.slope.to(device), self.offset.to(device))

    @staticmethod
    def stored(tensors: Mapping[str, Tensor], buckets: int) -> PlattCalibration:
        """From what `tensors` gave and a file kept.

        Raises:
            InputError: a tensor is missing, of another shape or not finite.
        """
        found = {name: shaped(tensors, name, torch.float32, (buckets,)) for name in ("slope", "offset")}
        check_finite(found)
        return PlattCalibration(**found)

    @staticmethod
    def fit(parts: list[CalibrationPart]) -> PlattCalibration:
        """One line for each bucket."""
        lines = np.array([_platt(part) for part in parts], dtype=np.float32)
        return PlattCalibration(torch.from_numpy(lines[:, 0].copy()), torch.from_numpy(lines[:, 1].copy()))


@dataclass(frozen=True)
class IsotonicCalibration:
    """A rising curve through knots, straight between them.

    Attributes:
        odds: of the knots, rising, [bucket, knot].
        probability: there, [bucket, knot].
    """

    odds: Float[Tensor, "bucket knot"]
    probability: Float[Tensor, "bucket knot"]

    def score(self, odds: Float[Tensor, " row"], bucket: int) -> Float[Tensor, " row"]:
        """Probability at even odds."""
        x, y = self.odds[bucket], self.probability[bucket]
        right = torch.searchsorted(x, odds.contiguous(), right=True).clamp(1, len(x) - 1)
        width = (x[right] - x[right - 1]).clamp(min=1e-12)
        share = ((odds - x[right - 1]) / width).clamp(0, 1)
        return y[right - 1] + share * (y[right] - y[right - 1])

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {"knot_odds": self.odds, "knot_probability": self.probability}

    def to(self, device: torch.device | str) -> IsotonicCalibration:
        """The same there."""
        return IsotonicCalibration(self.odds.to(device), self.probability.to(device))

    @staticmethod
    def stored(tensors: Mapping[str, Tensor], buckets: int) -> IsotonicCalibration:
        """From what `tensors` gave and a file kept.

        Raises:
            InputError: a tensor is missing, of another shape, not finite, or no rising curve of probabilities.
        """
        odds = shaped(tensors, "knot_odds", torch.float32, (buckets, KNOTS))
        probability = shaped(tensors, "knot_probability", torch.float32, (buckets, KNOTS))
        check_finite({"knot_odds": odds, "knot_probability": probability})
        falls = bool((odds.diff(dim=1) < 0).any()) or bool((probability.diff(dim=1) < 0).any())
        if falls or not bool(((probability >= 0) & (probability <= 1)).all()):
            raise InputError("'knot_odds' and 'knot_probability' are no rising curves of probabilities")
        return IsotonicCalibration(odds, probability)

    @staticmethod
    def fit(parts: list[CalibrationPart]) -> IsotonicCalibration:
        """One curve for each bucket."""
        curves = np.stack([_isotonic(part) for part in parts]).astype(np.float32)
        return IsotonicCalibration(torch.from_numpy(curves[:, 0].copy()), torch.from_numpy(curves[:, 1].copy()))


Calibration = PlattCalibration | IsotonicCalibration


@dataclass(frozen=True)
class CalibrationPart:
    """Rows of one bucket: a probe's log odds, and whether each recites."""

    odds: Float[np.ndarray, " row"]
    recites: Bool[np.ndarray, " row"]

    @property
    def weights(self) -> Float[np.ndarray, " row"]:
        """Both classes weigh alike, and sum to one: probabilities at even odds."""
        sizes: Integer[np.ndarray, " class"] = np.bincount(self.recites, minlength=2)
        return 0.5 / sizes[self.recites.astype(int)]


def _platt(part: CalibrationPart) -> tuple[float, float]:
    """Slope and offset of the highest likelihood, with Platt's targets.

    The targets are (n + 1)/(n + 2) and 1/(n + 2) in place of 1 and 0, so that classes without overlap give a finite
    slope: probabilities no surer than n rows can make one.
    """
    ones, zeros = int(part.recites.sum()), int((~part.recites).sum())
    target = np.where(part.recites, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    weights = part.weights
    # Log odds of one unit: a fit far from the start would stop early.
    scale = max(float(np.abs(part.odds).mean()), 1e-9)
    scaled = part.odds / scale

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        odds = line[0] * scaled + line[1]
        cross_entropy = np.logaddexp(0, odds) - target * odds
        residual = weights * (1 / (1 + np.exp(-np.clip(odds, -500, 500))) - target)
        return float(weights @ cross_entropy), np.array([residual @ scaled, residual.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0, None), (None, None)], method="L-BFGS-B")
    return float(found.x[0] / scale), float(found.x[1])


def _isotonic(part: CalibrationPart) -> Float[np.ndarray, "two knot"]:
    """Knots of the rising curve of least squares, at equal shares of the rows; no surer than n rows can make one."""
    curve = IsotonicRegression(out_of_bounds="clip").fit(part.odds, part.recites, sample_weight=part.weights)
    knots = np.quantile(part.odds, np.linspace(0, 1, KNOTS))
    surest = 1 / (2 + min(np.bincount(part.recites, minlength=2)))
    return np.stack([knots, np.clip(curve.predict(knots), surest, 1 - surest)])
