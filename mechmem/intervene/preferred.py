"""What is preferred to a memorized text: the same prefix with another continuation."""

from __future__ import annotations

import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.edit import with_continuation
from mechmem.measure.exact import ExactScorer
from mechmem.measure.margins import leading_matches
from mechmem.measure.own_text import own_continuations
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.load import HookedTransformer

# Shares of the prefix that are replaced, one after the other, until the model no longer writes the memorized text.
REPLACED = (0.1, 0.2, 0.4, 0.7, 1.0)


def perturbed_continuations(model: HookedTransformer, targets: Paragraphs, keep: Paragraphs, seed: int) -> Paragraphs:
    """What the model itself writes after each target's prefix with some tokens replaced, row by row.

    As few tokens are replaced as are needed: a tenth of the prefix at random places, by tokens drawn from the keep set,
    then more, until at most a fifth of the continuation is the memorized one. The text is then close to the prefix, is
    what the model holds for likely, and is not the memory.

    Returns:
        The perturbed prefixes with the model's continuations.

    Raises:
        InputError: a target that the model continues with its text whatever its prefix is.
    """
    generator = torch.Generator().manual_seed(seed)
    scorer = ExactScorer(model, calibration_sample(targets))
    pool, length = keep.tokens.flatten(), targets.prefix_len
    tokens, left = targets.tokens.clone(), torch.arange(len(targets))
    for share in REPLACED:
        changed = targets.tokens[left].clone()
        for row in changed:
            places = torch.randperm(length, generator=generator)[: max(1, round(share * length))]
            row[places] = pool[torch.randint(len(pool), places.shape, generator=generator)]
        said = own_continuations(scorer, Paragraphs(changed, length)).tokens
        tokens[left] = said
        same = leading_matches(said[:, length:] == targets.continuation[left])
        left = left[same > targets.continuation_len // 5]
        if len(left) == 0:
            return Paragraphs(tokens, length)
    raise InputError(
        f"the model continues {len(left)} of {len(targets)} targets (number {int(left[0])} first) with their text even "
        "after another prefix, so there is no other text to prefer; give one with preferred=, or leave them out"
    )


def preferred_targets(memorized: Paragraphs, preferred: Paragraphs) -> Paragraphs:
    """The memorized prefixes with the preferred continuations.

    Raises:
        InputError: another number of rows or other lengths, or continuations that do not differ.
    """
    need, got = memorized.tokens.shape, preferred.tokens.shape
    if got != need or memorized.prefix_len != preferred.prefix_len:
        raise InputError(
            f"got preferred {list(got)} with a prefix of {preferred.prefix_len}; need {list(need)} with "
            f"{memorized.prefix_len}: one row for each memorized paragraph"
        )
    same = int((memorized.continuation == preferred.continuation).all(1).sum())
    if same:
        raise InputError(
            f"{same} of {len(memorized)} preferred continuations are the memorized ones; need another text for each"
        )
    return with_continuation(memorized, preferred.continuation)
