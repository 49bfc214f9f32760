"""Choices by name: one of the values that a `Literal` lists."""

from __future__ import annotations

import reprlib
from collections.abc import Hashable, Iterable
from typing import Any, get_args

from mechmem.data.errors import InputError


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse a value that is not among the choices.

    Args:
        name: the argument, as the caller knows it.
        value: what the caller gave.
        choices: a `Literal`, or the values themselves.

    Raises:
        InputError: another value; the sentence lists all choices.
    """
    known = list(get_args(choices) or choices) if not isinstance(choices, str) else [choices]
    # Arrays compare element by element, and their text fills pages.
    if not isinstance(value, Hashable) or isinstance(value, bool) or value not in known:
        raise InputError(f"got {name} {shown(value)}; need one of {', '.join(map(str, known))}")


def shown(value: Any) -> str:
    """A value for a message: short, whatever it is; the kind of what has a long text."""
    plain = isinstance(value, str | int | float | tuple | list | slice | None)
    return reprlib.repr(value) if plain else f"a {type(value).__name__}"


def check_used(method: str, used: Iterable[str], given: dict[str, Any]) -> None:
    """Refuse options that a method does not use.

    Args:
        method: whose options.
        used: names of options that it uses.
        given: option -> its value, of those that the caller set (None: not set).

    Raises:
        InputError: an option was set that the method would ignore.
    """
    ignored = [name for name, value in given.items() if value is not None and name not in set(used)]
    if ignored:
        raise InputError(
            f"method '{method}' does not use {', '.join(ignored)}; leave {'it' if len(ignored) == 1 else 'them'} out"
        )
