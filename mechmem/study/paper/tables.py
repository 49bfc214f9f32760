"""Tables of the repeated study: published beside measured in both readings, and the traps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mechmem.report.page import Cell
from mechmem.study.paper.rows import Row, Trap, verdict
from mechmem.study.paper.wording import TRAPS

COLUMNS = (
    "quantity",
    "units",
    "published",
    "as published",
    "95 %",
    "verdict",
    "corrected",
    "95 % ",
    "verdict ",
    "note",
)
TRAP_COLUMNS = ("no.", "trap", "with the slip", "corrected", "units", "what it changes")


def table_rows(rows: Sequence[Row], *, applies: bool) -> list[list[Cell]]:
    """One line for each quantity, both readings side by side."""
    quantities = dict.fromkeys((row.quantity, row.units) for row in rows)
    lines: list[list[Cell]] = []
    for quantity, units in quantities:
        found = {row.reading: row for row in rows if (row.quantity, row.units) == (quantity, units)}
        published = next((row.published for row in found.values() if row.published is not None), None)
        notes = " ".join(dict.fromkeys(row.note for row in found.values() if row.note))
        sides: list[Cell] = []
        for reading in ("as published", "corrected"):
            row = found.get(reading)  # pyright: ignore[reportArgumentType]
            sides += ["–", "", ""] if row is None else [said(row.measured), interval(row), verdict(row, applies)]
        lines.append([quantity, units, "–" if published is None else said(published), *sides, notes])
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


def interval(row: Row) -> str:
    """The interval, or nothing."""
    return "" if row.low is None or row.high is None else f"{said(row.low)} to {said(row.high)}"


def said(value: float) -> str:
    """A number as text: whole numbers whole, two decimals where they say something, three digits otherwise."""
    if not math.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e12:
        text = f"{int(value):,}"
    elif 0.1 <= abs(value) < 1e5:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")
