"""What a scan of windows at a stride does not see of the spans that document mode finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from mechmem.data.errors import InputError


def missed_by_stride(spans: pa.Table, stride: int, *, continuation_len: int = 50) -> dict[str, Any]:
    """What a scan of windows at this stride, from each document's start, does not see of some spans.

    Returns:
        `spans` and `spans_missed` (no window of theirs is on the grid), `tokens` (reproduced by any window) and
        `tokens_missed` (by none on the grid), `windows` (memorized, at any offset) and `windows_missed` (off the grid).

    Raises:
        InputError: a stride below 1.
    """
    if stride < 1:
        raise InputError(f"got stride {stride}; need 1 or more tokens from window to window")
    result = {
        "spans": len(spans),
        "spans_missed": 0,
        "tokens": 0,
        "tokens_missed": 0,
        "windows": 0,
        "windows_missed": 0,
    }
    for row in spans["windows"]:
        windows = row.values.to_numpy()
        seen = windows[windows % stride == 0]
        tokens, tokens_seen = (_covered(some, continuation_len) for some in (windows, seen))
        result["spans_missed"] += not len(seen)
        result["tokens"] += tokens
        result["tokens_missed"] += tokens - tokens_seen
        result["windows"] += len(windows)
        result["windows_missed"] += len(windows) - len(seen)
    return result


def _covered(windows: Int[np.ndarray, " window"], length: int) -> int:
    """How many tokens some continuations of this length hold together; their windows are in order."""
    return length + int(np.minimum(np.diff(windows), length).sum()) if len(windows) else 0
