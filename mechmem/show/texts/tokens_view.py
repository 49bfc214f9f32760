"""`show.tokens`: texts whose tokens are coloured by a number of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme, fragment
from mechmem.show.picture import Picture
from mechmem.show.texts.coloured_text import Vocabulary, tokenizer_for
from mechmem.show.texts.text_svg import still_texts, text_svg
from mechmem.show.texts.token_values import token_values
from mechmem.show.texts.tokens_data import Side, caption_of, page_data

SCORED = ("em", "nll", "match", "greedy")


@public("run")
def tokens(
    paragraphs: Paragraphs,
    values: HookedTransformer | xr.Dataset | xr.DataArray | np.ndarray | Tensor | list,
    *,
    compare: HookedTransformer | xr.Dataset | xr.DataArray | np.ndarray | Tensor | list | None = None,
    variable: str | None = None,
    scores: xr.Dataset | None = None,
    names: Sequence[str] | None = None,
    counts: Any = None,
    tokenizer: Any = None,
    theme: Theme | str = "auto",
) -> Picture:
    """Show texts coloured by a number of each token: NLL, first choice, attention received, a gradient.

    Point at a token for its text, position, id and numbers; the arrow keys go on. The line is where the continuation
    begins; the framed token is the first that greedy decoding does not give, where scores are known.

    Args:
        paragraphs: whose text is shown.
        values: a model, which is scored, with the hooks that are on it; what `mechmem.score` returned; any Dataset or
            DataArray with dimensions `paragraph` and `pos`; or an array [paragraph, pos], NaN where there is none.
        compare: a second one of the same kind, such as an edited model. It stands beside the first, and so does the
            difference, second minus first.
        variable: which of a Dataset; None: token_nll. "match": whether the token is the model's first choice.
        scores: what `mechmem.score` returned, where `values` are other numbers: EM, and the first token that differs.
        names: of the two sides; None: "original" and "edited" for two models, "first" and "second" otherwise.
        counts: how often each token occurs in the corpus, [d_vocab]; None: not shown.
        tokenizer: that made the ids, or the model it belongs to; None: the model's, or one of the paragraphs'
            vocabulary that is loaded; without any, ids are shown.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` the first texts.

    Raises:
        InputError: no paragraphs, values of other paragraphs or with other dimensions, a variable that is not there, or
            more than a page can hold.
    """
    check_choice("theme", theme, Theme)
    if not len(paragraphs):
        raise InputError("got 0 paragraphs; need at least 1: check the mask or filter that selected them")
    first, second = _two_names(names, values, compare)
    sides = [_side(first, values, paragraphs, variable, scores, "values")]
    if compare is not None:
        sides.append(_side(second, compare, paragraphs, variable, None, "compare"))
        if sides[1].about.is_match != sides[0].about.is_match:
            raise InputError("got yes and no to compare with numbers; need two of one kind")
    model = next((each for each in (values, compare) if isinstance(each, HookedTransformer)), None)
    vocabulary = Vocabulary(tokenizer_for(paragraphs, model if tokenizer is None else tokenizer), counts)
    data, texts = page_data(paragraphs, sides, vocabulary)
    data |= {"theme": theme, "caption": caption_of(sides, facts(getattr(values, "attrs", {}), model))}
    page = fragment("TokensView", ("text", "tokens"), data, still_texts(texts))
    return Picture(data["title"], page, lambda: text_svg(texts, data["title"], data["caption"]))


def _side(
    name: str, given: Any, paragraphs: Paragraphs, variable: str | None, scores: xr.Dataset | None, argument: str
) -> Side:
    if isinstance(given, HookedTransformer):
        given = score(given, paragraphs)
    about = token_values(given, paragraphs, variable, argument)
    if scores is not None:
        check_results("scores", scores, SCORED, "score")
    elif isinstance(given, xr.Dataset) and all(name in given for name in SCORED):
        scores = given
    return Side(name, about, None if scores is None else aligned(scores, paragraphs))


def _two_names(names: Sequence[str] | None, values: Any, compare: Any) -> tuple[str, str]:
    if names is not None:
        if compare is None or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"got names={names!r:.80}; need two words, and two sides: compare=")
        return names[0], names[1]
    models = isinstance(values, HookedTransformer) and isinstance(compare, HookedTransformer)
    return ("original", "edited") if models else ("first", "second")
