"""What a page of coloured texts holds: numbers and labels of every token, facts of every paragraph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.show.colour_scale import Scale, number_text, scale_of
from mechmem.show.texts.coloured_text import Vocabulary, facts_of, numbers, reads_from_the_right
from mechmem.show.texts.text_svg import Text
from mechmem.show.texts.token_values import TokenValues

# One page that a browser opens at once, in tokens; a notebook of many should stay below 20 MB.
MOST_TOKENS = 1_500_000
# Paragraphs of the still picture.
STILL = 3


@dataclass(frozen=True)
class Side:
    """What is shown of all paragraphs: one model's, or one array's.

    Attributes:
        name: of the side.
        about: its numbers.
        scores: what `mechmem.score` found, row by row; None: unknown.
    """

    name: str
    about: TokenValues
    scores: xr.Dataset | None


def page_data(paragraphs: Paragraphs, sides: list[Side], vocabulary: Vocabulary) -> tuple[dict[str, Any], list[Text]]:
    """What the script reads, and the first texts for the still picture.

    Raises:
        InputError: more than a page can hold.
    """
    _check_size(paragraphs, sides)
    about, named = sides[0].about, [side.name for side in sides]
    every = np.concatenate([side.about.values for side in sides])
    scale = scale_of(every, blue_is_high=about.blue_is_high, is_match=about.is_match)
    change = _change(sides)
    facts = [known + scored for known, scored in zip(facts_of(paragraphs), _scored(paragraphs, sides), strict=True)]
    shown, texts = [], []
    for row, known in enumerate(facts):
        places, labels = vocabulary.text(paragraphs.tokens[row].tolist())
        found = {
            "tokens": places,
            "values": [numbers(side.about.values[row]) for side in sides],
            "diverges": [_leaves(side, row, vocabulary) for side in sides],
            "facts": known,
            "rtl": reads_from_the_right(labels),
            "prefix": paragraphs.prefix_len,
        }
        shown.append(found)
        if row < STILL:
            texts += _still(found, labels, sides, scale, change)
    kinds = f"{about.name} of each token, {len(paragraphs)} paragraph{'s' if len(paragraphs) > 1 else ''}"
    return {
        "title": kinds[0].upper() + kinds[1:] + (f": {named[0]} and {named[1]}" if len(named) > 1 else ""),
        "names": named,
        "difference": _difference(sides),
        "quantity": about.name,
        "units": about.units,
        "scale": scale.data(),
        "change": None if change is None else change.data(),
        "vocabulary": vocabulary.data(),
        "orders": _orders(paragraphs, sides),
        "paragraphs": shown,
    }, texts


def _still(
    found: dict[str, Any], labels: list[str], sides: list[Side], scale: Scale, change: Scale | None
) -> list[Text]:
    """One paragraph as the still picture draws it: each side, and the difference."""
    about, texts, begins = sides[0].about, [], found["prefix"]
    named = f"{about.name}, {about.units}" if about.units else about.name
    for side, values, leaf in zip(sides, found["values"], found["diverges"], strict=True):
        title = " · ".join([*found["facts"], *([side.name] if len(sides) > 1 else [])])
        at = None if leaf is None else leaf["pos"]
        texts.append(Text(title, labels, values, scale, named, about.units, begins, at))
    if change is not None:
        pairs = zip(*found["values"], strict=True)
        values = [None if first is None or second is None else second - first for first, second in pairs]
        said = _difference(sides) or ""
        title = " · ".join([found["facts"][0], said])
        texts.append(Text(title, labels, values, change, f"{said}, {about.units}", about.units, begins))
    return texts


def _difference(sides: list[Side]) -> str | None:
    return f"{sides[1].name} minus {sides[0].name}" if len(sides) > 1 else None


def caption_of(sides: list[Side], model: str) -> str:
    """What is shown, its unit, what higher means, and of which model."""
    about = sides[0].about
    if about.is_match:
        words = ["Blue: the token is the model's first choice given the true text before it; orange: another token is."]
    else:
        unit = f", {about.units}" if about.units else ""
        higher = f"; higher: {about.higher}" if about.higher else ""
        words = [f"{about.name[0].upper()}{about.name[1:]} of each token{unit}{higher}."]
        high, low = ("blue", "orange") if about.blue_is_high else ("orange", "blue")
        signed = any((side.about.values < 0).any() for side in sides)
        words.append(f"Above zero {high}, below {low}." if signed else "")
        words.append("Colour grows with the square root of the value.")
    if len(sides) > 1:
        better, worse = ("higher", "lower") if about.blue_is_high else ("lower", "higher")
        first, second = (side.name for side in sides)
        words.append(
            f"The difference is {second} minus {first}: blue where {second} is {better}, orange where {worse}."
        )
    words.append("The line is where the continuation begins.")
    if any(side.scores is not None for side in sides):
        words.append("The framed token is the first that greedy decoding does not give.")
    return " ".join(word for word in [*words, model] if word)


def _check_size(paragraphs: Paragraphs, sides: list[Side]) -> None:
    size = paragraphs.tokens.numel() * len(sides)
    if size > MOST_TOKENS:
        raise InputError(
            f"got {size:,} tokens to show; need at most {MOST_TOKENS:,} in one page: show some of the paragraphs, "
            "paragraphs[:100]"
        )


def _change(sides: list[Side]) -> Scale | None:
    if len(sides) == 1:
        return None
    first, second = (side.about for side in sides)
    return scale_of(second.values - first.values, blue_is_high=first.blue_is_high, signed=True)


def _leaves(side: Side, row: int, vocabulary: Vocabulary) -> dict[str, int] | None:
    """The first token that greedy decoding does not give, and what it gives; None: it gives all, or is unknown."""
    if side.scores is None:
        return None
    missed = np.flatnonzero(~side.scores.match.values[row].astype(bool))
    if not len(missed):
        return None
    first = missed[0]
    return {
        "pos": int(side.scores.pos.values[first]),
        "says": vocabulary.token(int(side.scores.greedy.values[row, first])),
    }


def _scored(paragraphs: Paragraphs, sides: list[Side]) -> list[list[str]]:
    """EM and NLL of each paragraph, from scores, or else from the table."""
    full = paragraphs.continuation_len
    known = [side.scores for side in sides if side.scores is not None]
    names = [name for name in ("em", "nll") if known or paragraphs.has(name)]
    columns = {name: [each[name].values for each in known] or [paragraphs.column(name)] for name in names}

    def fact(name: str, row: int) -> str:
        values = [float(column[row]) for column in columns[name]]
        if name == "em":
            return f"EM {' → '.join(f'{value:.0f}' for value in values)} of {full}"
        return f"NLL {' → '.join(map(number_text, values))} nats per token"

    return [[fact(name, row) for name in names] for row in range(len(paragraphs))]


def _orders(paragraphs: Paragraphs, sides: list[Side]) -> list[dict[str, Any]]:
    """Ways to order the paragraphs, with the number of each that decides."""

    def mean(values: np.ndarray) -> list[float | int | None]:
        counts = np.isfinite(values).sum(1)
        return numbers(np.where(counts > 0, np.nansum(values, 1) / np.maximum(counts, 1), np.nan))

    def order(name: str, by: list[float | int | None] | None, largest: bool = True) -> dict[str, Any]:
        return {"name": name, "by": by, "largest": largest}

    about = sides[0].about
    found = [order("as given", None)]
    if len(sides) > 1:
        change = mean(np.abs(sides[1].about.values - about.values))
        found.append(order("largest difference", change))
    found += [
        order(f"highest mean {about.name}", mean(about.values)),
        order(f"lowest mean {about.name}", mean(about.values), False),
    ]
    scores = sides[0].scores
    em = scores.em.values if scores is not None else paragraphs.column("em") if paragraphs.has("em") else None
    if em is not None:
        found.append(order("highest EM", numbers(em)))
    if paragraphs.has("count"):
        found.append(order("highest count", numbers(paragraphs.column("count"))))
    return found
