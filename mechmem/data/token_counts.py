"""How often each token id occurs in a corpus, as any array that a caller may have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.errors import InputError


def as_counts(counts: Any, vocabulary: int, known: int | None = None) -> Float[np.ndarray, " d_vocab"]:
    """Token counts as float64, [d_vocab].

    Args:
        counts: one number for each token id: a list, a NumPy array, a torch tensor on any device, a DataArray, a
            pandas Series, or what else NumPy makes an array of.
        vocabulary: how many token ids the model has.
        known: how many of them its tokenizer has, if it has fewer; counts may end there, and the others' are 0.

    Raises:
        InputError: not numbers, counts of another length or shape, or a count that is negative or not finite.
    """
    try:
        array = np.asarray(_on_cpu(counts) if isinstance(counts, Tensor) else counts)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"the values are {array.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"got counts as {type(counts).__name__} ({error}); need one number for each token id: "
            "mechmem.corpus_unigram_counts(corpus, d_vocab), or an array [d_vocab]"
        ) from error
    if known is not None and array.ndim == 1 and known <= len(array) < vocabulary:
        array = np.pad(array, (0, vocabulary - len(array)))
    if array.shape != (vocabulary,):
        raise InputError(
            f"got counts of shape {list(array.shape)} for a vocabulary of {vocabulary}; need one for each token id: "
            f"count with numpy.bincount(tokens, minlength={vocabulary})"
        )
    if not (np.isfinite(array) & (array >= 0)).all():
        raise InputError(
            "got a count that is negative or not finite; need how often each token id occurs in the corpus"
        )
    return array.astype(np.float64)


def _on_cpu(counts: Tensor) -> Tensor:
    """A tensor that NumPy can read: it knows neither bfloat16 nor sparse tensors."""
    dense = counts.detach() if counts.layout == torch.strided else counts.detach().to_dense()
    return (dense.float() if dense.dtype == torch.bfloat16 else dense).cpu()
