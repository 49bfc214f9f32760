"""What a few passes over the vocabulary say of a distribution: its peak, its margin, its entropy and its spread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError

# Logits read at once on a CPU: a block and its exponentials stay in the cache through all passes.
LOGITS_AT_ONCE = 2**16
# The rows of what a reader reads.
TOP, MARGIN, ENTROPY, SPREAD = range(4)
# A smaller variance of log p is rounding error.
LEAST_VARIANCE = 1e-12


class LogitReader:
    """Reads rows of logits, and keeps the latest, in at least float32, to say log p of any token.

    A step of a small model is so short that every call counts. On a CPU NumPy reads: its calls cost a fraction of
    torch's, and its exponentials half.
    """

    def __init__(self) -> None:
        # The latest logits minus the largest of their row: an array on a CPU, a tensor elsewhere.
        self._below: Any = None
        self._scratch = np.empty((0, 0), np.float32)

    def read(self, logits: Float[Tensor, "row d_vocab"]) -> Float[np.ndarray, "reading row"]:
        """Read logits of the next token; they are left as they are.

        Returns:
            [4, row]: the log-probability of the first choice; its logit minus the second choice's; the entropy in nats;
            the standard deviation of log p(token) when tokens are drawn from p (MinK%++), at least 1e-6.

        Raises:
            InputError: logits that are NaN or infinite.
        """
        if logits.dtype is not torch.float32 and logits.dtype is not torch.float64:
            logits = logits.float()
        if logits.requires_grad:
            logits = logits.detach()
        # Whoever has logits that are not finite is told below.
        with np.errstate(invalid="ignore"):
            sums = self._here(logits.numpy()) if logits.is_cpu else self._there(logits)
            total, _, mean, square = sums
            sums[ENTROPY:] /= total
            square -= mean * mean
            np.sqrt(np.maximum(square, LEAST_VARIANCE, out=square), out=square)
            np.log(total, out=total)
            np.subtract(total, mean, out=mean)
            np.negative(sums[:ENTROPY], out=sums[:ENTROPY])
        if not math.isfinite(sums.sum()):
            raise InputError(
                "the model's logits have NaN or infinite values; need finite ones: check the model's weights, or load "
                "it in float32"
            )
        return sums

    def below(self, rows: Int[np.ndarray, " row"], tokens: Int[np.ndarray, " row"]) -> np.ndarray:
        """Logits of tokens minus the largest of their row, [row]: log p minus the first choice's."""
        if isinstance(self._below, np.ndarray):
            return self._below[rows, tokens]
        device = self._below.device
        return self._below[torch.from_numpy(rows).to(device), torch.from_numpy(tokens).to(device)].cpu().numpy()

    def all_below(self) -> Float[Tensor, "row d_vocab"]:
        """The latest logits, minus the largest of their row."""
        return torch.from_numpy(self._below) if isinstance(self._below, np.ndarray) else self._below

    def _here(self, logits: np.ndarray) -> np.ndarray:
        """Of each row, [4, row]: the sum of exp(below); the second largest; sums times below, times below squared."""
        rows, vocabulary = logits.shape
        step = min(max(1, LOGITS_AT_ONCE // vocabulary), rows)
        if self._below is None or self._below.shape != logits.shape or self._below.dtype != logits.dtype:
            self._below = np.empty_like(logits, order="C")
            self._scratch = np.empty((step, vocabulary), logits.dtype)
        sums, number = np.empty((4, rows), logits.dtype), np.arange(step)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            given, below, found = logits[part], self._below[part], sums[:, part]
            weights, index = self._scratch[: len(given)], number[: len(given)]
            place = given.argmax(1)
            np.subtract(given, given[index, place][:, None], out=below)
            np.exp(below, out=weights)
            weights.sum(1, out=found[TOP])
            np.vecdot(weights, below, out=found[ENTROPY])
            np.multiply(weights, below, out=weights)
            np.vecdot(weights, below, out=found[SPREAD])
            below[index, place] = -np.inf
            below.max(1, out=found[MARGIN])
            below[index, place] = 0.0
        return sums

    @torch.no_grad()
    def _there(self, logits: Tensor) -> np.ndarray:
        """As `_here`, of all rows on another device."""
        largest, place = logits.max(-1, keepdim=True)
        self._below = below = logits - largest
        weights = below.exp()
        total, mean, square = (weights.sum(-1), weights.mul_(below).sum(-1), weights.mul_(below).sum(-1))
        second = below.scatter(-1, place, -torch.inf).amax(-1)
        return torch.stack([total, second, mean, square]).cpu().numpy()
