"""Paragraphs as a short HTML table, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mechmem.data.paragraphs import Paragraphs

# Rows shown, and characters of a text.
ROWS, CHARACTERS = 8, 100


def html_table(paragraphs: Paragraphs) -> str:
    """The first rows: id, set, kind, EM, NLL, count where known, and the text, or else the token ids; all escaped."""
    shown = paragraphs[:ROWS]
    names = [name for name in ("set", "kind", "em", "nll", "count") if shown.has(name)]
    head = "".join(f"<th>{escape(name)}</th>" for name in ("id", *names, "text" if shown.has("text") else "tokens"))
    columns = {name: shown.column(name) for name in names}
    texts = shown.column("text") if shown.has("text") else [" ".join(map(str, row)) for row in shown.tokens.tolist()]
    rows = []
    for row, (identity, text) in enumerate(zip(shown.ids, texts, strict=True)):
        values = [identity, *(columns[name][row] for name in names)]
        cells = "".join(f"<td>{escape(_short(_value(value)))}</td>" for value in values)
        # Text of its own direction, which does not turn the row around, and not at the right as numbers are.
        rows.append(f'<tr>{cells}<td style="text-align:left"><bdi>{escape(_short(str(text)))}</bdi></td></tr>')
    more = "" if len(paragraphs) <= ROWS else f"<p>... and {len(paragraphs) - ROWS:,} more</p>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<p>{escape(repr(paragraphs))}</p>{table}{more}"


def _short(text: str) -> str:
    line = text[:CHARACTERS].replace("\n", "↵").replace("\t", "⇥")
    # Other control characters have no form in HTML, and lone surrogates none in a file.
    kept = "".join("\ufffd" if ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 else letter for letter in line)
    return kept if len(text) <= CHARACTERS else kept[: CHARACTERS - 3] + "..."


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
