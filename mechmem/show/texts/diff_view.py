"""`show.diff`: what a model and its edited versions write after the same prefixes, beside the true text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from mechmem.data.bounds import Factor
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, part_of
from mechmem.measure.greedy_texts import greedy_texts
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.show.caption_facts import facts
from mechmem.show.fragment import Theme, fragment
from mechmem.show.picture import Picture
from mechmem.show.texts.coloured_text import Vocabulary
from mechmem.show.texts.diff_data import page_data
from mechmem.show.texts.diff_steps import model_of, steps_of
from mechmem.show.texts.text_svg import still_texts, text_svg
from mechmem.weights.sparse_edit import Edit

# One page that a browser opens at once, in tokens of all steps.
MOST_TOKENS = 1_000_000
CAPTION = (
    "Greedy continuations after the same prefix, {steps}. Colour: NLL of each token, nats, under the model that writes "
    "it; of the true text, under the last of them; higher: the model is less certain. The framed token is the first "
    "that is not the true one. Dotted lines are below tokens that the true text does not have there. Edit distance: "
    "tokens to insert, delete or replace."
)


@public("run")
def diff(
    original: HookedTransformer,
    edited: HookedTransformer | Edit | Mapping[str, HookedTransformer | Edit],
    paragraphs: Paragraphs,
    *,
    scales: Sequence[Factor] | None = None,
    counts: Any = None,
    theme: Theme | str = "auto",
    progress: ProgressLike = None,
) -> Picture:
    """Show what two models write after the same prefixes, beside the true text: greedy continuations, token by token.

    Each paragraph has its prefix once, then the true continuation, what the original writes and what the edited model
    writes, with EM, edit distance and NLL. Several steps of an edit have a slider.

    Args:
        original: the model before the edit, with the hooks that are on it.
        edited: the model after it; or an `Edit` of the original; or several of these by name, in their order, such as
            checkpoints: `{"step 10": model, "step 20": edit}`.
        paragraphs: a few; their prefixes are given to all models.
        scales: of an edit or an edited model: how much of it each step takes; [0.25, 0.5, 1]: a quarter of the way,
            half of it, all of it. None: all of it.
        counts: how often each token occurs in the corpus, [d_vocab]; None: not shown.
        theme: "auto" follows the notebook or the browser.
        progress: called with (paragraphs done, paragraphs of all models).

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` the first paragraphs.

    Raises:
        InputError: no paragraphs, steps that are no models or edits, an edit of another model, or more than a page can
            hold.
    """
    check_choice("theme", theme, Theme)
    steps = {"original": original} | {
        name if name != "original" else "original (edited)": step
        for name, step in steps_of(original, edited, scales).items()
    }
    if paragraphs.tokens.numel() * len(steps) > MOST_TOKENS:
        raise InputError(
            f"got {paragraphs.tokens.numel() * len(steps):,} tokens to show; need at most {MOST_TOKENS:,}: show fewer "
            "paragraphs, paragraphs[:20]"
        )
    texts: dict[str, xr.Dataset] = {}
    for number, (name, step) in enumerate(steps.items()):
        with model_of(original, step) as model:
            texts[name] = greedy_texts(model, paragraphs, progress=part_of(progress, number, len(steps)))
    data, still = page_data(paragraphs, texts, Vocabulary(original.tokenizer, counts))
    words = "original and edited" if len(steps) == 2 else f"the original and {len(steps) - 1} steps of an edit"
    data |= {"theme": theme, "caption": f"{CAPTION.format(steps=words)} {facts({}, original)}".strip()}
    page = fragment("DiffView", ("text", "diff"), data, still_texts(still))
    return Picture(data["title"], page, lambda: text_svg(still, data["title"], data["caption"]))
