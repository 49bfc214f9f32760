"""Token ids and rows of paragraphs, from whatever holds integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from mechmem.data.errors import InputError

# Files of paragraphs hold ids in 32 bits.
LARGEST_ID = 2**31 - 1


def as_token_ids(values: Any) -> Tensor:
    """Token ids as int64, [paragraph, pos]; a tensor stays on its device.

    Args:
        values: a tensor of any kind of integers, sparse ones included, or whatever NumPy makes an array of.

    Raises:
        InputError: no integers in two dimensions, or an id that is negative or too large.
    """
    tokens = _of_tensor(values) if isinstance(values, Tensor) else _of_array(values)
    if tokens.ndim != 2:
        raise InputError(
            f"got paragraphs of {tokens.dtype} with shape {list(tokens.shape)}; need integer ids [paragraph, pos]: "
            "give one row of token ids for each paragraph, all of one length"
        )
    if tokens.numel() and int(tokens.min()) < 0:
        raise InputError(f"got the token id {int(tokens.min())}; ids start at 0: remove padding first")
    if tokens.numel() and int(tokens.max()) > LARGEST_ID:
        raise InputError(f"got the token id {int(tokens.max())}; need ids of at most {LARGEST_ID}")
    return tokens


def as_rows(chosen: Any, count: int) -> Int64[np.ndarray, " chosen"]:
    """Row numbers from a boolean mask [paragraph] or from integers [chosen], each row at most once.

    Raises:
        InputError: a mask of another length, no integers, a row out of range, or one that is chosen twice.
    """
    try:
        index = np.asarray(chosen.detach().cpu() if isinstance(chosen, Tensor) else chosen)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"got {type(chosen).__name__} as rows ({error}); need a mask or integers [chosen]") from error
    if index.dtype == bool:
        if index.shape != (count,):
            raise InputError(
                f"got a mask of shape {list(index.shape)} for {count} paragraphs; need one value for each row"
            )
        return np.flatnonzero(index)
    if index.shape == (0,):
        return np.zeros(0, dtype=np.int64)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise InputError(f"got rows of {index.dtype} with shape {list(index.shape)}; need a mask or integers [chosen]")
    if index.min() < -count or index.max() >= count:
        raise InputError(f"got rows {index.min()} to {index.max()} of {count} paragraphs; need rows below {count}")
    rows = index.astype(np.int64)
    rows = np.where(rows < 0, rows + count, rows)
    if len(np.unique(rows)) < len(rows):
        raise InputError("got a row twice; need each paragraph at most once, as ids are unique")
    return rows


def _of_tensor(tokens: Tensor) -> Tensor:
    if tokens.is_meta:
        raise InputError(
            f"got tokens on the device 'meta' with shape {list(tokens.shape)}, which hold no numbers; need integer ids "
            "[paragraph, pos]: make them on the device 'cpu'"
        )
    if tokens.is_nested:
        raise InputError("got rows of unequal length; need token ids [paragraph, pos], all rows of one length")
    if tokens.is_quantized or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InputError(
            f"got paragraphs of {tokens.dtype} with shape {list(tokens.shape)}; need integer ids [paragraph, pos]: "
            "give one row of token ids for each paragraph, all of one length"
        )
    tokens = tokens.detach() if tokens.layout == torch.strided else tokens.detach().to_dense()
    return tokens.long()


def _of_array(values: Any) -> Tensor:
    try:
        array = np.ma.asarray(values) if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"got rows of unequal length, or of something else than ids ({error}); need token ids [paragraph, pos], "
            "all rows of one length"
        ) from error
    if np.ma.is_masked(array):
        raise InputError("got tokens of which some are masked; need an id at each position: cut the rows first")
    if array.dtype.kind not in "iu":
        raise InputError(
            f"got {type(values).__name__} of {array.dtype} as tokens; need integer ids [paragraph, pos]: "
            "read text with mechmem.read_corpus(file, model.tokenizer)"
        )
    if array.dtype.kind == "u" and array.size and int(array.max()) > LARGEST_ID:
        raise InputError(f"got the token id {array.max()}; need ids of at most {LARGEST_ID}")
    return torch.from_numpy(np.ascontiguousarray(array).astype(np.int64))
