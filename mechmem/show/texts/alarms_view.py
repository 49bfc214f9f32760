"""`show.alarms`: what a model said, coloured by a detector's score, with the moment of the alarm."""

from __future__ import annotations

import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.show.fragment import Theme
from mechmem.show.picture import Picture
from mechmem.show.texts.spoken_texts import SpokenText, spoken_picture

EXAMPLES = ("example_text", "example_score", "example_alarm", "example_kind")


def alarms(result: xr.Dataset, *, theme: Theme | str = "auto") -> Picture:
    """Show what a model said after its prompts, coloured by the detector's score when each token was about to be said.

    Args:
        result: a study's `results["detect"]`: its examples.
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Picture`: a notebook displays it; `.save("x.html")` writes a page, `.save("x.svg")` a still picture.

    Raises:
        InputError: another kind of result, or one without an example.
    """
    check_choice("theme", theme, Theme)
    check_results("result", result, EXAMPLES, "open_study(folder).results['detect']")
    if result.sizes["example"] == 0:
        raise InputError("got a result without an example; need at least 1 generation")
    texts = [_spoken(result.isel(example=place)) for place in range(result.sizes["example"])]
    return spoken_picture(texts, f"The detector's scores in {len(texts)} generations", theme=theme)


def _spoken(one: xr.Dataset) -> SpokenText:
    begins, alarm = int(one.attrs["prefix_len"]), int(one.example_alarm)
    after = "no alarm" if alarm < 0 else f"alarm after {alarm - begins} own tokens"
    facts = [f"id {one.example_id.item()}", str(one.example_kind.item()), f"EM {int(one.example_em)}", after]
    labels = [str(text) for text in one.example_text.values]
    return SpokenText(labels, one.example_score.values.astype(float), begins, None if alarm < 0 else alarm, facts)
