"""Tables of the repeated study: published beside measured in both readings, and the traps."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import get_args

from mechmem.report.page import Cell, decimal
from mechmem.study.paper.rows import Reading, Row, Trap, verdict
from mechmem.study.paper.wording import TRAPS

COLUMNS = ("quantity", "published", "as published", "verdict", "corrected", "verdict ", "note")
# In the quantities of the sums by layer.
LAYER = "sum of layer"
TRAP_COLUMNS = ("no.", "trap", "with the slip", "corrected", "units", "what it changes")


def headlines_and_layers(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows without the sums by layer, and these, which are many and have a table of their own."""
    return [row for row in rows if LAYER not in row.quantity], [row for row in rows if LAYER in row.quantity]


def table_rows(rows: Sequence[Row], *, applies: bool) -> list[list[Cell]]:
    """One line for each quantity, both readings side by side."""
    lines: list[list[Cell]] = []
    for quantity, units in dict.fromkeys((row.quantity, row.units) for row in rows):
        found = {row.reading: row for row in rows if (row.quantity, row.units) == (quantity, units)}
        published = next((row.published for row in found.values() if row.published is not None), None)
        sides: list[Cell] = []
        for reading in get_args(Reading):
            row = found.get(reading)
            sides += ["–", ""] if row is None else [measured(row), verdict(row, applies)]
        notes = "; ".join(dict.fromkeys(row.note for row in found.values() if row.note))
        lines.append([_named(quantity, units), "–" if published is None else said(published), *sides, notes])
    return lines


def trap_rows(traps: Sequence[Trap], left_out: dict[str, str]) -> list[list[Cell]]:
    """All fourteen; one that was not measured says why."""
    known = {trap.number: trap for trap in traps}
    lines: list[list[Cell]] = []
    for number, (title, item) in TRAPS.items():
        trap = known.get(number)
        if trap is None:
            reason = left_out.get(item, "the item that measures it did not")
            lines.append([number, title, "–", "–", "", f"Not measured: {reason}."])
        else:
            slipped, corrected = said(trap.slipped), said(trap.corrected)
            lines.append([number, trap.title, slipped, corrected, trap.units, trap.change])
    return lines


def _named(quantity: str, units: str) -> str:
    """A quantity with its units, where it does not say them itself, and spans of EM with a dash."""
    shown = quantity if units == "1" or units in quantity else f"{quantity} ({units})"
    return re.sub(r"(\d)-(\d)", r"\1–\2", shown)


def measured(row: Row) -> str:
    """The value with its interval, if it has one."""
    ends = "" if row.low is None or row.high is None else f" [{said(row.low)}, {said(row.high)}]"
    return f"{said(row.measured)}{ends}"


def said(value: float) -> str:
    """A number as text: whole numbers whole, two decimals where they say something, three digits otherwise."""
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{int(value):,}".replace("-", "−")
    return decimal(value)
