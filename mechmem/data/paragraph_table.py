"""Paragraphs as a short HTML table, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechmem.data.paragraphs import Paragraphs

# Rows shown, and characters of a text.
ROWS, CHARACTERS = 8, 100


def html_table(paragraphs: Paragraphs) -> str:
    """The first rows: id, set, EM and NLL where they are known, and the text, or else the token ids; all escaped."""
    shown = paragraphs[:ROWS]
    names = [name for name in ("set", "em", "nll", "count") if shown.has(name)]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("id", *names, "text" if shown.has("text") else "tokens"))
    columns = {name: shown.column(name) for name in names}
    texts = shown.column("text") if shown.has("text") else [" ".join(map(str, row)) for row in shown.tokens.tolist()]
    rows = []
    for row, (identity, text) in enumerate(zip(shown.ids, texts, strict=True)):
        values = [identity, *(columns[name][row] for name in names), _short(str(text))]
        rows.append("<tr>" + "".join(f"<td>{escape(_value(value))}</td>" for value in values) + "</tr>")
    more = "" if len(paragraphs) <= ROWS else f"<p>... and {len(paragraphs) - ROWS:,} more</p>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<p>{escape(repr(paragraphs))}</p>{table}{more}"


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 3] + "..."


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
