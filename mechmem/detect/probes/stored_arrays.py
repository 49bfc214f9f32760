"""Arrays of a detector's file, which anybody may have changed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mechmem.data.errors import InputError


def shaped(tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, shape: tuple[int | None, ...]) -> Tensor:
    """A tensor by name, if it has this kind and shape; None in a shape: any length.

    Raises:
        InputError: there is none, or another.
    """
    found = tensors.get(name)
    fits = found is not None and found.dtype == dtype and found.ndim == len(shape)
    if (
        found is None
        or not fits
        or any(need not in (None, have) for need, have in zip(shape, found.shape, strict=True))
    ):
        came = "none" if found is None else f"{found.dtype} of shape {list(found.shape)}"
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"'{name}' is {came}; need {dtype} of shape [{wanted}]")
    return found


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        InputError: names the tensor.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"'{name}' holds values that are not finite")
