"""Attention patterns as few bytes: what a query cannot see is left out, and a weight takes one byte."""

from __future__ import annotations

import base64
import zlib

import numpy as np
from jaxtyping import Float

from mechmem.show.embed import packed_bytes

# One byte holds 255 times the square root of a weight: off by at most 0.004 near 1 and 0.0002 near 0.003.
LEVELS = 255


def packed(pattern: Float[np.ndarray, "head query_pos key_pos"]) -> str:
    """The weights of keys that a query sees, row by row, one byte each, compressed, as text.

    Args:
        pattern: weights from 0 to 1.
    """
    queries, keys = np.tril_indices(pattern.shape[-1])
    seen = np.clip(np.nan_to_num(pattern[:, queries, keys].astype(np.float32)), 0, 1)
    return packed_bytes(np.rint(LEVELS * np.sqrt(seen)).astype(np.uint8).tobytes())


def unpacked(text: str, heads: int, length: int) -> Float[np.ndarray, "head query_pos key_pos"]:
    """What `packed` made, as the page reads it."""
    values = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(heads, -1)
    pattern = np.zeros((heads, length, length))
    pattern[(slice(None), *np.tril_indices(length))] = (values / LEVELS) ** 2
    return pattern
