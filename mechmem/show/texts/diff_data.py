"""What a page of continuations holds: the true text, and what each model writes, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from rapidfuzz.distance import Levenshtein

from mechmem.data.paragraphs import Paragraphs
from mechmem.show.colour_scale import Scale, number_text, scale_of
from mechmem.show.texts.coloured_text import Vocabulary, facts_of, numbers, reads_from_the_right
from mechmem.show.texts.text_svg import Text

# Paragraphs of the still picture.
STILL = 3


def page_data(
    paragraphs: Paragraphs, texts: dict[str, xr.Dataset], vocabulary: Vocabulary
) -> tuple[dict[str, Any], list[Text]]:
    """What the script reads, and the texts of the still picture.

    Args:
        paragraphs: with their true continuations.
        texts: what `measure.greedy_texts` gave for each model, the original first.
        vocabulary: where the texts' tokens are gathered.
    """
    every = np.concatenate(
        [array.values.ravel() for each in texts.values() for array in (each.token_nll, each.said_nll)]
    )
    scale = scale_of(every, blue_is_high=False)
    shown, still = [], []
    for row, known in enumerate(facts_of(paragraphs)):
        ids = paragraphs.tokens[row].tolist()
        places, labels = vocabulary.text(ids)
        one = {"facts": known, "tokens": places, "prefix": paragraphs.prefix_len, "rtl": reads_from_the_right(labels)}
        one["steps"] = [
            _step(each.isel(paragraph=row), ids, paragraphs.prefix_len, vocabulary) for each in texts.values()
        ]
        shown.append(one)
        if row < STILL:
            still += _still(one, labels, list(texts), scale, vocabulary)
    some = f"{len(paragraphs)} paragraph{'s' if len(paragraphs) > 1 else ''}"
    return {
        "title": f"Greedy continuations of {some}: {', '.join(texts)}"
        if len(texts) < 4
        else f"Greedy continuations of {some}",
        "steps": [{"name": name, "said": _mean(each, paragraphs.continuation_len)} for name, each in texts.items()],
        "full": paragraphs.continuation_len,
        "scale": scale.data(),
        "vocabulary": vocabulary.data(),
        "paragraphs": shown,
    }, still


def _step(text: xr.Dataset, ids: list[int], prefix_len: int, vocabulary: Vocabulary) -> dict[str, Any]:
    """What one model writes after one prefix."""
    said, true = text.said.values.tolist(), ids[prefix_len:]
    places, _ = vocabulary.text(ids[:prefix_len] + said)
    fresh = ["1"] * len(said)
    for part in Levenshtein.opcodes(true, said):
        if part.tag == "equal":
            fresh[part.dest_start : part.dest_end] = ["0"] * (part.dest_end - part.dest_start)
    differs = [place for place, (own, other) in enumerate(zip(said, true, strict=True)) if own != other]
    return {
        "said": places[prefix_len:],
        "said_nll": numbers(text.said_nll.values),
        "true_nll": numbers(text.token_nll.values),
        "fresh": "".join(fresh),
        "diverges": differs[0] if differs else None,
        "em": int(text.em),
        "distance": int(text.edit_distance),
        "nll": number_text(float(text.nll)),
    }


def _mean(texts: xr.Dataset, full: int) -> str:
    """One step's means over the paragraphs, in words."""
    em, distance, nll = (float(texts[name].mean()) for name in ("em", "edit_distance", "nll"))
    return f"mean EM {em:.1f} of {full}, edit distance {distance:.1f}, NLL {number_text(nll)} nats per token"


def _still(
    one: dict[str, Any], labels: list[str], names: list[str], scale: Scale, vocabulary: Vocabulary
) -> list[Text]:
    """One paragraph as the still picture draws it: the true text, the original's, and the last step's."""
    prefix, first, last = one["prefix"], one["steps"][0], one["steps"][-1]
    head = " · ".join(one["facts"])
    blank: list[float | int | None] = [None] * prefix
    quantity = "NLL, nats"
    found = [
        Text(
            f"{head} · true text, NLL of {names[-1]}", labels, blank + last["true_nll"], scale, quantity, "nats", prefix
        )
    ]
    for name, step in ((names[0], first), (names[-1], last)):
        words = f"{name}: EM {step['em']}, edit distance {step['distance']}, NLL {step['nll']} nats per token"
        said = [vocabulary.label(place) for place in step["said"]]
        found.append(Text(words, said, step["said_nll"], scale, quantity, "nats", 0, step["diverges"]))
    return found
