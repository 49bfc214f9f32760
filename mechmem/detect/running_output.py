"""Statistics of a model's output while it decodes: the present step's, and those of the last tokens it said."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.logit_readings import ENTROPY, MARGIN, SPREAD, TOP, LogitReader

# Tokens that the statistics of what was said look back on.
WINDOW = 32
# The distribution over the next token; then means, extremes and shares over the tokens said.
PRESENT = ("top_logprob", "margin", "entropy")
SAID = ("mean_nll", "mean_entropy", "mean_margin", "first_choice", "mean_z", "max_nll", "min_margin", "distinct")
OUTPUT_STATISTICS = (*PRESENT, *SAID)
# What is kept of each token said. The first five are averaged; NLL and the negative margin have their largest taken.
KEPT = 6
NLL, SAID_ENTROPY, SAID_MARGIN, FIRST, Z, BELOW_MARGIN = range(KEPT)
# Below this the spread of log p is rounding error.
LEAST_SPREAD = 1e-6


class RunningOutput:
    """Statistics of the output of some rows that decode together.

    Of the next token's distribution: `top_logprob`, the log-probability of the first choice (nats), `margin`, its logit
    minus the second choice's, and `entropy` (nats). Of the tokens said, at most the last `window`: `mean_nll` and
    `max_nll`, `mean_entropy`, `mean_margin` and `min_margin` of the distributions they were chosen from,
    `first_choice`, the share that were the model's first choice, `mean_z`, how many standard deviations log p of the
    token lies above the mean of log p over the distribution (MinK%++, Zhang et al. 2024), and `distinct`, the share of
    different tokens. Before anything is said these are 0.

    The memory does not depend on how much is said: [row, d_vocab] of the latest logits and [row, window] of the past.

    Attributes:
        names: of the statistics, in the order of the columns.
        said_nll, said_z: of the token said last, [row]; NaN before.
    """

    names: tuple[str, ...] = OUTPUT_STATISTICS

    def __init__(self, rows: int, device: torch.device | str = "cpu", window: int = WINDOW):
        self.window, self.count = window, 0
        self._device = torch.device(device)
        self._kept = np.zeros((rows, window, KEPT))
        self._tokens = np.zeros((rows, window), np.int64)
        self._readings: np.ndarray | None = None
        # Each row's place in the latest logits: select moves places, not logits.
        self._reader, self._places = LogitReader(), np.arange(rows)
        self.said_nll, self.said_z = np.full(rows, np.nan), np.full(rows, np.nan)

    def __len__(self) -> int:
        return len(self._kept)

    def step(
        self, logits: Float[Tensor, "row d_vocab"], said: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row statistic"]:
        """Take the next token's logits in, and the token that each row said from those before.

        Args:
            logits: the model's own, before any temperature, penalty or ban.
            said: the newest token; None before anything is said.

        Returns:
            float32, on the logits' device.

        Raises:
            InputError: logits that are NaN or infinite.
        """
        if said is not None:
            self.hear(said)
        self._readings = self._reader.read(logits).cpu().numpy()
        if not np.isfinite(self._readings.sum()):
            raise InputError(
                "the model's logits have NaN or infinite values; need finite ones: check the model's weights, or load "
                "it in float32"
            )
        self._places = np.arange(len(logits))
        found = np.zeros((len(self), len(OUTPUT_STATISTICS)), np.float32)
        found[:, :SPREAD] = self._readings[:, :SPREAD]
        self._of_said(found[:, SPREAD:])
        values = torch.from_numpy(found)
        return values if logits.device.type == "cpu" else values.to(logits.device)

    def select(self, rows: Any) -> None:
        """Keep the state of these rows, in this order; a row may be taken several times."""
        index = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        self._kept, self._tokens, self._places = self._kept[index], self._tokens[index], self._places[index]
        self._readings = None if self._readings is None else self._readings[index]
        self.said_nll, self.said_z = self.said_nll[index], self.said_z[index]

    def hear(self, said: Int[Tensor, " row"]) -> None:
        """Take in the token that each row chose from the latest logits, where no logits follow.

        Raises:
            InputError: there are no logits yet.
        """
        readings = self._readings
        if readings is None:
            raise InputError("got a token before any logits; need the first step without one: said=None")
        below = self._reader.below(self._places, said)
        logprob, entropy = below + readings[:, TOP], readings[:, ENTROPY]
        slot = self.count % self.window
        kept = self._kept[:, slot]
        kept[:, NLL], kept[:, SAID_ENTROPY], kept[:, FIRST] = -logprob, entropy, below == 0
        kept[:, SAID_MARGIN], kept[:, BELOW_MARGIN] = readings[:, MARGIN], -readings[:, MARGIN]
        kept[:, Z] = (logprob + entropy) / np.maximum(readings[:, SPREAD], LEAST_SPREAD)
        self._tokens[:, slot] = said.cpu().numpy()
        self.said_nll, self.said_z = kept[:, NLL].copy(), kept[:, Z].copy()
        self.count += 1

    def _of_said(self, found: Float[np.ndarray, "row statistic"]) -> None:
        """Fill in the statistics of the tokens said."""
        size = min(self.count, self.window)
        if not size:
            return
        kept = self._kept[:, :size]
        np.divide(kept[:, :, :BELOW_MARGIN].sum(1), size, out=found[:, :5], casting="same_kind")
        largest = kept[:, :, [NLL, BELOW_MARGIN]].max(1)
        found[:, 5], found[:, 6] = largest[:, 0], -largest[:, 1]
        ordered = np.sort(self._tokens[:, :size], 1)
        found[:, 7] = ((ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1) / size
