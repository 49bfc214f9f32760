"""The study's sets: groups of paragraphs by EM, out of its public files, a scan or any corpus."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mechmem.data.assets import bundled_paragraphs
from mechmem.data.corpora import RUN, read_corpus
from mechmem.data.counts import cluster
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import as_callback
from mechmem.measure.exact import ExactScorer
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.study.paper.model_check import ModelCheck, check_paper_model
from mechmem.study.paper.paper_settings import PaperSettings
from mechmem.study.paper.published_files import holds_published_files, read_published_files

GROUPS = ("0-10", "11-29", "30-49", "50")
# Scores that a file brings are used if the model gives the same to this many of its paragraphs.
COMPARED = 16


@dataclass(frozen=True)
class PaperSets:
    """The study's sets.

    Attributes:
        scored: every paragraph, with the columns `group` (of EM, as the study names it: in shares of the continuation
            where that has other than 50 tokens), `em`, `nll` (nats per token), `cluster` (of near-duplicates) and
            `own_text`: whether the continuation is the model's own greedy text instead of the true one.
        pairs: the study's memorized and perturbed paragraphs, row by row; None where the corpus has none.
        check: whether the published numbers apply to the model.
        source: what the paragraphs are, in words.
    """

    scored: Paragraphs
    pairs: tuple[Paragraphs, Paragraphs] | None
    check: ModelCheck
    source: str

    def group(self, name: str) -> Paragraphs:
        """The paragraphs of a group of EM, also by the names "memorized" and "other"; possibly none."""
        known = {"memorized": "50", "other": "0-10"}
        return self.scored.select(np.flatnonzero(self.scored.column("group") == known.get(name, name)))

    @property
    def memorized(self) -> Paragraphs:
        """Paragraphs that the model reproduces exactly."""
        return self.group("memorized")

    @property
    def other(self) -> Paragraphs:
        """Paragraphs of EM 0 to 10; possibly none."""
        return self.group("other")

    @cached_property
    def between(self) -> dict[str, Paragraphs]:
        """The two groups between, those that have paragraphs."""
        found = {name: self.group(name) for name in GROUPS[1:3]}
        return {name: paragraphs for name, paragraphs in found.items() if len(paragraphs)}

    @property
    def groups(self) -> dict[str, Paragraphs]:
        """All groups that have paragraphs, by increasing EM."""
        found = {name: self.group(name) for name in GROUPS}
        return {name: paragraphs for name, paragraphs in found.items() if len(paragraphs)}


def group_names(em: np.ndarray, length: int) -> np.ndarray:
    """The group of each EM: up to a fifth of the continuation, up to under three fifths, under all, all."""
    limits = [length // 5, -(-3 * length // 5) - 1, length - 1]
    return np.array(GROUPS)[np.searchsorted(limits, em)]


def read_sets(
    settings: PaperSettings, model: HookedTransformer, progress: Callable[[int, int], None] | None = None
) -> PaperSets:
    """Read and score the sets.

    The study's public files hold the groups as they are; where the model is another one, the memorized paragraphs are
    grouped again by its own EM, and the groups whose continuations GPT-Neo 125M wrote are left out. Any other corpus
    is scored; the scores that a scan wrote are used if the model gives the same.

    Raises:
        InputError: no corpus for a model that needs one, a corpus that cannot be read or does not fit the model, others
            of another length, or no memorized paragraph.
    """
    if holds_published_files(settings.corpus):
        scored, pairs, check, source = _published(settings, model, progress)
    else:
        scored, pairs = _scored(_corpus(settings, model), model, progress), None
        check = check_paper_model(model, None, None)
        source = "the bundled paragraphs" if settings.corpus is None else str(Path(settings.corpus).name)
    parts = [scored]
    if settings.others is not None:
        others = _cut(read_corpus(settings.others, model.tokenizer, limit=settings.limit, seed=settings.seed), scored)
        parts.append(_scored(others, model, progress))
        source += f" and {Path(settings.others).name}"
    sets = PaperSets(_joined(parts), pairs, check, source)
    if not len(sets.memorized):
        raise InputError(
            f"{settings.corpus}: the model reproduces none of {len(sets.scored)} paragraphs exactly (the highest EM is "
            f"{int(sets.scored.column('em').max())}); need at least 1: give text that the model has seen in training, "
            "or more of it"
        )
    return sets


def _published(
    settings: PaperSettings, model: HookedTransformer, progress: Callable[[int, int], None] | None
) -> tuple[Paragraphs, tuple[Paragraphs, Paragraphs] | None, ModelCheck, str]:
    files = read_published_files(settings.corpus or "")
    memorized = _scored(files.memorized, model, progress)
    check = check_paper_model(model, memorized, memorized.column("em"))
    if not check.applies:
        source = f"the study's {len(memorized)} memorized paragraphs, grouped again by this model's EM"
        return memorized, None, check, source
    own = [
        _scored(rows, model, progress).with_columns(
            group=np.full(len(rows), name), own_text=np.ones(len(rows), dtype=bool)
        )
        for name, rows in files.own_text.items()
    ]
    return _joined([memorized, *own]), files.pairs, check, "the study's public files"


def _corpus(settings: PaperSettings, model: HookedTransformer) -> Paragraphs:
    if settings.corpus is not None:
        return read_corpus(settings.corpus, model.tokenizer, limit=settings.limit, seed=settings.seed)
    if settings.model != "bundled":
        raise InputError(
            f"got no corpus for {settings.model}; name the folder of the study's public files, a scan's parquet, or "
            "text that the model was trained on with --corpus"
        )
    paragraphs = bundled_paragraphs()
    return paragraphs.select(np.arange(len(paragraphs))[: settings.limit])


def _scored(
    paragraphs: Paragraphs, model: HookedTransformer, progress: Callable[[int, int], None] | None
) -> Paragraphs:
    check_fit(model, paragraphs)
    em, nll = _stored_scores(paragraphs, model) or _new_scores(paragraphs, model, progress)
    return paragraphs.with_columns(
        em=em,
        nll=nll,
        group=group_names(em, paragraphs.continuation_len),
        own_text=np.zeros(len(paragraphs), dtype=bool),
    )


def _new_scores(paragraphs: Paragraphs, model: HookedTransformer, progress: Any = None) -> tuple[Any, Any]:
    scorer = ExactScorer(model, calibration_sample(paragraphs))
    scores = scorer.score(paragraphs, as_callback(progress, "scoring paragraphs"))
    return scores.em, scores.nll


def _stored_scores(paragraphs: Paragraphs, model: HookedTransformer) -> tuple[Any, Any] | None:
    """Scores that a scan of this model wrote; None if there are none, or another model's."""
    if not (paragraphs.has("em") and paragraphs.has("nll")):
        return None
    em, nll = paragraphs.column("em"), paragraphs.column("nll")
    if not (np.isfinite(em.astype(float)).all() and np.isfinite(nll.astype(float)).all()):
        return None
    # Beginning with the highest, where another model would differ.
    some = np.argsort(-em, kind="stable")[:: max(1, len(em) // COMPARED)][:COMPARED]
    if not np.array_equal(_new_scores(paragraphs.select(some), model)[0], em[some]):
        warnings.warn("the corpus brings scores of another model; scoring it again", stacklevel=2)
        return None
    return em.astype(np.int64), nll.astype(float)


def _cut(paragraphs: Paragraphs, like: Paragraphs) -> Paragraphs:
    """Rows cut to the length of the others."""
    length = like.tokens.shape[1]
    if paragraphs.tokens.shape[1] < length:
        raise InputError(
            f"got others of {paragraphs.tokens.shape[1]} tokens for paragraphs of {length}; need at least as many"
        )
    return Paragraphs(paragraphs.tokens[:, :length], like.prefix_len, None, paragraphs.tokenizer)


def _joined(parts: list[Paragraphs]) -> Paragraphs:
    """All rows with the columns that every item reads, ids of their own, and clusters over all."""
    first = parts[0]
    rows = Paragraphs(torch.cat([part.tokens for part in parts]), first.prefix_len, None, first.tokenizer)
    names = ("em", "nll", "group", "own_text")
    columns: dict[str, Any] = {name: np.concatenate([part.column(name) for part in parts]) for name in names}
    for name in ("count", "published_nll"):
        if any(part.has(name) for part in parts):
            columns[name] = np.concatenate(
                [part.column(name).astype(float) if part.has(name) else np.full(len(part), np.nan) for part in parts]
            )
    columns["cluster"] = cluster(rows, run=min(RUN, rows.tokens.shape[1]))
    return rows.with_columns(**columns)
