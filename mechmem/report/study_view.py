"""The linked view of a study: a table of its paragraphs; the text, loss, heatmaps and heads of the chosen one."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from mechmem.data.errors import InputError
from mechmem.report.sections.where import most_needed
from mechmem.report.study_files import StudyFiles
from mechmem.report.view_kept import kept_of
from mechmem.report.view_rows import labels_and_losses, rows_data, shown_rows
from mechmem.show.colour_scale import Scale
from mechmem.show.fragment import fragment, script_file
from mechmem.show.picture import Picture
from mechmem.show.texts.text_svg import Text, text_svg

PARTS = ("attention", "text", "heatmap")
CAPTION = (
    "EM: tokens of the continuation that the model gets right before its first mistake; NLL: mean loss of the "
    "continuation in nats per token, lower is better known. In the text, darker orange is a higher loss; the line is "
    "where the continuation begins, the frame the first token that the model gets wrong. In the heatmaps blue restores "
    "what a replaced token broke."
)
# A loss of ten nats has the full colour, as in the page.
SCALE = Scale(10.0, signed=False, blue_is_high=False)
QUANTITY = "loss of each token, nats"
STILL_ROWS, STILL_CHARACTERS = 8, 160


def study_view(study: StudyFiles, *, theme: str = "auto") -> Picture:
    """The view, with its script.

    Args:
        study: what its folder holds.
        theme: "auto" follows the notebook or the browser; "light"; "dark".

    Raises:
        InputError: no paragraph was scored yet.
    """
    if study.paragraphs is None or study.column("em") is None:
        raise InputError("got a study without scored paragraphs; need stage 'scan': `mechmem run` goes on where it was")
    kept, axes = kept_of(study)
    # Those with both a heatmap and attention come first.
    rows = shown_rows(study, sorted(kept, key=lambda row: (-len(kept[row].keys() & {"maps", "attention"}), row)))
    manifest = study.manifest or {}
    model = (manifest.get("model") or {}).get("name", "unknown")
    data: dict[str, Any] = {
        "title": "Paragraphs, one at a time",
        "caption": CAPTION,
        "facts": f"Model {model}, seed {manifest.get('seed', 'unknown')}.",
        "theme": theme,
        "rows": rows_data(study, rows),
        "all": len(study.paragraphs),
        "kept": {str(place): kept[row] for place, row in enumerate(rows.tolist()) if row in kept},
        "axes": axes,
        "styles": {name: script_file("shared.css") + script_file(f"{name}.css") for name in (*PARTS, "study")},
        "missing": _missing(study),
        "head": most_needed(study.heads)[0] if study.heads is not None else "",
    }
    page = fragment("StudyView", (*PARTS, "study"), data, _still(study, rows))
    return Picture(data["title"], page, lambda: _svg(study, rows))


def _missing(study: StudyFiles) -> str:
    """What this study's files do not hold, because an earlier version made them."""
    if "token_nll" in study.column_names():
        return ""
    return "This study was made by an earlier version: its files do not hold the loss of each token."


def _still(study: StudyFiles, rows: np.ndarray) -> str:
    """The first rows as a plain table."""
    lines = "".join(
        f"<tr><td>{escape(str(identity))}</td><td>{em}</td><td>{nll}</td><td>{escape(text)}</td></tr>"
        for identity, em, nll, text in _first(study, rows)
    )
    return (
        f"<table><thead><tr><th>Id</th><th>EM</th><th>NLL</th><th>Text</th></tr></thead><tbody>{lines}</tbody></table>"
    )


def _first(study: StudyFiles, rows: np.ndarray) -> list[tuple[Any, int, str, str]]:
    assert study.paragraphs is not None
    em, nll = study.column("em"), study.column("nll")
    texts = [study.column(name) for name in ("prefix_text", "continuation_text")]
    assert em is not None
    found = []
    for row in rows[:STILL_ROWS].tolist():
        text = "".join(str(part[row]) for part in texts if part is not None)[:STILL_CHARACTERS]
        found.append((study.paragraphs.ids[row], int(em[row]), "" if nll is None else f"{nll[row]:.3f}", text))
    return found


def _svg(study: StudyFiles, rows: np.ndarray) -> tuple[str, int, int]:
    """The first paragraphs as text coloured by loss, as far as both are known."""
    assert study.paragraphs is not None
    em = study.column("em")
    assert em is not None
    prefix, full = study.paragraphs.prefix_len, study.paragraphs.continuation_len
    texts = []
    for row, labels, losses in zip(rows, *labels_and_losses(study, rows[:STILL_ROWS]), strict=False):
        values = [None] * prefix + [float(loss) if np.isfinite(loss) else None for loss in losses]
        title = f"Paragraph {study.paragraphs.ids[row]}: EM {em[row]} of {full}"
        diverges = prefix + int(em[row]) if em[row] < full else None
        texts.append(
            Text(title, labels, values, SCALE, "loss of each token, nats", "nats", begins=prefix, diverges=diverges)
        )
    return text_svg(texts, "Paragraphs of the study, coloured by the loss of each token", CAPTION)
