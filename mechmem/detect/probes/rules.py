"""When a score that is looked at again and again amounts to an alarm: a statistic of the whole generation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# max: the largest log odds. cusum: Page's sum of log odds that starts again at zero, so that what was said long ago
# cannot hold an alarm back. sprt: Wald's sum of all log odds.
Rule = Literal["max", "cusum", "sprt"]
# Scores nearer to 0 or 1 than this count as this: float32 knows nothing finer next to 1.
NEAREST = 1e-6


class Statistic:
    """The largest value that a rule took so far, of every row of a batch, in nats of log odds.

    An alarm is raised when it exceeds `Detector.threshold`. Because the threshold is that of the largest value over a
    whole generation, looking at every step costs nothing: the rate of false alarms is that of generations. Log odds of
    successive steps say much the same thing again, so "cusum" and "sprt" are no likelihood ratios of the text; their
    thresholds are right all the same, for they come from the same sums over text that is not recited.

    Args:
        rule: what is done with the scores.
        rows: of the batch.
        block: steps after which it starts again, a block with a rate of false alarms of its own.
        device: of the scores.
    """

    def __init__(self, rule: Rule, rows: int, block: int, device: torch.device | str = "cpu") -> None:
        """Begin before the first step."""
        self.rule, self.block = rule, block
        self.value: Float[Tensor, " row"] = torch.zeros(rows, device=device)
        self.largest: Float[Tensor, " row"] = torch.full((rows,), -torch.inf, device=device)

    def step(self, score: Float[Tensor, " row"], k: int) -> Float[Tensor, " row"]:
        """Take the scores of step k.

        Args:
            score: probabilities at even odds.
            k: own tokens said so far.

        Returns:
            The statistic so far; it does not fall within a block.
        """
        if k % self.block == 0:
            self.value, self.largest = torch.zeros_like(self.value), torch.full_like(self.largest, -torch.inf)
        odds = log_odds(score)
        if self.rule == "max":
            self.value = odds
        elif self.rule == "cusum":
            self.value = (self.value + odds).clamp(min=0)
        else:
            self.value = self.value + odds
        self.largest = torch.maximum(self.largest, self.value)
        return self.largest

    def select(self, rows: Int[Tensor, " kept"]) -> None:
        """Keep these rows, in this order; one may come twice, as in beam search."""
        self.value, self.largest = self.value[rows], self.largest[rows]


def log_odds(score: Float[Tensor, " *shape"]) -> Float[Tensor, " *shape"]:
    """Of probabilities at even odds, in nats."""
    return score.clamp(NEAREST, 1 - NEAREST).logit()


def statistics(
    rule: Rule, scores: Float[np.ndarray, "paragraph k"], ks: tuple[int, ...], block: int
) -> Float[np.ndarray, "paragraph k"]:
    """The statistic so far of decoded texts, at each of the steps that were looked at."""
    running = Statistic(rule, len(scores), block)
    columns = torch.from_numpy(np.ascontiguousarray(scores.T, dtype=np.float32))
    return np.stack([running.step(column, k).numpy() for column, k in zip(columns, ks, strict=True)], 1)
