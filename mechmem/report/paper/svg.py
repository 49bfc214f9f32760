"""Figures of the repeated study as SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mechmem.data.errors import InputError
from mechmem.data.files import replacing
from mechmem.report.paper.drawing import Drawing
from mechmem.show.charts.chart_svg import drawn_figures


def write_svgs(folder: Path, drawings: Sequence[Drawing]) -> str | None:
    """Write NAME.svg of each figure.

    Args:
        folder: made if missing.
        drawings: with different names.

    Returns:
        None, or why there are no files, in words.
    """
    try:
        found = drawn_figures({drawing.name: drawing.figure for drawing in drawings})
    except InputError as error:
        return f"{error}, so no SVG files were drawn; remove paper.html to draw them"
    for drawing in drawings:
        if drawing.name in found:
            with replacing(folder / f"{drawing.name}.svg") as temporary:
                temporary.write_text(found[drawing.name], encoding="utf-8")
    missing = [drawing.name for drawing in drawings if drawing.name not in found]
    return f"the browser did not draw {', '.join(missing)}" if missing else None
