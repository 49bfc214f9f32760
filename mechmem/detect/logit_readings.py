"""What one pass over the vocabulary says of a distribution: its peak, its margin, its entropy and its spread."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Logits read at once on a CPU: a block and its exponentials stay in the cache through all passes.
LOGITS_AT_ONCE = 2**16
# The columns that `read_logits` returns.
TOP, MARGIN, ENTROPY, SPREAD = range(4)


@torch.no_grad()
def read_logits(
    logits: Float[Tensor, "row d_vocab"], shifted: Float[Tensor, "row d_vocab"]
) -> Float[Tensor, "row reading"]:
    """Read rows of logits.

    Args:
        logits: of the next token.
        shifted: is filled with the logits minus their largest; `shifted[row, token] + TOP` is log p of a token.

    Returns:
        [row, 4] in the type of `shifted`: the log-probability of the first choice; its logit minus the second
        choice's; the entropy in nats; the standard deviation of log p(token) when tokens are drawn from p (MinK%++).
    """
    rows, vocabulary = logits.shape
    readings = shifted.new_empty(rows, 4)
    step = max(1, LOGITS_AT_ONCE // vocabulary) if logits.device.type == "cpu" else rows
    for start in range(0, rows, step):
        _read(logits[start : start + step], shifted[start : start + step], readings[start : start + step])
    return readings


def _read(logits: Tensor, shifted: Tensor, readings: Tensor) -> None:
    """One block: exp(shifted) is summed alone, times shifted, and times shifted squared."""
    logits = logits.to(shifted.dtype)
    largest, place = logits.max(-1, keepdim=True)
    torch.sub(logits, largest, out=shifted)
    weights = shifted.exp()
    total = weights.sum(-1)
    mean = weights.mul_(shifted).sum(-1) / total
    square = weights.mul_(shifted).sum(-1) / total
    second = shifted.scatter_(-1, place, -torch.inf).amax(-1)
    shifted.scatter_(-1, place, 0.0)
    log_total = total.log()
    readings[:, TOP] = -log_total
    readings[:, MARGIN] = -second
    readings[:, ENTROPY] = log_total - mean
    readings[:, SPREAD] = (square - mean.square()).clamp_(min=0).sqrt_()
