"""Tensors by name from a safetensors file that may be damaged or of another program."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechmem.data.errors import InputError


def read_tensors(path: str | Path, writer: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its notes.

    Args:
        path: the file.
        writer: what writes such files, for the message.
        advice: what to do about a damaged one, for the end of the message.

    Raises:
        InputError: no such file, or one that is not whole.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; need one that {writer} wrote")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    # Kinds of numbers that torch does not have answer with nearly any exception.
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); {advice}") from error


def split_names(path: str | Path, names: Collection[str], kinds: Collection[str], writer: str) -> dict[str, list[str]]:
    """Key of each tensor -> its kind and parameter name; keys are written as KIND.NAME.

    Raises:
        InputError: a key of another kind.
    """
    split = {key: key.split(".", 1) for key in names}
    wrong = [key for key, parts in split.items() if len(parts) != 2 or parts[0] not in kinds]
    if wrong:
        raise InputError(
            f"{path}: holds the tensor {wrong[0]!r}, which is none of {', '.join(f'{kind}.NAME' for kind in kinds)}; "
            f"need a file that {writer} wrote"
        )
    return split


def check_indices(name: str, indices: Tensor, count: int | None = None) -> None:
    """Refuse indices that are not sorted, distinct and within a tensor.

    Args:
        name: the parameter that they are of.
        indices: flat, [chosen].
        count: how many weights the parameter has, if that is known.

    Raises:
        InputError: says which range they need.
    """
    if str(indices.dtype) != "torch.int64" or indices.ndim != 1:
        raise InputError(
            f"indices of '{name}' are {indices.dtype} with shape {list(indices.shape)}; need int64 [chosen]"
        )
    if not len(indices):
        return
    last = int(indices[-1])
    if int(indices[0]) < 0 or bool((indices.diff() <= 0).any()) or (count is not None and last >= count):
        end = "from 0 on" if count is None else f"within 0..{count - 1}"
        raise InputError(f"indices of '{name}' must be sorted, distinct and {end}: sort them first")
