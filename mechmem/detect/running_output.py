"""Statistics of a model's output while it decodes: the present step's, and those of the last tokens it said."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.logit_readings import ENTROPY, MARGIN, SPREAD, TOP, read_logits

# Tokens that the statistics of what was said look back on.
WINDOW = 32
# The distribution over the next token; then means, extremes and shares over the tokens said.
PRESENT = ("top_logprob", "margin", "entropy")
SAID = (
    "mean_nll",
    "max_nll",
    "mean_entropy",
    "mean_margin",
    "min_margin",
    "first_choice",
    "mean_z",
    "distinct",
)
OUTPUT_STATISTICS = (*PRESENT, *SAID)
# What is kept of each token said.
NLL, SAID_ENTROPY, SAID_MARGIN, FIRST, Z = range(5)
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
        self._kept = np.zeros((rows, window, 5))
        self._tokens = np.zeros((rows, window), np.int64)
        self._readings = np.full((rows, 4), np.nan)
        # The latest logits minus their largest, and each row's place in them: select moves places, not logits.
        self._shifted: Tensor | None = None
        self._places = torch.arange(rows, device=self._device)
        self.said_nll, self.said_z = np.full(rows, np.nan), np.full(rows, np.nan)

    def __len__(self) -> int:
        return len(self._readings)

    @torch.no_grad()
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
        if self._shifted is None or self._shifted.shape != logits.shape:
            wide = torch.promote_types(logits.dtype, torch.float32)
            self._shifted = torch.empty(logits.shape, dtype=wide, device=logits.device)
        self._readings = read_logits(logits, self._shifted).double().cpu().numpy()
        self._places = torch.arange(len(logits), device=logits.device)
        if not np.isfinite(self._readings).all():
            raise InputError(
                "the model's logits have NaN or infinite values; need finite ones: check the model's weights, or load "
                "it in float32"
            )
        found = np.concatenate([self._readings[:, :SPREAD], self._of_said()], 1, dtype=np.float32, casting="same_kind")
        return torch.from_numpy(found).to(logits.device)

    def select(self, rows: Any) -> None:
        """Keep the state of these rows, in this order; a row may be taken several times."""
        index = np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        self._kept, self._tokens, self._readings = self._kept[index], self._tokens[index], self._readings[index]
        self.said_nll, self.said_z = self.said_nll[index], self.said_z[index]
        self._places = self._places[torch.from_numpy(index).to(self._places.device)]

    def hear(self, said: Int[Tensor, " row"]) -> None:
        """Keep what the latest distribution says of the token that was chosen from it."""
        if self._shifted is None:
            raise InputError("got a token before any logits; need the first step without one: said=None")
        below = self._shifted[self._places, said.to(self._shifted.device)].double().cpu().numpy()
        logprob = below + self._readings[:, TOP]
        entropy = self._readings[:, ENTROPY]
        z = (logprob + entropy) / np.maximum(self._readings[:, SPREAD], LEAST_SPREAD)
        slot = self.count % self.window
        kept = self._kept[:, slot]
        kept[:, NLL], kept[:, SAID_ENTROPY], kept[:, SAID_MARGIN] = -logprob, entropy, self._readings[:, MARGIN]
        kept[:, FIRST], kept[:, Z] = below == 0, z
        self._tokens[:, slot] = said.cpu().numpy()
        self.said_nll, self.said_z = -logprob, z
        self.count += 1

    def _of_said(self) -> Float[np.ndarray, "row statistic"]:
        size = min(self.count, self.window)
        found = np.zeros((len(self), len(SAID)))
        if size:
            kept = self._kept[:, :size]
            mean = kept.mean(1)
            ordered = np.sort(self._tokens[:, :size], 1)
            found[:, 0], found[:, 1] = mean[:, NLL], kept[:, :, NLL].max(1)
            found[:, 2], found[:, 3] = mean[:, SAID_ENTROPY], mean[:, SAID_MARGIN]
            found[:, 4] = kept[:, :, SAID_MARGIN].min(1)
            found[:, 5], found[:, 6] = mean[:, FIRST], mean[:, Z]
            found[:, 7] = (1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)) / size
        return found
