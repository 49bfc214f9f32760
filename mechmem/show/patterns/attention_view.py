"""`show.attention`: a grid of all heads, one head's matrix, and the text, linked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import xarray as xr

from mechmem.data.choices import check_choice, check_used
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.fragment import Theme
from mechmem.show.patterns.attention_data import sides_of
from mechmem.show.patterns.attention_picture import attention_picture
from mechmem.show.patterns.circuitsvis_view import circuitsvis_picture
from mechmem.show.picture import Picture

Style = Literal["mechmem", "circuitsvis"]


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
    style: Style | str = "mechmem",
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
        style: "mechmem", this view; "circuitsvis", CircuitsVis' grid of heads, which takes 2.3 MB in every cell and
            knows one side, no counts and no dark theme.

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` the still picture of
        one head's matrix, or of all heads if there are several.

    Raises:
        InputError: no paragraphs, heads that the model lacks, a comparison with another number of paragraphs, a capture
            without whole patterns, or more than a page can hold: say fewer heads or paragraphs.
    """
    check_choice("theme", theme, Theme)
    check_choice("style", style, Style)
    first, second = _two_names(names, compare)
    if style == "circuitsvis":
        dark = theme if theme == "dark" else None
        check_used(style, (), {"compare": compare, "names": names, "counts": counts, "theme": dark})
        return circuitsvis_picture(sides_of(model, paragraphs, heads, None))
    sides = [sides_of(model, paragraphs, heads, counts)]
    if compare is not None:
        other = sides_of(*_compared(model, paragraphs, compare), heads, counts)
        if len(other) != len(sides[0]) or other[0].heads != sides[0][0].heads:
            raise InputError(
                f"got {len(sides[0])} paragraphs and {len(other)} to compare, of {len(sides[0][0].heads)} and "
                f"{len(other[0].heads)} heads; need as many of each: they are shown row by row"
            )
        sides.append(other)
    return attention_picture([list(group) for group in zip(*sides, strict=True)], [first, second], theme)


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
