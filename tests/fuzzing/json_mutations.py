"""Damage of JSON that stays JSON, mostly: other types, huge numbers, dropped and doubled keys, depth, length."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Path = tuple[Any, ...]
# Texts that stand for what `json.dumps` cannot write; put in afterwards.
DEEP, WIDE, ENDLESS = "@deep@", "@wide@", "@digits@"
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, -7, 3.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf"),
    2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**6, 10**9, 10**12, 10**30, -(10**12),
    "", " ", "0", "1", "-1", "none", "NaN", "true", "a", "\x00", "\ud800", "é", "../..", "/", "~", "x" * 300,
    "model.safetensors", "gelu", "global", "original", "float16", "int8", "https://localhost:1/x", "a/b", "a/b/c",
    [], {}, [[]], [{}], {"a": 1}, [None], [0], [1, 2, 3], ["a"], [[["global"], 10**9]], DEEP, WIDE, ENDLESS,
)  # fmt: skip


def mutate_json(data: bytes, rng: random.Random, *, extra: tuple[tuple[str, Any], ...] = ()) -> bytes:
    """One change of a JSON text; a text that is not JSON is returned as it is.

    Args:
        data: JSON.
        rng: decides the change.
        extra: keys and values of the format that are not in the file, to be added at the top.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if extra and rng.random() < 0.25 and isinstance(value, dict):
        key, new = rng.choice(extra)
        value[key] = new if rng.random() < 0.7 else rng.choice(VALUES)
    else:
        value = rng.choice(CHANGES)(value, rng)
    return _written(value, rng)


def replace_value(value: Any, rng: random.Random) -> Any:
    """A value of another type or size."""
    return _put(value, _some_path(value, rng), lambda _: copy.deepcopy(rng.choice(VALUES)))


def change_number(value: Any, rng: random.Random) -> Any:
    """A number that is nearly right: one more, double, negative, as a text, as a float."""
    paths = [path for path in _paths(value) if _is_number(_get(value, path))]
    if not paths:
        return replace_value(value, rng)
    change = rng.choice(
        (lambda n: n + 1, lambda n: n - 1, lambda n: n * 2, lambda n: -n, str, lambda n: n * 10**6, lambda n: [n])
        + (lambda n: n / 2, lambda n: n + 0.5, float)
    )
    return _put(value, rng.choice(paths), change)


def remove(value: Any, rng: random.Random) -> Any:
    """A key or an item is missing."""
    path = _some_path(value, rng)
    if path:
        parent = _get(value, path[:-1])
        del parent[path[-1]]
    return value


def rename(value: Any, rng: random.Random) -> Any:
    """A key has another name."""
    paths = [path for path in _paths(value) if path and isinstance(path[-1], str)]
    if paths:
        path = rng.choice(paths)
        parent = _get(value, path[:-1])
        parent[rng.choice(("", "a", path[-1] + " ", path[-1].upper(), "\x00"))] = parent.pop(path[-1])
    return value


def exchange(value: Any, rng: random.Random) -> Any:
    """Two values change places."""
    first, second = _some_path(value, rng), _some_path(value, rng)
    if first[: len(second)] == second or second[: len(first)] == first:
        return value
    a, b = _get(value, first), _get(value, second)
    return _put(_put(value, first, lambda _: b), second, lambda _: a)


def lengthen(value: Any, rng: random.Random) -> Any:
    """A list or a text stands there many times."""
    paths = [path for path in _paths(value) if isinstance(_get(value, path), list | str)]
    if not paths:
        return value
    path = rng.choice(paths)
    times = rng.choice((2, 3, 1000, 100_000))
    times = max(1, min(times, 500_000 // max(1, len(json.dumps(_get(value, path))))))
    return _put(value, path, lambda old: old * times)


def wrap(value: Any, rng: random.Random) -> Any:
    """A value in a list or an object."""
    return _put(value, _some_path(value, rng), lambda old: rng.choice(([old], {"a": old}, [old, old])))


CHANGES: tuple[Callable[[Any, random.Random], Any], ...] = (
    replace_value, replace_value, replace_value, change_number, change_number, remove, rename, exchange, lengthen, wrap,
)  # fmt: skip


def _written(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8, indent=rng.choice((None, None, 2)))
    depth = rng.choice((20, 500, 100_000))
    for mark, new in (
        (DEEP, "[" * depth + "]" * depth),
        (WIDE, "[" + "0," * 200_000 + "0]"),
        (ENDLESS, "9" * rng.choice((400, 5000, 100_000))),
    ):
        text = text.replace(f'"{mark}"', new)
    if rng.random() < 0.05 and text.startswith("{") and '": ' in text:
        # The first key twice: readers keep the last one.
        first = text[1 : text.index('": ') + 3]
        text = f"{{{first}0, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def _paths(value: Any, path: Path = ()) -> list[Path]:
    found = [path]
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for number, (key, child) in enumerate(children):
        # A vocabulary of thousands is like its first entries.
        if number < 50:
            found += _paths(child, (*path, key))
    return found


def _some_path(value: Any, rng: random.Random) -> Path:
    """Each level is as likely as the next: a path picked from all would nearly always be a leaf of the largest list."""
    path: Path = ()
    while True:
        here = _get(value, path)
        keys = list(here) if isinstance(here, dict) else list(range(len(here))) if isinstance(here, list) else []
        if not keys or (path and rng.random() < 0.3) or rng.random() < 0.03:
            return path
        path = (*path, rng.choice(keys))


def _get(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def _put(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    parent = _get(value, path[:-1])
    try:
        parent[path[-1]] = change(parent[path[-1]])
    except OverflowError:
        parent[path[-1]] = 10**400
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
