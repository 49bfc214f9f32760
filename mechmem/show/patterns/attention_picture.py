"""The view of attention patterns, whatever they come from: a model, a capture or a study's files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mechmem.data.errors import InputError
from mechmem.show.fragment import fragment
from mechmem.show.patterns.attention_side import Side, grid_of
from mechmem.show.patterns.attention_svg import attention_svg
from mechmem.show.patterns.packed_patterns import packed
from mechmem.show.patterns.thumbnails import grid_pixels
from mechmem.show.picture import Picture
from mechmem.show.png import png_address

# One page that a browser opens at once; a notebook of many should stay below 20 MB.
MOST_BYTES = 24_000_000
HINT = "Click a head for its matrix; arrow keys move. Click a token or a row for one query."
CAPTION = (
    "Attention weight from 0 (as the page) to 1 (full colour); colour grows with the square root of the weight, so "
    "that small weights show. Rows are queries, columns keys, both from the first token. The line in the text is where "
    "the continuation begins."
)
DIFFERENCE = (
    " The difference is {second} minus {first}, in percentage points of attention: blue where {second} attends more, "
    "orange where it attends less."
)


def attention_picture(shown: list[list[Side]], names: Sequence[str] = ("", ""), theme: str = "auto") -> Picture:
    """The view of some paragraphs, each with one side or two, all of the same heads.

    Args:
        shown: paragraphs, at least one.
        names: of the two sides.
        theme: as `attention`.

    Raises:
        InputError: it is more than a page can hold.
    """
    first, second = names
    compared = len(shown[0]) == 2
    equal = compared and all(len(a.text) == len(b.text) for a, b in shown)
    caption = CAPTION + (DIFFERENCE.format(first=first, second=second) if equal else "")
    data = page_data(shown, list(names)[: len(shown[0])], f"{second} minus {first}" if equal else None)
    data |= {"caption": caption, "theme": theme}
    address = png_address(grid_pixels(shown[0][0]))
    still = f'<img alt="{data["title"]}" src="{address}" style="max-width:100%">'
    page = fragment("AttentionView", ("attention",), data, still)
    return Picture(data["title"], page, lambda: attention_svg(shown[0], list(names), caption))


def page_data(shown: list[list[Side]], names: list[str], difference: str | None) -> dict[str, Any]:
    """What the script reads.

    Raises:
        InputError: it is more than a page can hold.
    """
    grid = grid_of(shown[0][0].heads)
    count = len(grid["heads"])
    packs = [[_packed(side) for side in group] for group in shown]
    size = sum(len(side["packed"]) for group in packs for side in group)
    if size > MOST_BYTES:
        raise InputError(
            f"the patterns of {len(shown)} paragraphs and {count} heads take {size / 1e6:.0f} MB in the page; need at "
            f"most {MOST_BYTES / 1e6:.0f}: name fewer heads, such as heads=['L1H2'], or fewer paragraphs"
        )
    return grid | {
        "title": f"Attention of {count} heads" if count > 1 else f"Attention of {grid['heads'][0]}",
        "names": names,
        "difference": difference,
        "hint": HINT,
        "chosen": 0,
        "paragraphs": [{"title": group[0].title, "sides": pack} for group, pack in zip(shown, packs, strict=True)],
    }


def _packed(side: Side) -> dict[str, Any]:
    return {"text": side.text, "counts": side.counts, "prefix": side.prefix_len, "packed": packed(side.pattern)}
