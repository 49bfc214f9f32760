"""The paragraphs of a study as its linked view lists them: a bounded number, with tokens and the loss of each."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mechmem.report.study_files import StudyFiles
from mechmem.show.embed import packed_bytes

# Paragraphs and tokens in one view; more would make a page of several megabytes.
MOST_ROWS, MOST_TOKENS = 3000, 300_000
# One byte holds 255 times the square root of a share of this many nats: off by at most 2 % from 0.01 nats on.
MOST_NATS, LEVELS = 20.0, 255
COLUMNS = {"id": "Id", "source": "Kind", "count": "Seen", "set": "Set", "em": "EM", "nll": "NLL"}


def shown_rows(study: StudyFiles, kept: list[int]) -> Int[np.ndarray, " listed"]:
    """Which paragraphs are listed, and in which order: first those that stages looked at, then by EM.

    Where not all fit, memorized ones have up to two thirds of the room; the others are taken evenly over all EM.

    Args:
        study: what its folder holds.
        kept: rows of which a heatmap or attention was kept.
    """
    assert study.paragraphs is not None
    count, length = study.paragraphs.tokens.shape
    room = max(0, min(MOST_ROWS, MOST_TOKENS // length) - len(kept))
    em = study.column("em")
    # Near-duplicates stand beside each other.
    order = np.arange(count) if em is None else np.lexsort((study.paragraphs.clusters, -em))
    rest = order[~np.isin(order, kept)]
    full = np.isin(rest, study.members("memorized"))
    if len(rest) > room:
        first = _evenly(rest[full], max(2 * room // 3, room - int((~full).sum())))
        rest = np.concatenate([first, _evenly(rest[~full], room - len(first))])
    return np.concatenate([np.array(kept, int), rest]).astype(int)


def _evenly(rows: Int[np.ndarray, " row"], most: int) -> Int[np.ndarray, " chosen"]:
    """At most so many of these rows, spread over them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int))]


def rows_data(study: StudyFiles, rows: Int[np.ndarray, " row"]) -> dict[str, Any]:
    """What the page reads of these paragraphs."""
    assert study.paragraphs is not None
    columns = []
    for name, label in COLUMNS.items():
        values = study.paragraphs.ids if name == "id" else study.column(name)
        if values is not None:
            columns.append({"name": name, "label": label} | _column(values[rows], name))
    greedy, em = study.column("greedy_text"), study.column("em")
    full = study.paragraphs.continuation_len
    said = {}
    if greedy is not None and em is not None:
        said = {str(place): str(greedy[row]) for place, row in enumerate(rows) if em[row] < full and greedy[row]}
    content = {"columns": columns, "said": said, **_texts(study, rows)}
    return {
        "packed": packed_bytes(json.dumps(content, separators=(",", ":"), allow_nan=False).encode()),
        "count": len(rows),
        "length": study.paragraphs.tokens.shape[1],
        "prefix": study.paragraphs.prefix_len,
        "nats": MOST_NATS,
        **_numbers(study, rows),
    }


def _column(values: np.ndarray, name: str) -> dict[str, Any]:
    if values.dtype.kind == "f":
        return {"numbers": [None if value != value else round(float(value), 4) for value in values]}
    if values.dtype.kind in "iu" and name != "id":
        return {"numbers": [int(value) for value in values]}
    words, places = np.unique(values.astype(str), return_inverse=True)
    return {"words": words.tolist(), "places": places.tolist()}


def _texts(study: StudyFiles, rows: Int[np.ndarray, " row"]) -> dict[str, Any]:
    """Labels of the tokens that occur; without them, as older studies are, the two parts of each text."""
    if study.column_names() >= {"token_label"}:
        labels, _ = _labels(study, rows)
        return {"labels": labels}
    parts = [study.column(name) for name in ("prefix_text", "continuation_text")]
    if parts[0] is None or parts[1] is None:
        text = study.column("text")
        return {"texts": [["" if text is None else str(text[row]), ""] for row in rows]}
    return {"texts": [[str(part[row]) for part in parts if part is not None] for row in rows]}


def _numbers(study: StudyFiles, rows: Int[np.ndarray, " row"]) -> dict[str, Any]:
    """Places of the labels, two bytes each or four, and the loss of each token, one byte each; as far as known."""
    found: dict[str, Any] = {}
    if study.column_names() >= {"token_label"}:
        labels, places = _labels(study, rows)
        wide = 2 if len(labels) < 2**16 else 4
        planes = places.astype(f"<u{wide}").reshape(-1).view(np.uint8)
        found |= {"tokens": packed_bytes(planes.tobytes()), "wide": wide}
    if study.column_names() >= {"token_nll"}:
        found["losses"] = packed_bytes(levels_of(_rows_of(study, "token_nll", rows)).tobytes())
    return found


def levels_of(nats: Float[np.ndarray, "row pos"]) -> np.ndarray:
    """Losses as bytes: 255 times the square root of their share of 20 nats."""
    return np.rint(LEVELS * np.sqrt(np.clip(np.nan_to_num(nats), 0, MOST_NATS) / MOST_NATS)).astype(np.uint8)


def labels_and_losses(study: StudyFiles, rows: Int[np.ndarray, " row"]) -> tuple[list[list[str]], np.ndarray]:
    """Labels of the tokens of these paragraphs, and the loss of each continuation token, NaN where it is not known."""
    assert study.paragraphs is not None
    losses = np.full((len(rows), study.paragraphs.continuation_len), np.nan)
    if study.column_names() >= {"token_nll"}:
        losses = _rows_of(study, "token_nll", rows)
    if study.column_names() >= {"token_label"}:
        return _rows_of(study, "token_label", rows).tolist(), losses
    return [[f" {token}" for token in study.paragraphs.tokens[int(row)].tolist()] for row in rows], losses


def _labels(study: StudyFiles, rows: Int[np.ndarray, " row"]) -> tuple[list[str], Int[np.ndarray, "row pos"]]:
    texts = _rows_of(study, "token_label", rows)
    words, places = np.unique(texts, return_inverse=True)
    return words.tolist(), places.reshape(texts.shape)


def _rows_of(study: StudyFiles, name: str, rows: Int[np.ndarray, " row"]) -> np.ndarray:
    """A column of lists, of these rows alone."""
    assert study.paragraphs is not None and study.paragraphs.table is not None
    return np.array(study.paragraphs.table.select(rows.tolist())[name][:])
