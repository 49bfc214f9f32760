"""By how much a model prefers the true token to every other: whether a match is certain at the precision at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.model.lean.model import LeanModel

# Logits held at once. Blocks of this size stay near the cache, and malloc keeps them instead of asking for new pages.
LOGITS_AT_ONCE = 2**22
NOT_FINITE = "the model gave NaN or infinite logits; need finite ones: check its weights, or load it in float32"


@dataclass(frozen=True)
class Margins:
    """What the logits say of the true tokens, [paragraph, column].

    Attributes:
        margin: logit of the true token minus the largest other one; positive: greedy decoding gives the true token.
        rival: id of the largest other one, what greedy decoding gives where the true token loses. Of equals the lowest.
        token_nll: -log p(token), nats; None where it was not asked for.
    """

    margin: Float[Tensor, "paragraph column"]
    rival: Int[Tensor, "paragraph column"]
    token_nll: Float[Tensor, "paragraph column"] | None

    def matches(self, true: Int[Tensor, "paragraph column"]) -> Bool[Tensor, "paragraph column"]:
        """Whether the argmax is the true token; of equal logits the lowest id wins."""
        return (self.margin > 0) | ((self.margin == 0) & (true < self.rival))

    def greedy(self, true: Int[Tensor, "paragraph column"]) -> Int[Tensor, "paragraph column"]:
        """The argmax of each column."""
        return torch.where(self.matches(true), true, self.rival)


def margins(
    lean: LeanModel,
    hidden: Float[Tensor, "paragraph column d_model"],
    true: Int[Tensor, "paragraph column"],
    *,
    nll: bool = True,
) -> Margins:
    """Compare the true tokens' logits with all others, some columns at a time: [batch, column, vocab] never exists.

    Args:
        lean: the model that gave `hidden`.
        hidden: what `forward` gave at the columns that score `true`.
        true: the tokens to expect.
        nll: compute token_nll as well.

    Raises:
        InputError: a logit is NaN or infinite.
    """
    rows, columns = hidden.shape[0] * hidden.shape[1], hidden.flatten(0, 1)
    flat = true.to(hidden.device).reshape(-1, 1)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    margin, token_nll = torch.empty(2, rows, dtype=wide, device=hidden.device)
    rival = torch.empty(rows, dtype=torch.long, device=hidden.device)
    step = max(1, LOGITS_AT_ONCE // lean.d_vocab)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        logits = lean.unembed(columns[part]).to(wide)
        own = logits.gather(1, flat[part]).squeeze(1)
        if nll:
            token_nll[part] = logits.logsumexp(-1) - own
        logits.scatter_(1, flat[part], -torch.inf)
        best = logits.max(-1)
        margin[part], rival[part] = own - best.values, best.indices
    if not bool(margin.isfinite().all()):
        raise InputError(NOT_FINITE)
    shape = true.shape
    return Margins(margin.view(shape), rival.view(shape), token_nll.view(shape) if nll else None)


def leading_matches(match: Bool[Tensor, "*batch pos"]) -> Int[Tensor, "*batch"]:
    """How many positions match before the first that does not."""
    return match.long().cumprod(-1).sum(-1)


def uncertain(
    margin: Float[Tensor, "paragraph column"], tolerance: float
) -> tuple[Bool[Tensor, " paragraph"], Bool[Tensor, " paragraph"]]:
    """Whether EM could change if every margin may be wrong by `tolerance`, and whether a mismatch is certain.

    EM depends on the columns up to the first certain mismatch (margin below -tolerance). If the margin of one of them
    is within the tolerance, it may match or not.

    Returns:
        `near`: EM is not certain; `lost`: some column certainly does not match, so nothing behind it matters.
    """
    certain = margin < -tolerance
    decisive = certain.long().cumsum(-1) - certain.long() == 0
    return ((margin.abs() <= tolerance) & decisive).any(-1), certain.any(-1)
