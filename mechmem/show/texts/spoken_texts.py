"""What a model said after its prompts, coloured by a detector's score at each token, with the moment of the alarm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechmem.show.colour_scale import Scale
from mechmem.show.fragment import fragment
from mechmem.show.picture import Picture
from mechmem.show.texts.coloured_text import numbers, reads_from_the_right
from mechmem.show.texts.text_svg import Text, still_texts, text_svg

# A score is a probability; warm is what recites.
SCALE = Scale(1.0, signed=False, blue_is_high=False, linear=True)
QUANTITY = "score"
CAPTION = (
    "Colour: the detector's score when the token was about to be said: the probability that the model recites, if "
    "recitations and other text were equally frequent (higher: more certain). It knows what was said before and not "
    "the token itself. The line is where the prompt ends and the model's own text begins; at the framed token the "
    "alarm was raised."
)


@dataclass(frozen=True)
class SpokenText:
    """One prompt and what followed.

    Attributes:
        labels: of the tokens of both.
        scores: of each token; NaN: none.
        begins: where the model's own text begins.
        alarm: the position at which the alarm was raised; None: it was not.
        facts: what is known of it, a few words each.
    """

    labels: Sequence[str]
    scores: np.ndarray
    begins: int
    alarm: int | None
    facts: Sequence[str]


def spoken_picture(texts: Sequence[SpokenText], title: str, caption: str = "", *, theme: str = "auto") -> Picture:
    """The texts below each other, in their order or by score.

    Args:
        texts: at least one.
        title: a line above.
        caption: where they are from, after what the colours mean.
        theme: "auto" follows the notebook or the browser.
    """
    places: dict[str, int] = {}
    shown = [
        {
            "tokens": [places.setdefault(label, len(places)) for label in text.labels],
            "values": [numbers(text.scores)],
            "diverges": [None if text.alarm is None else {"pos": text.alarm, "says": None}],
            "facts": list(text.facts),
            "rtl": reads_from_the_right(text.labels),
            "prefix": text.begins,
        }
        for text in texts
    ]
    words = f"{CAPTION} {caption}".strip()
    data = {
        "title": title,
        "names": [""],
        "difference": None,
        "quantity": QUANTITY,
        "units": "",
        "framed": "alarm at",
        "scale": SCALE.data(),
        "change": None,
        "vocabulary": {"labels": list(places), "ids": None, "counts": None},
        "orders": _orders(texts),
        "paragraphs": shown,
        "theme": theme,
        "caption": words,
    }
    still = [
        Text(" · ".join(text.facts), text.labels, numbers(text.scores), SCALE, QUANTITY, "", text.begins, text.alarm)
        for text in texts
    ]
    page = fragment("TokensView", ("text", "tokens"), data, still_texts(still))
    return Picture(title, page, lambda: text_svg(still, title, words))


def _orders(texts: Sequence[SpokenText]) -> list[dict[str, Any]]:
    highest = [float(np.nanmax(text.scores, initial=0.0)) for text in texts]
    alarms = [None if text.alarm is None else text.alarm - text.begins for text in texts]
    return [
        {"name": "as given", "by": None, "largest": True},
        {"name": "highest score", "by": highest, "largest": True},
        {"name": "earliest alarm", "by": alarms, "largest": False},
    ]
