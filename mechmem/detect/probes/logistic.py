"""Logistic regression on standardized features, one for each bucket of steps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from mechmem.detect.probes.stored_arrays import check_finite, shaped

# L-BFGS steps of one fit. What is left to gain after so many no held-out row shows.
STEPS = 300
# Columns of a small group, and C of logistic regression for these.
SMALL, SMALL_PENALTY = 32, 30.0


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
    features: Float[np.ndarray, "row feature"],
    recites: Bool[np.ndarray, " row"],
    penalty: float,
    sizes: Int[np.ndarray, " feature"],
) -> LogisticFit:
    """Fit with both classes weighted alike.

    1. Standardize the features; a feature that does not vary gets no weight.
    2. Divide the columns of each group by the root of their number, so that a group of hundreds does not drown one of
       ten, and make those of small groups larger, for a small group needs hardly any penalty.
    3. Fit L2-penalized logistic regression by scikit-learn. C is `penalty` for large groups, the smaller, the smaller
       the weights, and `SMALL_PENALTY` for small ones.
    4. Take the scales into the weights.

    Args:
        features: not standardized.
        recites: the truth.
        penalty: C.
        sizes: columns of the group that each column belongs to, `group_sizes`.
    """
    wide = features.astype(np.float64)
    mean, deviation = wide.mean(0), wide.std(0)
    scale = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf) * np.sqrt(sizes)
    scale = np.where(sizes <= SMALL, scale * np.sqrt(penalty / SMALL_PENALTY), scale)
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=STEPS, tol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((wide - mean) / scale, recites)
    return LogisticFit(mean, np.asarray(model.coef_)[0] / scale, np.asarray(model.intercept_).item())


def group_sizes(names: tuple[str, ...]) -> Int[np.ndarray, " feature"]:
    """Columns of the group that each column belongs to: all heads are one group, and so are all neurons.

    Args:
        names: of columns, such as "output:entropy", "residual3:17", "L1H2:entropy", "neuron3.17".
    """
    _, members, counts = np.unique([_group(name) for name in names], return_inverse=True, return_counts=True)
    return counts[members]


def _group(name: str) -> str:
    head = name.split(":")[0]
    if head.startswith("neuron"):
        return "neurons"
    return "heads" if re.fullmatch(r"L\d+H\d+", head) else head
