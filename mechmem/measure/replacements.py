"""Which token takes a prefix token's place."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import batches
from mechmem.model.forward import residual_before, unembed_continuation
from mechmem.model.load import HookedTransformer

Replacement = Literal["random", "runner-up"]
# Paragraphs of one forward of the hooked model.
BATCH = 16


def replacements(
    model: HookedTransformer, paragraphs: Paragraphs, replacement: Replacement, *, samples: int = 1, seed: int = 0
) -> Int64[np.ndarray, "sample paragraph pos"]:
    """A token for every place of the prefix, never the token that is there and never a special one.

    "random": drawn uniformly from the tokenizer's vocabulary, by the seed. "runner-up": the most probable
    of all other tokens there, after the true tokens before. For position 0, which has none before it, the model is
    given the tokenizer's end-of-text token, which separates documents in training; without one, the replacement at
    position 0 is random. Without a tokenizer no token is known to be special.

    Raises:
        InputError: an unknown kind, no sample, several samples of a runner-up, or too small a vocabulary.
    """
    check_choice("replacement", replacement, Replacement)
    if samples < 1 or (samples > 1 and replacement == "runner-up"):
        raise InputError(f"got {samples} samples of '{replacement}'; need 1 or more, and 1 of the runner-up")
    allowed = allowed_ids(model)
    drawn = _random(paragraphs.prefix.numpy(), allowed, samples, seed)
    return drawn if replacement == "random" else _runner_up(model, paragraphs, allowed, drawn)


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
        raise InputError(f"got {len(allowed)} of {count} tokens that are not special; need at least 2 to replace one")
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
    paragraphs: Paragraphs,
    allowed: Int64[np.ndarray, " allowed"],
    drawn: Int64[np.ndarray, "sample paragraph pos"],
) -> Int64[np.ndarray, "sample paragraph pos"]:
    found = drawn.copy()
    end: Any = None if model.tokenizer is None else model.tokenizer.eos_token_id
    for rows in batches(len(paragraphs), BATCH):
        prefix = paragraphs.prefix[rows]
        if paragraphs.prefix_len > 1:
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
