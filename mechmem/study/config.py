"""Settings from a file, from `NAME=VALUE` and from an earlier study; and the defaults as a file with comments."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mechmem.data.bounds import annotations_of, check_bounds
from mechmem.data.errors import InputError
from mechmem.study.settings import StudySettings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)
else:
    Settings = TypeVar("Settings")


def read_config(path: str | Path) -> dict[str, Any]:
    """The settings of a TOML file, or of an earlier study's `study.json`.

    Raises:
        InputError: no such file, not readable, or not a table of settings.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; need a TOML file of settings (`mechmem config` prints one) or study.json"
        )
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise InputError(f"{path}: not readable as {kind} ({error}); correct the line that it names") from error
    # A study's file holds more than its settings.
    values = values.get("settings", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}; need a table of settings")
    return values


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["pairs=24", "model=gpt2"]` -> values; what is not a number, list or truth value is text.

    Raises:
        InputError: something without an equals sign.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not name:
            raise InputError(f"got {assignment!r}; need NAME=VALUE, such as pairs=24")
        try:
            values[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = None if text.lower() == "none" else text
    return values


def apply_settings(base: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings, a dataclass, with other values; each is checked against its field.

    Raises:
        InputError: an unknown name, a value of another type, or one that is out of range.
    """
    known = annotations_of(type(base))
    checked = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"need one of {', '.join(known)}"
            raise InputError(f"unknown setting {name!r}; {hint}")
        checked[name] = check_bounds(name, value, known[name])
    return replace(base, **checked)


def described(settings: Any) -> dict[str, Any]:
    """The settings as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def different_settings(was: StudySettings, now: StudySettings) -> str:
    """What differs, in words; empty if nothing does."""
    old, new = described(was), described(now)
    return ", ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in new if new[name] != old[name])


def config_text(settings: StudySettings) -> str:
    """The settings as TOML, each below a comment with its meaning."""
    return "\n".join(["# Settings of a study. Use it with: mechmem run --config FILE", "", *setting_lines(settings)])


def setting_lines(settings: Any) -> list[str]:
    """The fields of settings as lines of TOML, each below a comment with its meaning; what is not set is a comment."""
    meanings, lines = _meanings(type(settings)), []
    for field in fields(settings):
        value = getattr(settings, field.name)
        lines += [f"# {field.name}: {meanings[field.name]}"]
        lines += [f"# {field.name} = (not set)" if value is None else f"{field.name} = {_toml(value)}", ""]
    return lines


def _meanings(kind: type) -> dict[str, str]:
    """Each setting's line of the class's docstring."""
    body = (kind.__doc__ or "").partition("Attributes:")[2].partition("Raises:")[0]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", body, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    # JSON's strings and numbers are TOML's, but for its escapes of letters beyond 16 bits.
    return json.dumps(value, ensure_ascii=False)
