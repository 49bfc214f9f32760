"""Arguments of the right kind, or an error that says how to get one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs


def check_paragraphs(name: str, value: Any) -> None:
    """Refuse anything but Paragraphs.

    Args:
        name: the argument, as the caller knows it.
        value: what was given.

    Raises:
        InputError: another kind of object; the message says how to get paragraphs.
    """
    if not isinstance(value, Paragraphs):
        raise InputError(
            f"got {type(value).__name__} as {name}; need Paragraphs: mechmem.Paragraphs(token ids, prefix_len=50), "
            "mechmem.read_corpus(file, model.tokenizer) or mechmem.Paragraphs.load(file)"
        )


def check_sets(name: str, value: Any) -> None:
    """Refuse anything but a mapping from names to Paragraphs.

    Raises:
        InputError: another kind of object, or something else than Paragraphs in it.
    """
    if not isinstance(value, Mapping):
        raise InputError(
            f"got {type(value).__name__} as {name}; need a dict from names to Paragraphs: {{'targets': paragraphs}}"
        )
    for key, paragraphs in value.items():
        check_paragraphs(f"{name}[{key!r}]", paragraphs)


def check_results(name: str, value: Any, variables: Iterable[str], maker: str) -> None:
    """Refuse anything but a Dataset with some variables.

    Args:
        name: the argument, as the caller knows it.
        value: what was given.
        variables: those that will be read.
        maker: the public function that returns such a Dataset.

    Raises:
        InputError: another kind of object, or a Dataset without one of the variables.
    """
    if not isinstance(value, xr.Dataset):
        raise InputError(f"got {type(value).__name__} as {name}; need the Dataset that mechmem.{maker} returned")
    lacking = [variable for variable in variables if variable not in value]
    if lacking:
        raise InputError(
            f"got {name} without {', '.join(lacking)}; need the whole Dataset that mechmem.{maker} returned"
        )
