"""How often windows of tokens occur, and which paragraphs share them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

# Any odd multiplier is invertible modulo 2 ** 64; tokens are first sent through a random table, so that no regular
# sequence of ids meets the weak spots of a polynomial hash.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)


def window_hashes(tokens: Int[np.ndarray, " pos"], length: int) -> UInt64[np.ndarray, " window"]:
    """A 64-bit hash of every window of `length` tokens, at every offset, in time linear in the text.

    With prefix sums P of t_k B^k modulo 2^64, the window at i has hash (P_{i+n} - P_i) B^{-i}, which does not depend on
    where it stands. Two different windows among a million share a hash with probability about 3e-8.
    """
    if len(tokens) < length:
        return np.zeros(0, dtype=np.uint64)
    table = np.random.default_rng(0x6D6D).integers(0, 2**64, size=int(tokens.max()) + 1, dtype=np.uint64)
    powers = _powers(_BASE, len(tokens))
    prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(table[tokens] * powers, dtype=np.uint64)])
    return (prefix[length:] - prefix[:-length]) * _powers(_INVERSE, len(tokens))[: len(tokens) - length + 1]


def _powers(base: int, count: int) -> UInt64[np.ndarray, " power"]:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def occurrences(paragraphs: Paragraphs, documents: Sequence[Sequence[int]], repeats: Sequence[int]) -> np.ndarray:
    """How often each paragraph's tokens stand in a corpus, at any offset, [paragraph].

    Args:
        paragraphs: the windows to look for.
        documents: token ids of the corpus' distinct documents; a window never crosses from one to the next.
        repeats: how often each document occurs.
    """
    length = paragraphs.tokens.shape[1]
    wanted = _row_hashes(paragraphs.tokens.numpy(), length)[:, 0]
    keys, inverse = np.unique(wanted, return_inverse=True)
    totals = np.zeros(len(keys), dtype=np.int64)
    for tokens, repeat in zip(documents, repeats, strict=True):
        hashes = window_hashes(np.asarray(tokens, dtype=np.int64), length)
        places = np.searchsorted(keys, hashes).clip(max=len(keys) - 1)
        found = places[keys[places] == hashes]
        np.add.at(totals, found, repeat)
    return totals[inverse]


def cluster(paragraphs: Paragraphs, *, run: int = 25) -> np.ndarray:
    """Near-duplicate clusters: rows that share a run of `run` tokens, at any offsets, have one label, int [paragraph].

    Sharing is followed transitively. Labels are numbered in the order of their first row.

    Raises:
        InputError: the run is not between 1 and the paragraphs' length.
    """
    rows, length = paragraphs.tokens.shape
    if not 1 <= run <= length:
        raise InputError(f"run is {run}; wanted 1 to {length}, the paragraphs' length: give a shorter run of tokens")
    if rows == 0:
        return np.zeros(0, dtype=np.int64)
    hashes = _row_hashes(paragraphs.tokens.numpy(), run)
    _, columns = np.unique(hashes, return_inverse=True)
    columns = columns.reshape(-1)
    owners = np.repeat(np.arange(rows), hashes.shape[1])
    # Rows and windows are the two sides of a graph: rows joined through a window are one component.
    size = rows + int(columns.max()) + 1
    graph = coo_matrix((np.ones(len(owners), dtype=np.int8), (owners, rows + columns)), shape=(size, size))
    labels = connected_components(graph, directed=False)[1][:rows]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _row_hashes(tokens: Int[np.ndarray, "paragraph pos"], length: int) -> UInt64[np.ndarray, "paragraph window"]:
    # The table of `window_hashes` is longer for larger ids but agrees on their common part: the stream is the same.
    return np.stack([window_hashes(row, length) for row in tokens])


def unigram_counts(stream: Int[np.ndarray, " pos"], d_vocab: int) -> Int[np.ndarray, " d_vocab"]:
    """How often every token id occurs in a text."""
    return np.bincount(stream, minlength=d_vocab)
