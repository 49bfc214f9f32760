"""`show.alarms`: what a model said, coloured by a detector's score, with the moment of the alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.show.fragment import Theme
from mechmem.show.picture import Picture
from mechmem.show.texts.spoken_texts import SpokenText, spoken_picture
from mechmem.show.token_labels import text_labels

EXAMPLES = ("example_text", "example_score", "example_alarm", "example_kind", "example_em", "example_id")
WATCHED = ("token", "score", "flagged_at")


def alarms(result: xr.Dataset, *, tokenizer: Any = None, theme: Theme | str = "auto") -> Picture:
    """Show what a model said, coloured by the detector's score when each token was about to be said.

    Args:
        result: what a monitor noted (`monitor.result`), or a study's `results["detect"]`: its examples.
        tokenizer: for a monitor's result: that made the ids, or the model; None: ids are shown.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` a still picture.

    Raises:
        InputError: another kind of result, or one without a generation.
    """
    check_choice("theme", theme, Theme)
    if isinstance(result, xr.Dataset) and "flagged_at" in result:
        check_results("result", result, WATCHED, "Monitor(...).result")
        reader = getattr(tokenizer, "tokenizer", tokenizer)
        texts = [_watched(result.isel(row=row), reader) for row in range(result.sizes["row"])]
    else:
        check_results("result", result, EXAMPLES, "open_study(folder).results['detect']")
        if tokenizer is not None:
            raise InputError("got tokenizer for a study's result, which holds its texts; omit it")
        texts = [_example(result.isel(example=place)) for place in range(result.sizes["example"])]
    if not texts:
        raise InputError("got a result without a generation; need at least 1")
    return spoken_picture(texts, f"The detector's scores in {_count(len(texts))}", theme=theme)


def _count(texts: int) -> str:
    return "1 generation" if texts == 1 else f"{texts} generations"


def _example(one: xr.Dataset) -> SpokenText:
    begins, alarm = int(one.attrs["prefix_len"]), int(one.example_alarm)
    facts = [f"id {one.example_id.item()}", str(one.example_kind.item()), f"EM {int(one.example_em)}"]
    labels = [str(text) for text in one.example_text.values]
    return _spoken(labels, one.example_score.values, begins, None if alarm < 0 else alarm, facts)


def _watched(one: xr.Dataset, tokenizer: Any) -> SpokenText:
    known = one.token.values >= 0
    labels = text_labels(tokenizer, one.token.values[known].tolist())
    alarm = None if np.isnan(float(one.flagged_at)) else int(one.flagged_at)
    facts = [f"row {one.row.item()}"]
    # Where the text was stopped at the alarm, no token follows to be framed.
    return _spoken(labels, one.score.values[known], 0, alarm, facts)


def _spoken(labels: list[str], scores: np.ndarray, begins: int, alarm: int | None, facts: list[str]) -> SpokenText:
    own = 0 if alarm is None else alarm - begins
    after = "no alarm" if alarm is None else f"alarm after {own} own {'token' if own == 1 else 'tokens'}"
    shown = alarm if alarm is not None and alarm < len(labels) else None
    return SpokenText(labels, scores.astype(float), begins, shown, [*facts, after])
