"""JSON objects in files that anybody may have written or changed: bounded, and an object at the top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError

LARGEST = 64 << 20
# Ours have five levels. Python's own parser and writer give up, with a traceback, at about a thousand.
DEEPEST = 50


def read_object(path: Path, *, advice: str, largest: int = LARGEST) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: an existing file.
        advice: what to do if it cannot be used, for the end of the sentence.
        largest: bytes; a larger file is refused before it is read, since parsing takes many times its size.

    Raises:
        InputError: it cannot be read, is too large, is no JSON or none with an object on top, or is nested too deeply.
    """
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise InputError(f"{path}: has {path.stat().st_size:,} bytes; need at most {largest:,}: {advice}")
        found = json.loads(content.decode("utf-8"))
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply; {advice}") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}); {advice}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}; need a JSON object: {advice}")
    if _is_deeper(found, DEEPEST):
        raise InputError(f"{path}: is nested too deeply; {advice}")
    return found


def check_types(values: Any, types: Mapping[str, type | tuple[type, ...]], place: Path, *, advice: str) -> None:
    """Refuse what is no object, or one without one of these names or with a value of another type under it.

    Raises:
        InputError: the first such name.
    """
    if not isinstance(values, dict):
        raise InputError(f"{place}: got a {type(values).__name__}; need an object with {', '.join(types)}: {advice}")
    for name, kinds in types.items():
        if name not in values:
            raise InputError(f"{place}: has no '{name}'; {advice}")
        if not isinstance(values[name], kinds) or (isinstance(values[name], bool) and kinds is not bool):
            raise InputError(f"{place}: '{name}' is a {type(values[name]).__name__}; {advice}")


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, dict | list) for one in level)
