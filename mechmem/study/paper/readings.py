"""What the study's code scored, for the reading "as published"."""

from __future__ import annotations

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.measure.exact import ExactScorer
from mechmem.measure.own_text import own_continuations
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.load import HookedTransformer


def published_columns(paragraphs: Paragraphs) -> Paragraphs:
    """The same paragraphs, scored as the public code does: without the first token of the continuation.

    The code takes the logit columns from prefix_len on. Column j scores token j + 1, so the first token that is scored
    is the second of the continuation: NLL, gradients and objectives of the result are those of the code.
    """
    shifted = Paragraphs(paragraphs.tokens, paragraphs.prefix_len + 1, paragraphs.table, paragraphs.tokenizer)
    shifted.__dict__["ids"] = paragraphs.ids
    return shifted


def own_text(model: HookedTransformer, paragraphs: Paragraphs, *, progress: Progress | None = None) -> Paragraphs:
    """The same prefixes, each followed by what the model writes greedily, as the study's files of other paragraphs are.

    Args:
        model: without hooks.
        paragraphs: with their true continuations.
        progress: called with (paragraphs decoded, paragraphs to decode).
    """
    return own_continuations(ExactScorer(model, calibration_sample(paragraphs)), paragraphs, progress=progress)
