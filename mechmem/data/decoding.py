"""Rows of token ids -> texts."""

from __future__ import annotations

from typing import Any

from jaxtyping import Integer


def decoded(tokenizer: Any, rows: Integer[Any, "row pos"] | list[list[int]], **options: Any) -> list[str]:
    """The text of each row; no text for no rows.

    `batch_decode([])` gives one empty text, since an empty list is also a row without tokens.

    Args:
        tokenizer: any of transformers.
        rows: ids, in an array or a tensor, or lists of any lengths.
        options: of `batch_decode`.
    """
    if not len(rows):
        return []
    return tokenizer.batch_decode(rows if isinstance(rows, list) else rows.tolist(), **options)
