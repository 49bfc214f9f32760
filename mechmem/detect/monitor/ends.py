"""Tokens that end a text, in the forms in which libraries give them."""

from __future__ import annotations

from typing import Any


def as_ends(value: Any) -> tuple[int, ...]:
    """One id, several or None -> ids."""
    if value is None:
        return ()
    return tuple(int(end) for end in (value if hasattr(value, "__iter__") else [value]))
