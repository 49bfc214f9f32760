"""Work in a folder is resumed only with the settings that it was started with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechmem.data.errors import InputError


def refuse_other_settings(place: str | Path, was: Mapping[str, Any], now: Mapping[str, Any], *, advice: str) -> None:
    """Refuse to resume, or to use as a result, work that was started with other settings.

    Args:
        place: the file or folder that holds the work.
        was: setting -> value, as stored there (from JSON). Values that are mappings are compared inside.
        now: the same of this call; tuples and lists count as equal.
        advice: what to do, for the end of the sentence.

    Raises:
        InputError: they differ; the sentence names every setting that does, with both values.
    """
    before, after = (_flat(json.loads(json.dumps(dict(values), default=str))) for values in (was, now))
    different = [name for name in dict.fromkeys([*after, *before]) if before.get(name) != after.get(name)]
    if different:
        changes = ", ".join(f"{name} was {before.get(name)!r}, now {after.get(name)!r}" for name in different)
        raise InputError(f"{place}: was begun with other settings ({changes}); {advice}")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by their last name, or by the whole path where two have one name."""
    leaves = dict(_leaves(values, ()))
    last = [path[-1] for path in leaves]
    return {path[-1] if last.count(path[-1]) == 1 else ".".join(path): value for path, value in leaves.items()}


def _leaves(values: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for name, value in values.items():
        here = (*path, str(name))
        found += _leaves(value, here) if isinstance(value, dict) and value else [(here, value)]
    return found
