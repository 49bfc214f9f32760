"""Hashes of windows of tokens: equal windows have one hash, whatever their offset."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from jaxtyping import Integer, UInt64

from mechmem.data.errors import InputError

# Any odd multiplier is invertible modulo 2 ** 64; tokens are first sent through a random table, so that no regular
# sequence of ids meets the weak spots of a polynomial hash.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
# Positions worked on at once: a document may be longer than memory.
BLOCK = 2**20
# The table of random numbers has a row for each id: a stray id must not ask for all memory.
MOST_IDS = 2**24


def window_hashes(tokens: Integer[np.ndarray, " pos"], length: int) -> UInt64[np.ndarray, " window"]:
    """A 64-bit hash of every window of `length` tokens, at every offset, in time linear in the text.

    With prefix sums P of t_k B^k modulo 2^64, the window at i has hash (P_{i+n} - P_i) B^{-i}, which does not depend on
    the offset. Two different windows among a million share a hash with probability about 3e-8.
    """
    if len(tokens) < length:
        return np.zeros(0, dtype=np.uint64)
    terms = _values(tokens)
    terms *= _powers(_BASE, len(tokens))
    prefix = np.zeros(len(tokens) + 1, dtype=np.uint64)
    np.cumsum(terms, out=prefix[1:])
    return (prefix[length:] - prefix[:-length]) * _powers(_INVERSE, len(tokens) - length + 1)


def row_hashes(tokens: Integer[np.ndarray, "row pos"]) -> UInt64[np.ndarray, " row"]:
    """The hash that `window_hashes` gives each whole row, [row]."""
    return _values(tokens) @ _powers(_BASE, tokens.shape[1])


def blocks(tokens: Integer[np.ndarray, " pos"], length: int) -> Iterator[tuple[int, UInt64[np.ndarray, " window"]]]:
    """Yield (first offset, hashes of the windows there) block by block; together they are `window_hashes`."""
    for first in range(0, len(tokens) - length + 1, BLOCK):
        yield first, window_hashes(np.asarray(tokens[first : first + BLOCK + length - 1]), length)


def _values(tokens: np.ndarray) -> np.ndarray:
    """Each id's random number, of the tokens' shape."""
    highest = int(tokens.max(initial=0))
    if highest >= MOST_IDS:
        raise InputError(f"got the token id {highest}; need ids below {MOST_IDS}: no vocabulary is so large")
    # The stream of the table is the same however long it is, so tables of two sizes agree on their common part.
    return _table(1 << max(16, highest.bit_length()))[tokens]


@cache
def _table(size: int) -> UInt64[np.ndarray, " id"]:
    return np.random.default_rng(0x6D6D).integers(0, 2**64, size=size, dtype=np.uint64)


def _powers(base: int, count: int) -> UInt64[np.ndarray, " power"]:
    return _many_powers(base, 1 << max(10, (count - 1).bit_length()))[:count]


@cache
def _many_powers(base: int, count: int) -> UInt64[np.ndarray, " power"]:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
