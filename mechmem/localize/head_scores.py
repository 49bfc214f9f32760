"""What a head's attention looks like: previous token, duplicates, induction, entropy."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCORES = {
    "previous_token": ("attention mass, 0 to 1", "attends more to the token before"),
    "duplicate_token": ("attention mass, 0 to 1", "attends more to earlier copies of the token"),
    "induction": ("attention mass, 0 to 1", "attends more to what followed earlier copies of the token"),
    "entropy": ("nats", "attends to more keys, more evenly"),
}


def pattern_scores(
    pattern: Float[Tensor, "paragraph head query_pos key_pos"], tokens: Int[Tensor, "paragraph query_pos"]
) -> tuple[Float[Tensor, "score head"], Float[Tensor, " score"]]:
    """Sums of the SCORES over all queries that have one, and how many queries these are.

    previous_token: attention to the position before, queries from 1 on. duplicate_token: mass on earlier positions of
    the same token; induction: mass on the positions after those (Olsson et al. 2022, arXiv 2209.11895), both over
    queries whose token stood before. entropy: of the row, queries from 1 on.
    """
    length = tokens.shape[1]
    same = torch.tril(tokens[:, :, None] == tokens[:, None, :], -1)
    after = torch.zeros_like(same)
    # The key after an earlier copy: it is never later than the query itself.
    after[:, :, 1:] = same[:, :, :-1]
    repeated = float(same.any(-1).sum())
    rows = float(len(tokens) * (length - 1))
    previous = pattern.diagonal(-1, -2, -1).sum((0, -1))
    duplicate, induction = (torch.einsum("phqk,pqk->h", pattern, kind.to(pattern.dtype)) for kind in (same, after))
    entropy = torch.special.entr(pattern[:, :, 1:]).sum((0, 2, 3))
    sums = torch.stack([previous, duplicate, induction, entropy]).double()
    return sums, torch.tensor([rows, repeated, repeated, rows], dtype=torch.float64)
