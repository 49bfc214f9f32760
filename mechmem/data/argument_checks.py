"""Arguments of the right kind, or an error that says how to get one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
