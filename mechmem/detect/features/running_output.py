"""Statistics of a model's output while it decodes: the present step's, and those of the last tokens it said."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.features.logit_readings import ENTROPY, MARGIN, SPREAD, TOP, LogitReader

# Tokens that the statistics of what was said look back on.
WINDOW = 32
# The distribution over the next token; then means, extremes and shares over the tokens said.
PRESENT = ("top_logprob", "margin", "entropy")
SAID = ("mean_nll", "mean_margin", "mean_entropy", "first_choice", "mean_z", "max_nll", "min_margin", "distinct")
OUTPUT_STATISTICS = (*PRESENT, *SAID)
# What is kept of each token said; the margin and the entropy stand where a reader has them.
NLL, _, _, FIRST, Z = range(5)


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
    """

    names: tuple[str, ...] = OUTPUT_STATISTICS

    def __init__(self, rows: int, device: torch.device | str = "cpu", window: int = WINDOW):
        self.window, self.count = window, 0
        self._device = torch.device(device)
        self._kept = np.zeros((5, rows, window))
        # One short text a row: sets of Python count its different tokens in fewer calls than arrays do.
        self._tokens: list[deque[int]] = [deque(maxlen=window) for _ in range(rows)]
        self._readings: np.ndarray | None = None
        # Each row's place in the latest logits: select moves places, not logits.
        self._reader, self._places = LogitReader(), np.arange(rows)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def said_nll(self) -> Float[np.ndarray, " row"]:
        """-log p of the token said last, nats."""
        return self._kept[NLL, :, (self.count - 1) % self.window]

    @property
    def said_z(self) -> Float[np.ndarray, " row"]:
        """Log p of the token said last, in standard deviations above its mean over the distribution."""
        return self._kept[Z, :, (self.count - 1) % self.window]

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
        self._readings = readings = self._reader.read(logits)
        rows = readings.shape[1]
        self._places = np.arange(rows)
        found = np.zeros((rows, len(OUTPUT_STATISTICS)), np.float32)
        found[:, :SPREAD] = readings[:SPREAD].T
        self._of_said(found[:, SPREAD:])
        values = torch.from_numpy(found)
        return values if logits.is_cpu else values.to(logits.device)

    def select(self, rows: Any) -> None:
        """Keep the state of these rows, in this order; a row may be taken several times."""
        index = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        self._kept, self._places = self._kept[:, index], self._places[index]
        self._tokens = [self._tokens[row].copy() for row in index.tolist()]
        self._readings = None if self._readings is None else self._readings[:, index]

    def hear(self, said: Int[Tensor, " row"]) -> None:
        """Take in the token that each row chose from the latest logits, where no logits follow.

        Raises:
            InputError: there are no logits yet.
        """
        readings = self._readings
        if readings is None:
            raise InputError("got a token before any logits; need the first step without one: said=None")
        tokens, slot = (said if said.is_cpu else said.cpu()).numpy(), self.count % self.window
        below = self._reader.below(self._places, tokens)
        logprob, kept = below + readings[TOP], self._kept[:, :, slot]
        np.negative(logprob, out=kept[NLL])
        kept[MARGIN : ENTROPY + 1] = readings[MARGIN : ENTROPY + 1]
        np.equal(below, 0, out=kept[FIRST])
        np.divide(logprob + readings[ENTROPY], readings[SPREAD], out=kept[Z])
        for row, token in zip(self._tokens, tokens.tolist(), strict=True):
            row.append(token)
        self.count += 1

    def _of_said(self, found: Float[np.ndarray, "row statistic"]) -> None:
        """Fill in the statistics of the tokens said."""
        size = min(self.count, self.window)
        if not size:
            return
        kept = self._kept[:, :, :size]
        found[:, :5] = kept.sum(2).T / size
        found[:, 5], found[:, 6] = kept[NLL].max(1), kept[MARGIN].min(1)
        found[:, 7] = [len(set(row)) / size for row in self._tokens]
