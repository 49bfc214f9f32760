"""What ablations without hooks share: the means that replace activations, and the scores of what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.measure.margins import leading_matches, margins
from mechmem.model.lean.model import LeanModel
from mechmem.model.lean.trace import trace

# Paragraphs whose activations are held at once.
HELD = 8


def mean_activations(
    lean: LeanModel, tokens: Int[Tensor, "paragraph pos"], sites: Sequence[str]
) -> dict[str, Float[Tensor, "layer 1 ..."]]:
    """By site, the mean over all paragraphs of what it gives at each position."""
    total: dict[str, Tensor] = {}
    for some in tokens.split(HELD):
        run = trace(lean, some, sites)
        for site in sites:
            found = run[site].sum(1, keepdim=True).double()
            total[site] = total[site] + found if site in total else found
    return {site: (value / len(tokens)).to(lean.dtype) for site, value in total.items()}


def em_and_nll(
    lean: LeanModel, final: Float[Tensor, "row column d_model"], true: Int[Tensor, "row column"]
) -> Float[Tensor, "measure row"]:
    """EM, tokens, and NLL, nats per token, of each row's continuation, from the normalized end of the body."""
    true = true.to(final.device)
    found = margins(lean, final, true)
    assert found.token_nll is not None
    em = leading_matches(found.matches(true))
    return torch.stack([em.to(found.token_nll.dtype), found.token_nll.mean(-1)])
