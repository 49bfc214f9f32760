"""`.npy` files of token ids, memory-mapped: whatever their head says, nothing is read that is not there."""

from __future__ import annotations

import tokenize
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from mechmem.data.errors import InputError

# What `numpy.save` and `numpy.lib.format` write first.
MAGIC = b"\x93NUMPY"


def mapped_ids(path: Path, types: tuple[str, ...], need: str) -> Integer[np.ndarray, "sequence pos"]:
    """Open a file of ids in two axes.

    Args:
        path: the file.
        types: names of the types that it may have, in any byte order.
        need: the end of the error's sentence.

    Raises:
        InputError: another kind of file, a damaged one, or an array of another type or shape.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
        if start != MAGIC:
            raise ValueError("an .npz archive" if start.startswith(b"PK") else f"it begins with {start!r}")
        # The head is a Python literal: a damaged one fails in as many ways as there are literals.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {need}") from error
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError, MemoryError, tokenize.TokenError) as error:
        raise InputError(f"{path}: not an array of numbers, or rows of unequal length ({error}); {need}") from error
    except (RecursionError, AttributeError, KeyError, IndexError) as error:
        raise InputError(f"{path}: its head is damaged ({type(error).__name__}); {need}") from error
    if array.ndim != 2 or array.dtype.name not in types:
        raise InputError(f"{path}: got {array.dtype} of shape {list(array.shape)}; {need}")
    if len(array) and not array.shape[1]:
        raise InputError(f"{path}: got {len(array)} rows of 0 tokens; {need}")
    return array
