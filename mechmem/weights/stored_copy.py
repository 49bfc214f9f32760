"""Copies of weights that are written often and read seldom: on disk where they are large."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

# Smaller copies stay in memory, bytes.
LARGE = 2**26


def copied(tensors: Sequence[Tensor]) -> Iterable[Tensor]:
    """A copy of tensors that can be gone through any number of times, to the bit.

    Large ones go to a file without a name in the folder for temporary files, and are read one tensor at a time; where
    it has no room they stay in memory.
    """
    if sum(tensor.nbytes for tensor in tensors) >= LARGE:
        try:
            return _Stored(tensors)
        except OSError:
            pass
    return [tensor.detach().clone() for tensor in tensors]


class _Stored:
    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        # It has no name: it is gone when it is closed, or when the process ends.
        self._file = tempfile.TemporaryFile(prefix="mechmem-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        for tensor in tensors:
            self._file.write(_bytes(tensor.detach().cpu().contiguous()))
        self._file.flush()

    def __iter__(self) -> Iterator[Tensor]:
        self._file.seek(0)
        for shape, dtype, device in self._like:
            tensor = torch.empty(shape, dtype=dtype)
            assert self._file.readinto(_bytes(tensor)) == tensor.nbytes
            yield tensor.to(device)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data
