"""Paragraphs continued by the model itself."""

from __future__ import annotations

import numpy as np
import torch

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.measure.decode import greedy_continuations
from mechmem.measure.exact import ExactScorer


def own_continuations(scorer: ExactScorer, paragraphs: Paragraphs, *, progress: Progress | None = None) -> Paragraphs:
    """The same prefixes, each followed by what the model writes greedily.

    Args:
        scorer: of the model.
        paragraphs: with their true continuations.
        progress: called with (paragraphs decoded, paragraphs to decode).
    """
    scores = scorer.score(paragraphs)
    said = greedy_continuations(
        scorer.lean, paragraphs.tokens, paragraphs.prefix_len, scores.em, scores.rival, progress=progress
    )
    return paragraphs.replace_tokens(torch.cat([paragraphs.prefix, torch.from_numpy(np.asarray(said))], 1))
