"""How often windows of tokens occur, and which paragraphs share them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64, Integer, UInt64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import rankdata

from mechmem.data.argument_checks import check_paragraphs
from mechmem.data.bounds import Count, checked
from mechmem.data.errors import InputError
from mechmem.data.hashes import BLOCK, row_hashes, window_hashes
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import batches
from mechmem.data.shards import Corpus
from mechmem.data.spill import Spill

_ROWS = 2**14


def occurrences(paragraphs: Paragraphs, documents: Sequence[Sequence[int]], repeats: Sequence[int]) -> np.ndarray:
    """How often each paragraph's tokens occur in a corpus, at any offset, [paragraph].

    Args:
        paragraphs: the windows to count.
        documents: token ids of the corpus' distinct documents; a window never crosses from one to the next.
        repeats: how often each document occurs.
    """
    length = paragraphs.tokens.shape[1]
    keys, inverse = np.unique(row_hashes(paragraphs.tokens.numpy()), return_inverse=True)
    totals = np.zeros(len(keys), dtype=np.int64)
    for tokens, repeat in zip(documents, repeats, strict=True):
        hashes = window_hashes(np.asarray(tokens, dtype=np.int64), length)
        places = np.searchsorted(keys, hashes).clip(max=len(keys) - 1)
        found = places[keys[places] == hashes]
        np.add.at(totals, found, repeat)
    return totals[inverse]


@checked
def cluster(paragraphs: Paragraphs, *, run: Count = 25) -> np.ndarray:
    """Near-duplicate clusters: rows that share a run of `run` tokens, at any offsets, have one label, int [paragraph].

    Sharing is followed transitively. Labels are numbered in the order of their first row.

    Raises:
        InputError: the run is not between 1 and the paragraphs' length.
    """
    check_paragraphs("paragraphs", paragraphs)
    with tempfile.TemporaryDirectory(prefix="mechmem-") as folder:
        clusters = Clusters(run, Path(folder) / "runs")
        clusters.add(paragraphs.tokens.numpy())
        return clusters.labels()


class Clusters:
    """Collect rows of tokens, any number of times, then label their near-duplicate clusters.

    The runs go to disk, so that memory holds a few numbers per row however many runs a row has.
    """

    def __init__(self, run: int, folder: Path, *, buckets: int = 256) -> None:
        """Begin without rows.

        Args:
            run: rows that share this many consecutive tokens are in one cluster.
            folder: for the runs; must hold none. Few runs stay in memory.
            buckets: a power of two; the runs of one bucket must fit in memory.
        """
        self.run, self.rows = run, 0
        self._spill = Spill(folder, buckets=buckets)

    def add(self, tokens: Integer[np.ndarray, "row pos"]) -> None:
        """Append rows.

        Raises:
            InputError: the run is not between 1 and the rows' length.
        """
        length = tokens.shape[1]
        if not 1 <= self.run <= length:
            raise InputError(
                f"got run {self.run}; need 1 to {length}, the paragraphs' length: give a shorter run of tokens"
            )
        starts = length - self.run + 1
        for chosen in batches(len(tokens), _ROWS):
            part = tokens[chosen]
            # Hashed as one text; windows that cross from one row to the next are then left out.
            hashes = np.zeros(part.size, dtype=np.uint64)
            hashes[: part.size - self.run + 1] = window_hashes(part.reshape(-1), self.run)
            keys = hashes.reshape(part.shape)[:, :starts].reshape(-1)
            self._spill.add(keys, np.repeat(np.arange(self.rows, self.rows + len(part), dtype=np.int64), starts))
            self.rows += len(part)

    def labels(self) -> Int64[np.ndarray, " row"]:
        """Each row's cluster; labels are numbered in the order of their first row."""
        labels = np.arange(self.rows, dtype=np.int64)
        edges: list[np.ndarray] = []
        pending = 0
        for keys, rows in self._spill.buckets():
            edges.append(_shared(keys, rows))
            pending += len(edges[-1])
            # Edges are followed when they are as many as the rows, so that memory holds a few numbers per row.
            if pending >= max(self.rows, BLOCK):
                labels, edges, pending = _joined(labels, edges), [], 0
        labels = _joined(labels, edges)
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        return (rankdata(first, "ordinal") - 1)[inverse].astype(np.int64)


def _shared(keys: UInt64[np.ndarray, " run"], rows: Int64[np.ndarray, " run"]) -> Int64[np.ndarray, "edge end"]:
    """Pairs of rows that join all rows of each key: every row with the key's first one."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    first = rows[np.flatnonzero(new)][np.cumsum(new) - 1]
    return np.unique(np.stack([first, rows], axis=1)[first != rows], axis=0)


def _joined(labels: Int64[np.ndarray, " row"], edges: list[np.ndarray]) -> Int64[np.ndarray, " row"]:
    """Labels after the edges between rows are followed."""
    if not sum(map(len, edges)):
        return labels
    ends = labels[np.concatenate(edges)]
    size = len(labels)
    graph = coo_matrix((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    return connected_components(graph, directed=False)[1][labels].astype(np.int64)


def unigram_counts(stream: Integer[np.ndarray, " pos"], d_vocab: int) -> Int[np.ndarray, " d_vocab"]:
    """How often every token id occurs in a text."""
    return np.bincount(stream, minlength=d_vocab)


@checked
def corpus_unigram_counts(corpus: Corpus, d_vocab: Count) -> Int[np.ndarray, " d_vocab"]:
    """How often every token id occurs in a corpus, a block of tokens at a time.

    Raises:
        InputError: the corpus holds an id that is not below d_vocab.
    """
    totals = np.zeros(d_vocab, dtype=np.int64)
    for number in range(len(corpus)):
        tokens = corpus.shard(number).tokens
        for chosen in batches(len(tokens), BLOCK):
            part = tokens[chosen]
            highest = int(part.max())
            if highest >= d_vocab:
                raise InputError(
                    f"got the token id {highest}; need ids below {d_vocab}, the model's vocabulary: "
                    "tokenize with the model's own tokenizer"
                )
            totals += unigram_counts(part, d_vocab)
    return totals
