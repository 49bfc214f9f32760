"""What happens over a whole generation: who is flagged at all, when, and how often wrongly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechmem.detect.probes.conformal import conformal_threshold

# A flag is early while this share of the generation is still to come: 40 of 50 tokens.
EARLY = 0.8


@dataclass(frozen=True)
class Flags:
    """When each generation was first flagged.

    Attributes:
        first: own tokens said by then, [paragraph]; -1: never flagged.
        generation_len: tokens of a generation.
    """

    first: Int[np.ndarray, " paragraph"]
    generation_len: int

    @property
    def to_come(self) -> Int[np.ndarray, " paragraph"]:
        """Tokens still to come at the first flag; -1: never flagged."""
        return np.where(self.first < 0, -1, self.generation_len - self.first)

    def shares(
        self, recites: Bool[np.ndarray, " paragraph"], weights: Float[np.ndarray, "draw paragraph"]
    ) -> dict[str, Float[np.ndarray, " draw"]]:
        """Shares, rates and the median lead time, in each resample.

        Args:
            recites: the truth.
            weights: of each paragraph in each resample.
        """
        weights = weights.astype(np.float64)
        recited, other = weights * recites, weights * ~recites
        flagged = self.first >= 0
        false = (other @ flagged) / other.sum(1)
        return {
            "flagged": (recited @ flagged) / recited.sum(1),
            "flagged_early": (recited @ (self.to_come >= EARLY * self.generation_len)) / recited.sum(1),
            "lead_time": _weighted_median(self.to_come, recited * flagged),
            "false_alarm_rate": false,
            "false_alarms_per_1000": 1000 * false / self.generation_len,
        }


def first_flags(
    statistic: Float[np.ndarray, "paragraph k"],
    thresholds: Float[np.ndarray, " paragraph"],
    ks: tuple[int, ...],
    generation_len: int,
) -> Flags:
    """When a running statistic first exceeds each paragraph's threshold."""
    above = statistic > thresholds[:, None]
    first = np.where(above.any(1), np.array(ks)[above.argmax(1)], -1)
    return Flags(first, generation_len)


def held_out_thresholds(
    statistic: Float[np.ndarray, " paragraph"],
    recites: Bool[np.ndarray, " paragraph"],
    fold: Int[np.ndarray, " paragraph"],
    clusters: np.ndarray,
    false_alarms: float,
    seed: int,
) -> Float[np.ndarray, " paragraph"]:
    """For each paragraph a conformal threshold from the others of other folds, one random paragraph of a cluster."""
    order = np.random.default_rng(seed).permutation(len(statistic))
    found = np.zeros(len(statistic))
    for number in np.unique(fold):
        rows = order[(~recites & (fold != number))[order]]
        _, one = np.unique(clusters[rows], return_index=True)
        found[fold == number] = conformal_threshold(statistic[rows[one]], false_alarms)
    return found


def _weighted_median(
    values: Int[np.ndarray, " paragraph"], weights: Float[np.ndarray, "draw paragraph"]
) -> Float[np.ndarray, " draw"]:
    """The lower median; NaN without any weight."""
    order = np.argsort(values, kind="stable")
    running = np.cumsum(weights[:, order], 1)
    place = (running < running[:, -1:] / 2).sum(1)
    median = values[order][np.minimum(place, len(values) - 1)].astype(np.float64)
    return np.where(running[:, -1] > 0, median, np.nan)
