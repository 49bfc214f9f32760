"""Ids of paragraphs, and results put into the order of some paragraphs by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import xarray as xr
from jaxtyping import Int64, Integer

from mechmem.data.errors import InputError
from mechmem.data.hashes import MOST_IDS, row_hashes

if TYPE_CHECKING:
    from mechmem.data.paragraphs import Paragraphs

Result = TypeVar("Result", xr.Dataset, xr.DataArray)


def content_ids(tokens: Integer[np.ndarray, "paragraph pos"]) -> Int64[np.ndarray, " paragraph"]:
    """An id for each row, made of its tokens, so that equal paragraphs of two sources have one id; never negative.

    Rows that are equal get different ids, in the order in which they stand.
    """
    hashes = row_hashes(tokens % MOST_IDS) if len(tokens) else np.zeros(0, dtype=np.uint64)
    _, group = np.unique(hashes, return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.r_[0, np.flatnonzero(np.diff(group[order])) + 1] if len(order) else np.zeros(0, dtype=np.int64)
    turn = np.empty(len(order), dtype=np.uint64)
    turn[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
    return ((hashes + turn * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(1)).astype(np.int64)


def check_unique(ids: np.ndarray) -> None:
    """Refuse ids that do not tell paragraphs apart.

    Raises:
        InputError: ids that are neither integers nor text, or one that occurs twice.
    """
    text = ids.dtype.kind in "UT" or (ids.dtype == object and all(isinstance(value, str) for value in ids.flat))
    if ids.ndim != 1 or not (text or ids.dtype.kind in "iu"):
        raise InputError(
            f"got ids of {ids.dtype} with shape {list(ids.shape)}; need an integer or a text for each paragraph: give "
            "others with paragraphs.with_columns(id=...)"
        )
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise InputError(
            f"the id {values[counts.argmax()]} occurs {counts.max()} times; ids must be unique: drop the repeated "
            "paragraphs, or give other ids with paragraphs.with_columns(id=...)"
        )


def aligned(result: Result, paragraphs: Paragraphs) -> Result:
    """A result's rows for these paragraphs, in their order, found by id.

    Args:
        result: with a coordinate `paragraph` of ids, as every function here gives.
        paragraphs: some or all of those that the result is about, in any order.

    Raises:
        InputError: no dimension or coordinate `paragraph`, or a paragraph that the result does not know.
    """
    if "paragraph" not in result.dims or "paragraph" not in result.coords:
        raise InputError(
            f"got a result with dimensions {list(result.dims)} and no ids; need a coordinate 'paragraph' of ids, as "
            "mechmem.score gives"
        )
    known = result.indexes["paragraph"]
    check_unique(np.asarray(known))
    rows = known.get_indexer(paragraphs.ids)
    if (rows < 0).any():
        missing = np.flatnonzero(rows < 0)
        raise InputError(
            f"{len(missing)} of {len(paragraphs)} paragraphs are not in this result (the first has the id "
            f"{paragraphs.ids[missing[0]]}); need a result about these paragraphs: compute it for them"
        )
    return result.isel(paragraph=rows)
