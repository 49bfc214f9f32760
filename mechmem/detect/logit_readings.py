"""What a few passes over the vocabulary say of a distribution: its peak, its margin, its entropy and its spread."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

# Logits read at once on a CPU: a block and its exponentials stay in the cache through all passes.
LOGITS_AT_ONCE = 2**16
# The columns of what a reader reads.
TOP, MARGIN, ENTROPY, SPREAD = range(4)


class LogitReader:
    """Reads rows of logits, and keeps the latest, in at least float32, to say log p of any token.

    On a CPU NumPy does it: its calls cost a fifth of torch's, which one row would feel, and its exponentials half.
    """

    def __init__(self) -> None:
        self._below = torch.empty(0, 0)
        self._scratch = np.empty((0, 0), np.float32)

    @torch.no_grad()
    def read(self, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, "row reading"]:
        """Read logits of the next token; they are left as they are.

        Returns:
            [row, 4] on their device: the log-probability of the first choice; its logit minus the second choice's; the
            entropy in nats; the standard deviation of log p(token) when tokens are drawn from p (MinK%++).
        """
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        below = self._below
        if below.shape != logits.shape or below.dtype != logits.dtype or below.device != logits.device:
            self._below = torch.empty_like(logits, memory_format=torch.contiguous_format)
        readings = logits.new_empty(len(logits), 4)
        if logits.device.type == "cpu":
            # Whoever reads logits that are not finite sees it in the readings.
            with np.errstate(invalid="ignore"):
                self._read_here(logits.numpy(), self._below.numpy(), readings.numpy())
        else:
            _read_there(logits, self._below, readings)
        return readings

    def below(self, rows: Int[np.ndarray, " row"], tokens: Int[Tensor, " row"]) -> np.ndarray:
        """Logits of tokens minus the largest of their row, [row]: log p minus the first choice's."""
        if self._below.device.type == "cpu":
            return self._below.numpy()[rows, tokens.cpu().numpy()].astype(np.float64)
        index = torch.from_numpy(rows).to(self._below.device)
        return self._below[index, tokens.to(self._below.device)].double().cpu().numpy()

    def all_below(self) -> Float[Tensor, "row d_vocab"]:
        """The latest logits, minus the largest of their row."""
        return self._below

    def _read_here(self, logits: np.ndarray, below: np.ndarray, readings: np.ndarray) -> None:
        rows, vocabulary = logits.shape
        step = min(max(1, LOGITS_AT_ONCE // vocabulary), rows)
        if self._scratch.shape != (step, vocabulary) or self._scratch.dtype != logits.dtype:
            self._scratch = np.empty((step, vocabulary), logits.dtype)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            _read_block(logits[part], below[part], self._scratch[: min(step, rows - start)], readings[part])


def _read_block(logits: np.ndarray, below: np.ndarray, weights: np.ndarray, readings: np.ndarray) -> None:
    """One block: exp(below) is summed alone, times below, and times below squared."""
    rows = np.arange(len(logits))
    place = logits.argmax(1)
    np.subtract(logits, logits[rows, place][:, None], out=below)
    np.exp(below, out=weights)
    total = weights.sum(1)
    mean = np.vecdot(weights, below) / total
    np.multiply(weights, below, out=weights)
    square = np.vecdot(weights, below) / total
    below[rows, place] = -np.inf
    second = below.max(1)
    below[rows, place] = 0.0
    readings[:, TOP] = -np.log(total)
    readings[:, MARGIN] = -second
    readings[:, ENTROPY] = -readings[:, TOP] - mean
    readings[:, SPREAD] = np.sqrt(np.maximum(square - mean * mean, 0))


def _read_there(logits: Tensor, below: Tensor, readings: Tensor) -> None:
    """As `_read_block`, of all rows on another device."""
    largest, place = logits.max(-1, keepdim=True)
    torch.sub(logits, largest, out=below)
    weights = below.exp()
    total = weights.sum(-1)
    mean = weights.mul_(below).sum(-1) / total
    square = weights.mul_(below).sum(-1) / total
    readings[:, TOP] = -total.log()
    readings[:, MARGIN] = -below.scatter(-1, place, -torch.inf).amax(-1)
    readings[:, ENTROPY] = total.log() - mean
    readings[:, SPREAD] = (square - mean.square()).clamp_(min=0).sqrt_()
