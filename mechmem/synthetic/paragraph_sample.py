"""The paragraphs that ship with the bundled model: a sample of its training text that covers every range of counts."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from jaxtyping import Int

from mechmem.data.counts import occurrences
from mechmem.data.paragraphs import Paragraphs
from mechmem.synthetic.generator import Document, SyntheticCorpus

PREFIX_LEN = 50
LENGTH = 100
MOST_PER_CLUSTER = 12
# Lower edge of each range of true occurrence counts, and how many paragraphs at most are shipped from it. Fixed before
# the model was trained: the choice knows the counts and nothing of what the model does.
QUOTAS = {1: 500, 2: 400, 4: 350, 8: 350, 16: 350, 32: 350, 64: 350, 128: 10_000}


def choose_paragraphs(corpus: SyntheticCorpus, encoded: dict[str, list[int]], seed: int) -> Paragraphs:
    """Cut documents into windows and take a sample that covers every range of counts.

    1. Windows of 100 tokens at stride 100 from every document's start; equal windows once.
    2. Count each window's occurrences in the whole training text, at any offset.
    3. From each range of counts take what `QUOTAS` says, at random, at most 12 from a cluster in a range; of the
       unseen documents take every one's first window. Of equal rows the first stays.

    Args:
        corpus: the generated corpus.
        encoded: every document's text -> its token ids.
        seed: chooses the sample.
    """
    rng = np.random.default_rng(seed)
    trained = _windows(corpus.trained, encoded, "trained")
    documents = [encoded[document.text] for document in corpus.trained]
    counts = occurrences(trained, documents, [document.count for document in corpus.trained])
    chosen = _sample(counts, trained.column("cluster"), rng)
    unseen = [
        _windows(documents, encoded, label, first_only=True)
        for documents, label in ((corpus.unseen_variants, "unseen variant"), (corpus.unseen, "never seen"))
    ]
    paragraphs = _concatenate([trained.select(chosen), *unseen])
    _, first = np.unique(paragraphs.tokens.numpy(), axis=0, return_index=True)
    paragraphs = paragraphs.select(np.sort(first))
    totals: dict[int, int] = {}
    for document in corpus.trained:
        totals[document.cluster] = totals.get(document.cluster, 0) + document.count
    return paragraphs.with_columns(
        id=np.arange(len(paragraphs)),
        count=occurrences(paragraphs, documents, [document.count for document in corpus.trained]),
        cluster_count=[totals.get(label, 0) for label in paragraphs.column("cluster").tolist()],
    )


def _windows(
    documents: list[Document], encoded: dict[str, list[int]], seen: str, *, first_only: bool = False
) -> Paragraphs:
    rows: dict[tuple[int, ...], Document] = {}
    for document in documents:
        tokens = encoded[document.text]
        stop = LENGTH if first_only else len(tokens)
        for start in range(0, min(stop, len(tokens)) - LENGTH + 1, LENGTH):
            rows.setdefault(tuple(tokens[start : start + LENGTH]), document)
    table = {
        "source": [document.kind for document in rows.values()],
        "cluster": [document.cluster for document in rows.values()],
        "seen": [seen] * len(rows),
    }
    return Paragraphs(torch.tensor(list(rows)), PREFIX_LEN, datasets.Dataset.from_dict(table))


def _sample(
    counts: Int[np.ndarray, " paragraph"], clusters: Int[np.ndarray, " paragraph"], rng: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    edges = [*QUOTAS, np.iinfo(np.int64).max]
    chosen: list[int] = []
    for (low, quota), high in zip(QUOTAS.items(), edges[1:], strict=True):
        taken: dict[int, int] = {}
        members = rng.permutation(np.flatnonzero((counts >= low) & (counts < high)))
        kept = []
        for index in members.tolist():
            label = int(clusters[index])
            if taken.get(label, 0) < MOST_PER_CLUSTER and len(kept) < quota:
                taken[label] = taken.get(label, 0) + 1
                kept.append(index)
        chosen += kept
    return np.sort(np.asarray(chosen))


def _concatenate(parts: list[Paragraphs]) -> Paragraphs:
    tables = [part.table for part in parts if part.table is not None]
    return Paragraphs(torch.cat([part.tokens for part in parts]), PREFIX_LEN, datasets.concatenate_datasets(tables))
