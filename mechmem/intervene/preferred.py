"""What is preferred to a memorized text: the same prefix with another continuation."""

from __future__ import annotations

import numpy as np

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.edit import with_continuation
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.load import HookedTransformer


def perturbed_continuations(model: HookedTransformer, targets: Paragraphs, seed: int) -> Paragraphs:
    """What the model itself writes after each target's worst single-token perturbation, row by row.

    Raises:
        InputError: a target that no perturbation makes the model continue otherwise.
    """
    clean, corrupt = worst_perturbations(model, targets, perturb_prefix(model, targets, seed=seed))
    place = {identity: row for row, identity in enumerate(clean.ids.tolist())}
    missing = [identity for identity in targets.ids.tolist() if identity not in place]
    if missing:
        raise InputError(
            f"no single-token perturbation changes the continuation of {len(missing)} of {len(targets)} targets (id "
            f"{missing[0]} first), so there is no other text to prefer; give one with preferred=, or leave them out"
        )
    return corrupt.select(np.array([place[identity] for identity in targets.ids.tolist()]))


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
