"""Ids of a model that its tokenizer has no token for: fine-tuners and GPT-NeoX round the vocabulary up.

Such surplus ids are always the last ones. Their logits get a bias so low that their probability is exactly 0, so that
no argmax, sampling or generation chooses them. The bias is one of the model's own weights (`unembed.b_U`), so every
forward of the model applies it, and its copies keep it; checkpoints have no such bias, and exporting leaves it out.
"""

from __future__ import annotations

import torch
from transformer_lens import HookedTransformer

# Finite, or differences of two models' log-probabilities would be NaN; float16 holds it; exp of it is 0 in float64.
SURPLUS_BIAS = -30_000.0


def vocabulary(model: HookedTransformer) -> int:
    """How many ids the model can give: all of them, or those that its tokenizer has a token for."""
    return model.cfg.d_vocab - int((model.unembed.b_U < SURPLUS_BIAS / 2).sum())


@torch.no_grad()
def exclude_surplus(model: HookedTransformer, known: int) -> None:
    """Give ids from `known` on probability 0, in place.

    The other ids' log-probabilities then sum to 1 without them. transformers counts surplus ids in, so its NLL is
    higher by -log(1 - their share), which training drives towards 0.
    """
    model.unembed.b_U[known:] = SURPLUS_BIAS
