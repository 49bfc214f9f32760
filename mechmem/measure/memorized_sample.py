"""Paragraphs that a model memorized, out of those of a file."""

from __future__ import annotations

import numpy as np

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.bounds import Count, Seed, Size, checked
from mechmem.data.corpora import read_corpus
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.measure.exact import ExactScorer
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer


@checked
def memorized_sample(
    model: HookedTransformer,
    source: str | None,
    *,
    limit: Count,
    min_em: Size | None = None,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> Paragraphs:
    """A random sample of the paragraphs of a source that the model knows to `min_em` (all of the continuation).

    Args:
        model: scores them; the columns `em` and `nll` are its own, whatever the source says.
        source: what `read_corpus` reads; None for the bundled paragraphs.
        limit: of the sample.
        min_em: lowest EM.
        seed: of the sample.
        progress: called with (paragraphs scored, paragraphs).

    Raises:
        InputError: a limit below 1, a source that cannot be read or does not fit the model, or none is left.
    """
    paragraphs = bundled_paragraphs() if source is None else read_corpus(source, model.tokenizer)
    check_fit(model, paragraphs)
    need = paragraphs.continuation_len if min_em is None else min_em
    scorer = ExactScorer(model, calibration_sample(paragraphs))
    scores = scorer.score(paragraphs, as_callback(progress, "scoring"))
    known = np.flatnonzero(scores.em >= need)
    if not len(known):
        raise InputError(
            f"none of {len(paragraphs)} paragraphs has EM {need} or more (the highest is {scores.em.max()}); need at "
            "least 1: give other paragraphs, or a lower min_em"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(known)[:limit])
    return paragraphs.select(chosen).with_columns(em=scores.em[chosen], nll=scores.nll[chosen])
