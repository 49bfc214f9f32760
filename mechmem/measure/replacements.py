"""Which token takes a prefix token's place."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.forward import residual_before, unembed_continuation
from mechmem.model.load import HookedTransformer

Replacement = Literal["random", "runner-up"]
# Paragraphs of one forward of the hooked model.
BATCH = 16


def replacements(
    model: HookedTransformer, paras: Paragraphs, replacement: Replacement, *, samples: int = 1, seed: int = 0
) -> Int64[np.ndarray, "sample paragraph pos"]:
    """A token for every place of the prefix, never the one that stands there and never a special one.

    "random": drawn uniformly from the tokenizer's vocabulary, by the seed. "runner-up": what the model thinks most
    probable there, of all other tokens, after the true tokens before. Nothing stands before position 0 and no token is
    put there: the tokenizer's end-of-text token, which separates documents in training, stands in for it, or, where
    there is none, the replacement at position 0 is random. Without a tokenizer no token is known to be special.

    Raises:
        InputError: an unknown kind, no sample, several samples of a runner-up, or too small a vocabulary.
    """
    if replacement not in get_args(Replacement):
        raise InputError(f"the replacement is {replacement!r}; need one of {', '.join(get_args(Replacement))}")
    if samples < 1 or (samples > 1 and replacement == "runner-up"):
        raise InputError(f"{samples} samples of '{replacement}' came; need 1 or more, and 1 of the runner-up")
    allowed = allowed_ids(model)
    drawn = _random(paras.prefix.numpy(), allowed, samples, seed)
    return drawn if replacement == "random" else _runner_up(model, paras, allowed, drawn)


def allowed_ids(model: HookedTransformer) -> Int64[np.ndarray, " allowed"]:
    """Ids that text can hold: the model may have more rows than its tokenizer has tokens, and some are special.

    Raises:
        InputError: fewer than two are left.
    """
    tokenizer = model.tokenizer
    count = model.cfg.d_vocab if tokenizer is None else min(model.cfg.d_vocab, len(tokenizer))
    special = [] if tokenizer is None else list(tokenizer.all_special_ids)
    allowed = np.setdiff1d(np.arange(count), np.array(special, dtype=np.int64))
    if len(allowed) < 2:
        raise InputError(f"{len(allowed)} of {count} tokens are not special; need at least 2 to replace one by another")
    return allowed


def _random(
    prefix: Int64[np.ndarray, "paragraph pos"], allowed: Int64[np.ndarray, " allowed"], samples: int, seed: int
) -> Int64[np.ndarray, "sample paragraph pos"]:
    place = np.searchsorted(allowed, prefix).clip(max=len(allowed) - 1)
    stands = allowed[place] == prefix
    # One choice less where the token itself is among the choices; those behind it move up by one.
    choices = np.broadcast_to(len(allowed) - stands, (samples, *prefix.shape))
    drawn = np.random.default_rng(seed).integers(0, choices)
    return allowed[drawn + (stands & (drawn >= place))]


@torch.no_grad()
def _runner_up(
    model: HookedTransformer,
    paras: Paragraphs,
    allowed: Int64[np.ndarray, " allowed"],
    drawn: Int64[np.ndarray, "sample paragraph pos"],
) -> Int64[np.ndarray, "sample paragraph pos"]:
    found = drawn.copy()
    end: Any = None if model.tokenizer is None else model.tokenizer.eos_token_id
    for start in range(0, len(paras), BATCH):
        prefix = paras.prefix[start : start + BATCH]
        rows = slice(start, start + len(prefix))
        if paras.prefix_len > 1:
            found[0, rows, 1:] = _best(model, prefix, prefix[:, 1:], allowed)
        if end is not None:
            # Two tokens, so that the first one's column is among those that are unembedded.
            first = torch.stack([torch.full_like(prefix[:, 0], end), prefix[:, 0]], 1)
            found[0, rows, :1] = _best(model, first, prefix[:, :1], allowed)
    return found


def _best(
    model: HookedTransformer,
    tokens: Int[Tensor, "paragraph pos"],
    true: Int[Tensor, "paragraph column"],
    allowed: Int64[np.ndarray, " allowed"],
) -> Int64[np.ndarray, "paragraph column"]:
    """The most probable allowed token that is not the true one, from columns 0 ... n - 2."""
    residual = residual_before(model, tokens.to(model.cfg.device), model.cfg.n_layers)
    logits = unembed_continuation(model, residual, 1).float()
    forbidden = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    forbidden[torch.as_tensor(allowed, device=logits.device)] = False
    logits.masked_fill_(forbidden, -torch.inf)
    logits.scatter_(-1, true.to(logits.device)[..., None], -torch.inf)
    return logits.argmax(-1).cpu().numpy()
