"""`show.lens`: what the model would predict after each layer, and when the true token becomes its first choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme
from mechmem.show.maps.effect_texts import tokenizer_of
from mechmem.show.maps.heatmap import Also, Axis, Heatmap
from mechmem.show.maps.heatmap_page import Chooser, Words, heatmap_picture
from mechmem.show.picture import Picture
from mechmem.show.token_labels import shortened, text_labels, token_labels

CAPTION = (
    "Rows are depths: the residual stream that enters each layer, read through the final norm and the unembedding; the "
    "last row is the model's own prediction. A word is the first choice there; the column's label is the true token. A "
    "frame: the true token is the first choice from here on. Full "
    "colour: NLL 0, or rank 1; none: an NLL of 10 or more, or the last rank."
)
# Nats: of a worse prediction one need not see how much worse.
WORST = 10.0
SHOW = {"nll": "NLL of the true token", "rank": "rank of the true token"}


@public("run")
def lens(
    lens: xr.Dataset,
    paragraphs: Paragraphs | None = None,
    *,
    model: HookedTransformer | None = None,
    theme: Theme | str = "auto",
) -> Picture:
    """Show the logit lens: depths by positions, with the first choice of each in its cell.

    Args:
        lens: what `logit_lens` returned.
        paragraphs: those to show, found by their ids; None: all.
        model: for readable tokens, and to be named below; None: the paragraphs' vocabulary where it is loaded, or ids.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`.

    Raises:
        InputError: another kind of result, paragraphs that it is not about, or more than a page can hold.
    """
    check_choice("theme", theme, Theme)
    check_results("lens", lens, ("nll", "rank", "choice", "first", "token"), "logit_lens(model, paragraphs)")
    if paragraphs is not None:
        lens = aligned(lens, paragraphs)
    if not lens.sizes["paragraph"]:
        raise InputError("got 0 paragraphs; need at least 1: check the mask or filter that selected them")
    tokenizer = tokenizer_of(model, paragraphs)
    true = [text_labels(tokenizer, row) for row in lens.token.values.tolist()]
    titles = [f"{row}: {shortened(''.join(labels[:20]).strip())}" for row, labels in enumerate(true)]
    known = np.unique(lens.choice.values)
    labels = dict(zip(known.tolist(), token_labels(tokenizer, known.tolist()), strict=True))
    choosers = [Chooser("show", list(SHOW.values())), Chooser("paragraph", titles)]

    def maps(chosen: tuple[int, ...]) -> list[Heatmap]:
        shown = list(SHOW)[chosen[0]]
        return [_map(lens.isel(paragraph=chosen[1]), shown, true[chosen[1]], labels)]

    without = str(lens.attrs.get("without", "[]"))
    more: dict[str, Any] = {} if without == "[]" else {"without_heads": without}
    words = Words("Logit lens", CAPTION, facts(lens.attrs, model, **more))
    return heatmap_picture(words, choosers, maps, theme=theme)


def _map(one: xr.Dataset, shown: str, true: list[str], labels: dict[int, str]) -> Heatmap:
    depths = one.sizes["depth"]
    rows = [f"L{depth}" for depth in range(depths - 1)] + ["end"]
    names = [f"stream into L{depth}" for depth in range(depths - 1)] + ["end of the body"]
    positions = one.pos.values.tolist()
    columns = [f"position {pos} “{label}”" for pos, label in zip(positions, true, strict=True)]
    other = next(name for name in SHOW if name != shown)
    first = [(int(depth), place) for place, depth in enumerate(one["first"].values) if depth < depths]
    words = [[labels[token] for token in row] for row in one.choice.values.tolist()]
    # The best end has the full colour.
    most = float(np.nanmax(one[shown].values))
    return Heatmap(
        SHOW[shown],
        one[shown].values.astype(float),
        Axis("depth", rows, names),
        Axis("true token", true, columns),
        "nats" if shown == "nll" else "",
        "plain" if shown == "nll" else "log",
        span=(min(most, WORST) or 1.0, 0.0) if shown == "nll" else (max(most, 2.0), 1.0),
        also=[Also(SHOW[other], one[other].values.astype(float))],
        words=words,
        framed=first,
        framed_as="first choice from here on",
    )
