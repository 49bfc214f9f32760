"""`show.attention(style="circuitsvis")`: CircuitsVis' own grid of heads, offline and with no way out for a token."""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.data.errors import InputError
from mechmem.model.head_names import head_name
from mechmem.show.embed import json_markup, script_markup
from mechmem.show.fragment import view_name
from mechmem.show.patterns.attention_side import Side
from mechmem.show.patterns.attention_svg import attention_svg
from mechmem.show.picture import Picture

# Numbers of one picture, as JSON; forty of these fit in a notebook.
MOST_BYTES = 24_000_000
CAPTION = (
    "CircuitsVis' view: attention weight, darker is more; rows are queries, columns keys. Point at a head for its "
    "matrix, click to keep it."
)
# It draws dark text on white, whatever the page's colours, and gives each head a twelfth of the window.
STYLE = (
    ".mechmem-circuitsvis { background: #fff; color: #1b222b; color-scheme: light; padding: 12px; overflow-x: auto; "
    "font: 14px/1.5 system-ui, sans-serif; }"
)


def circuitsvis_picture(shown: Sequence[Side]) -> Picture:
    """Paragraphs below one another, each as CircuitsVis' `AttentionHeads`.

    Args:
        shown: at least one, all of the same heads.

    Raises:
        InputError: the patterns are more than a page can hold.
        ModuleNotFoundError: circuitsvis is not installed.
    """
    names = _names(shown[0])
    title = f"Attention of {len(names)} heads" if len(names) > 1 else f"Attention of {names[0]}"
    data = [json_markup(_properties(side)) for side in shown]
    name = view_name("CircuitsVis" + "".join(data))
    size = sum(map(len, data))
    if size > MOST_BYTES:
        raise InputError(
            f"the patterns of {len(shown)} paragraphs and {len(names)} heads take {size / 1e6:.0f} MB in "
            f"CircuitsVis' form; need at most {MOST_BYTES / 1e6:.0f}: name fewer heads, or leave style out"
        )
    places = "".join(
        f'<h3>{html.escape(side.title)}</h3><div id="{name}-{number}"></div>'
        f'<script type="application/json" id="{name}-{number}-data">{one}</script>'
        for number, (side, one) in enumerate(zip(shown, data, strict=True))
    )
    draw = (
        f"for (let place = 0; place < {len(shown)}; place += 1) {{ const id = `{name}-${{place}}`; "
        "window.CircuitsVis.render(id, window.CircuitsVis.AttentionHeads, "
        "JSON.parse(document.getElementById(`${id}-data`).textContent)); }"
    )
    page = (
        f'<style>{STYLE}</style><div class="mechmem-circuitsvis">{places}<p>{CAPTION}</p></div>'
        f"<script>{circuitsvis_script()}\nwindow.CircuitsVis ||= CircuitsVis;\n{draw}</script>"
    ).replace("\0", "\\x00")
    return Picture(title, page, lambda: attention_svg([shown[0]], ["", ""], CAPTION))


def circuitsvis_script() -> str:
    """The JavaScript that CircuitsVis ships, which defines `CircuitsVis`.

    It is read as a file: importing the package would import torch, and its own HTML repeats the script in every view or
    points to a server.
    """
    spec = importlib.util.find_spec("circuitsvis")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("circuitsvis is not installed; style='circuitsvis' needs it: pip install circuitsvis")
    path = Path(spec.submodule_search_locations[0]) / "dist" / "cdn" / "iife.js"
    return str(script_markup(path.read_text(encoding="utf-8")))


def _names(side: Side) -> list[str]:
    return [head_name(pair) for pair in side.heads]


def _properties(side: Side) -> dict[str, Any]:
    """What the component is given. It draws tokens on a canvas and heads' names as text nodes: both go as they are.

    The darkest colour is the largest weight on any key but the first, on which idle heads rest.
    """
    return {
        "tokens": side.text,
        # Three digits are more than the eye sees, and a third of the bytes.
        "attention": np.round(np.nan_to_num(side.pattern.astype(float)), 3).tolist(),
        "attentionHeadNames": _names(side),
        "maxValue": round(float(side.pattern[..., 1:].max(initial=1e-6)), 6),
        "positiveColor": "#0b5a94",
        "negativeColor": "#b35806",
        "maskUpperTri": False,
    }
