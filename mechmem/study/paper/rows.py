"""What an item of the study found: rows of published and measured numbers, traps with what each changes, and arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.stored_json import check_types

# "as published": the study's recipe with its slips; "corrected": what its text says or means.
Reading = Literal["as published", "corrected"]
REPRODUCED, DIFFERS, CANNOT_BE_SAID = "reproduced", "differs", "cannot be said"
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_ROW: dict[str, Any] = {
    "item": str,
    "quantity": str,
    "reading": str,
    "measured": _MAYBE,
    "low": _MAYBE,
    "high": _MAYBE,
    "published": _MAYBE,
    "units": str,
    "note": str,
}
_TRAP: dict[str, Any] = {
    "number": int,
    "title": str,
    "slipped": _MAYBE,
    "corrected": _MAYBE,
    "units": str,
    "change": str,
}
ADVICE = "remove it and run the same command again"


@dataclass(frozen=True)
class Row:
    """One number of the study, in one reading.

    Attributes:
        item: which part of the study, a key of `items.ITEMS`.
        quantity: what is measured, in words.
        reading: see `Reading`.
        measured: the value here; NaN where there is none.
        low: lower end of its 95 % interval, by cluster; None: there is no interval.
        high: its upper end.
        published: the study's value; None: it gives none.
        units: of all four.
        note: what the reader must know, a sentence.
    """

    item: str
    quantity: str
    reading: Reading
    measured: float
    low: float | None
    high: float | None
    published: float | None
    units: str
    note: str = ""


@dataclass(frozen=True)
class Trap:
    """One of the fourteen places where the public code departs from the paper or misleads.

    Attributes:
        number: 1 to 14.
        title: the trap, a few words.
        slipped: what the slip gives.
        corrected: what the correction gives, in the same units.
        units: of both.
        change: how much it changes, a plain sentence.
    """

    number: int
    title: str
    slipped: float
    corrected: float
    units: str
    change: str


@dataclass(frozen=True)
class Finding:
    """What an item gives: rows and traps for the tables, and the arrays that its figures are drawn from."""

    rows: tuple[Row, ...]
    data: xr.Dataset
    traps: tuple[Trap, ...] = ()


def verdict(row: Row, applies: bool) -> str:
    """Whether a published number holds here: "reproduced", "differs", "cannot be said", or "" if there is none.

    Reproduced: the published value lies in the interval, or is the measured value to the published number of decimals.
    It cannot be said without an interval, without a measured value, or where published numbers do not apply.

    Args:
        row: with the interval.
        applies: whether the model is the study's own.
    """
    if row.published is None:
        return ""
    if not applies or not math.isfinite(row.measured):
        return CANNOT_BE_SAID
    decimals = max(0, -int(Decimal(repr(float(row.published))).normalize().as_tuple().exponent))
    if abs(row.measured - row.published) <= 0.5 * 10.0**-decimals:
        return REPRODUCED
    if row.low is None or row.high is None or not (math.isfinite(row.low) and math.isfinite(row.high)):
        return CANNOT_BE_SAID
    return REPRODUCED if row.low <= row.published <= row.high else DIFFERS


def as_json(rows: tuple[Row, ...], traps: tuple[Trap, ...]) -> dict[str, Any]:
    """Rows and traps as JSON holds them; what is not finite becomes null."""
    return {
        "rows": [{name: _storable(value) for name, value in asdict(row).items()} for row in rows],
        "traps": [{name: _storable(value) for name, value in asdict(trap).items()} for trap in traps],
    }


def from_json(found: Mapping[str, Any], place: Path) -> tuple[tuple[Row, ...], tuple[Trap, ...]]:
    """Rows and traps that `as_json` made.

    Raises:
        InputError: something is missing, of another type, or a reading that there is not.
    """
    check_types(found, {"rows": list, "traps": list}, place, advice=ADVICE)
    for entry in found["rows"]:
        check_types(entry, _ROW, place, advice=ADVICE)
        if entry["reading"] not in get_args(Reading):
            raise InputError(f"{place}: got the reading {entry['reading']!r:.40}; {ADVICE}")
    rows = [_made(Row, entry, _ROW, place) for entry in found["rows"]]
    return tuple(rows), tuple(_made(Trap, entry, _TRAP, place) for entry in found["traps"])


def _made(kind: Any, entry: Any, types: Mapping[str, Any], place: Path) -> Any:
    check_types(entry, types, place, advice=ADVICE)
    values = {name: entry[name] for name in types}
    for name, known in types.items():
        if known is _MAYBE and values[name] is not None:
            values[name] = float(values[name])
        elif name in ("measured", "slipped", "corrected") and values[name] is None:
            values[name] = math.nan
    return kind(**values)


def _storable(value: Any) -> Any:
    if isinstance(value, _NUMBER) and not isinstance(value, bool):
        return value if math.isfinite(value) else None
    return value
