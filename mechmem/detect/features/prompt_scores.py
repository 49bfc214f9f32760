"""How expected a prompt is: the scores of membership inference, from one forward over it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.detect.features.logit_readings import ENTROPY, SPREAD, TOP, LogitReader

PROMPT_STATISTICS = ("mean_nll", "late_nll", "mink", "minkpp")
# Tokens of "late_nll", the end of the prompt, and the share of tokens that MinK% averages.
LATE = 16
SHARE = 0.2


@torch.no_grad()
def prompt_scores(
    logits: Float[Tensor, "row pos d_vocab"], tokens: Int[Tensor, "row pos"], padding: Int[Tensor, " row"] | None = None
) -> Float[Tensor, "row statistic"]:
    """Scores of prompts, of which the first token is given.

    Args:
        logits: of every position.
        tokens: of the prompts, padded at the left.
        padding: positions of padding of each row; None: there are none.

    Returns:
        `mean_nll` of the tokens, and `late_nll` of the last 16 (nats per token; higher: less expected); `mink`, the
        mean log p of the fifth of the tokens with the lowest (MinK%, Shi et al. 2024), and `minkpp`, the same of log p
        in standard deviations above its mean over the distribution (MinK%++, Zhang et al. 2024). Zero for prompts of
        one token.
    """
    found, reader = [], LogitReader()
    for row, ids in enumerate(tokens.to(logits.device)):
        start = 0 if padding is None else int(padding[row])
        columns, true = logits[row, start:-1], ids[start + 1 :]
        readings = torch.from_numpy(reader.read(columns)).to(ids.device)
        logprob = reader.all_below().gather(1, true[:, None])[:, 0] + readings[TOP]
        z = (logprob + readings[ENTROPY]) / readings[SPREAD]
        found.append(_summary(logprob, z))
    return torch.stack(found).float()


def _summary(logprob: Float[Tensor, " token"], z: Float[Tensor, " token"]) -> Float[Tensor, " statistic"]:
    if not len(logprob):
        return logprob.new_zeros(len(PROMPT_STATISTICS))
    lowest = max(1, round(SHARE * len(logprob)))
    values = [-logprob.mean(), -logprob[-LATE:].mean(), *(x.sort().values[:lowest].mean() for x in (logprob, z))]
    return torch.stack(values)
