"""A mask or an edit as a short HTML table, for notebooks: how many weights of each layer and component."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

COMPONENTS = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")
BAR = "display:inline-block;height:0.7em;background:#1f83c4;vertical-align:baseline;width:"
LAYER = re.compile(r"blocks\.(\d+)\.(?:attn|mlp)\.(\w+)")


def counts_table(said: str, counts: Mapping[str, int], more: Sequence[str] = ()) -> str:
    """A sentence, and a row for each layer with a number and a bar for each component; all escaped.

    Args:
        said: the line above.
        counts: parameter name -> how many of its weights.
        more: lines below.
    """
    cells: dict[tuple[int, str], int] = {}
    others: dict[str, int] = {}
    for name, count in counts.items():
        found = LAYER.fullmatch(name)
        if found:
            cells[int(found[1]), found[2]] = count
        else:
            others[name] = count
    named = {component for _, component in cells}
    components = [name for name in COMPONENTS if name in named] + sorted(named - set(COMPONENTS))
    head = "".join(f"<th>{escape(name)}</th>" for name in ("layer", *components))
    most = max(cells.values(), default=0)
    rows = [
        f"<tr><th>{layer}</th>{''.join(_cell(cells.get((layer, name), 0), most) for name in components)}</tr>"
        for layer in sorted({layer for layer, _ in cells})
    ]
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    lines = [*(f"{name}: {count:,}" for name, count in others.items()), *more]
    return f"<p>{escape(said)}</p>{table}{''.join(f'<p>{escape(line)}</p>' for line in lines)}"


def _cell(count: int, most: int) -> str:
    width = 0 if most == 0 else 3 * count / most
    bar = f' <span style="{BAR}{width:.2f}em"></span>' if count else ""
    return f"<td>{count:,}{bar}</td>" if count else "<td>·</td>"


def size_text(nbytes: int) -> str:
    """Bytes in the unit that fits: 12.3 kB."""
    size = float(nbytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
