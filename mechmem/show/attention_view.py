"""`show.attention`: a grid of all heads, one head's matrix, and the text, linked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.attention_data import Side, grid_of, sides_of
from mechmem.show.attention_svg import attention_svg
from mechmem.show.fragment import Theme, fragment
from mechmem.show.packed_patterns import packed
from mechmem.show.picture import Picture
from mechmem.show.png import png_address
from mechmem.show.thumbnails import grid_pixels

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


@public("run")
def attention(
    model: HookedTransformer | xr.Dataset,
    paragraphs: Paragraphs | None = None,
    *,
    heads: Sequence[tuple[int, int] | str] | str | None = None,
    compare: HookedTransformer | Paragraphs | xr.Dataset | None = None,
    names: Sequence[str] | None = None,
    counts: Any = None,
    theme: Theme | str = "auto",
) -> Picture:
    """Show attention patterns: thumbnails of all heads, the matrix of the one that is clicked, and the text.

    Point at a cell for its tokens, positions, weight and corpus counts, at a token for what it looks at and what looks
    at it; the slider chooses a query. Everything is in the page: no server, no library.

    Args:
        model: whose patterns are shown, with the hooks that are on it; or what `mechmem.capture` returned, with
            `pattern` at all query positions.
        paragraphs: a few; None: only with a capture, which holds them.
        heads: names such as "L1H2" or (layer, head) pairs; None: all.
        compare: an edited model (the same paragraphs), or other paragraphs, row by row beside the first, such as
            perturbed ones; or another capture. Of texts of one length the difference is shown, too.
        names: of the two sides; None: "original" and "edited" for two models, "first" and "second" otherwise.
        counts: how often each token occurs in the corpus, [d_vocab]; None: not shown.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` the still picture of
        one head's matrix, or of all heads if there are several.

    Raises:
        InputError: no paragraphs, heads that the model lacks, a comparison with another number of paragraphs, a capture
            without whole patterns, or more than a page can hold: say fewer heads or paragraphs.
    """
    check_choice("theme", theme, Theme)
    first, second = _two_names(names, compare)
    sides = [sides_of(model, paragraphs, heads, counts)]
    if compare is not None:
        other = sides_of(*_compared(model, paragraphs, compare), heads, counts)
        if len(other) != len(sides[0]) or other[0].heads != sides[0][0].heads:
            raise InputError(
                f"got {len(sides[0])} paragraphs and {len(other)} to compare, of {len(sides[0][0].heads)} and "
                f"{len(other[0].heads)} heads; need as many of each: they are shown row by row"
            )
        sides.append(other)
    shown = [list(group) for group in zip(*sides, strict=True)]
    equal = compare is not None and all(len(a.text) == len(b.text) for a, b in shown)
    caption = CAPTION + (DIFFERENCE.format(first=first, second=second) if equal else "")
    data = _page_data(shown, [first, second][: len(sides)], f"{second} minus {first}" if equal else None)
    data |= {"caption": caption, "theme": theme}
    address = png_address(grid_pixels(shown[0][0]))
    still = f'<img alt="{data["title"]}" src="{address}" style="max-width:100%">'
    page = fragment("AttentionView", ("attention",), data, still)
    return Picture(data["title"], page, lambda: attention_svg(shown[0], [first, second], caption))


def _page_data(shown: list[list[Side]], names: list[str], difference: str | None) -> dict[str, Any]:
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


def _two_names(names: Sequence[str] | None, compare: Any) -> tuple[str, str]:
    if names is not None:
        if len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"got names={names!r:.80}; need two words, such as ('memorized', 'perturbed')")
        return names[0], names[1]
    return ("original", "edited") if isinstance(compare, HookedTransformer) else ("first", "second")


def _compared(model: Any, paragraphs: Paragraphs | None, compare: Any) -> tuple[Any, Paragraphs | None]:
    """What the second side is of."""
    if isinstance(compare, Paragraphs):
        if isinstance(model, xr.Dataset):
            raise InputError("got a capture and paragraphs to compare it with; need a second capture, or a model")
        return model, compare
    if isinstance(compare, HookedTransformer | xr.Dataset):
        return compare, paragraphs if isinstance(compare, HookedTransformer) else None
    raise InputError(f"got {type(compare).__name__} as compare; need a model, paragraphs or a capture")


def _packed(side: Side) -> dict[str, Any]:
    return {"text": side.text, "counts": side.counts, "prefix": side.prefix_len, "packed": packed(side.pattern)}
