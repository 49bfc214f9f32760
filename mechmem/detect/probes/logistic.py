"""Logistic regression on standardized features, one for each bucket of steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mechmem.detect.probes.stored_arrays import check_finite, shaped

# L-BFGS steps of one fit. What is left to gain after so many no held-out row shows.
STEPS = 300


@dataclass(frozen=True)
class LogisticProbes:
    """Fitted weights of every bucket.

    Attributes:
        mean: of each feature in training, [bucket, feature].
        weight: of the feature less its mean; the division by its standard deviation is in it.
        bias: [bucket].
    """

    mean: Float[Tensor, "bucket feature"]
    weight: Float[Tensor, "bucket feature"]
    bias: Float[Tensor, " bucket"]

    def log_odds(self, features: Float[Tensor, "row feature"], bucket: int) -> Float[Tensor, " row"]:
        """Not calibrated; one subtraction and one product."""
        return (features - self.mean[bucket]) @ self.weight[bucket] + self.bias[bucket]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {"mean": self.mean, "weight": self.weight, "bias": self.bias}

    def to(self, device: torch.device | str) -> LogisticProbes:
        """The same there."""
        return LogisticProbes(self.mean.to(device), self.weight.to(device), self.bias.to(device))

    @staticmethod
    def stored(tensors: Mapping[str, Tensor], buckets: int, features: int) -> LogisticProbes:
        """From what `tensors` gave and a file kept.

        Raises:
            InputError: a tensor is missing, of another shape or not finite.
        """
        shapes = {"mean": (buckets, features), "weight": (buckets, features), "bias": (buckets,)}
        found = {name: shaped(tensors, name, torch.float32, shape) for name, shape in shapes.items()}
        check_finite(found)
        return LogisticProbes(**found)

    @staticmethod
    def stack(fits: list[LogisticFit]) -> LogisticProbes:
        """Those of all buckets."""
        means, weights, biases = ([getattr(fit, name) for fit in fits] for name in ("mean", "weight", "bias"))
        arrays = (np.stack(means), np.stack(weights), np.array(biases))
        return LogisticProbes(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


@dataclass(frozen=True)
class LogisticFit:
    """One fit, in float64."""

    mean: Float[np.ndarray, " feature"]
    weight: Float[np.ndarray, " feature"]
    bias: float

    def log_odds(self, features: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, " row"]:
        """Not calibrated."""
        return (features - self.mean) @ self.weight + self.bias


def fit_logistic(
    features: Float[np.ndarray, "row feature"], recites: Bool[np.ndarray, " row"], penalty: float
) -> LogisticFit:
    """Fit with both classes weighted alike.

    1. Standardize the features; a feature that does not vary gets no weight.
    2. Fit L2-penalized logistic regression by scikit-learn, C = `penalty`: the smaller, the smaller the weights.
    3. Take the standard deviation into the weights.
    """
    wide = features.astype(np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    scale = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=STEPS, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((wide - mean) / scale, recites)
    return LogisticFit(mean, model.coef_[0] / scale, float(model.intercept_[0]))
