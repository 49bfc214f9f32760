"""Heatmaps as SVG, one below the other: every cell says its number, and no browser is needed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np

from mechmem.show.colour_scale import FRAME, css
from mechmem.show.maps.heatmap import Axis, Heatmap
from mechmem.show.maps.heatmap_colours import cell_pixels, legend, shades
from mechmem.show.packed_numbers import four_digits, three_digits
from mechmem.show.png import png_address
from mechmem.show.svg_text import FONT, xml_text

ROW, GAP, LETTER = 16, 26, 5.0
# (at most so many columns, the width of each).
WIDTHS = ((16, 26.0), (64, 16.0), (220, 11.0), (10**9, 3.0))
WORD_WIDTH, LONGEST, LEAST_WIDTH = 44.0, 14, 460
SYMBOLS = {"changed": "▲", "diverges": "◆"}
GREY = "#8a929c"


def heatmaps_svg(
    heatmaps: Sequence[Heatmap], title: str, notes: Sequence[str], *, still: bool = False
) -> tuple[str, int, int]:
    """The SVG text, its width and its height.

    Args:
        heatmaps: stand below each other.
        title: the first line.
        notes: lines below.
        still: cells become one small image, without their numbers.
    """
    parts, y, width = [], 34, LEAST_WIDTH
    for heatmap in heatmaps:
        body, wide, high = _heatmap(heatmap, still=still)
        parts.append(f'<g transform="translate(0 {y})">{body}</g>')
        y, width = y + high + GAP, max(width, wide)
    lines = [line for note in notes for line in textwrap.wrap(note, int(width / LETTER))]
    for line in lines:
        parts.append(f'<text x="0" y="{y}" font-size="9.5" fill="#555">{xml_text(line)}</text>')
        y += 13
    height = y + 4
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONT}"><rect width="100%" height="100%" fill="#fff"/>'
        f'<text y="16" font-size="14" font-weight="600">{xml_text(title)}</text>{"".join(parts)}</svg>\n'
    )
    return svg, width, height


def _heatmap(heatmap: Heatmap, *, still: bool) -> tuple[str, int, int]:
    lines, count = len(heatmap.rows.labels), len(heatmap.columns.labels)
    wide = WORD_WIDTH if heatmap.words is not None else next(width for most, width in WIDTHS if count <= most)
    left = 14 + LETTER * max((min(len(label), LONGEST) for label in heatmap.rows.labels), default=0)
    bar = _legend(heatmap)
    below, depth = _columns(heatmap.columns, wide, lines * ROW)
    cells = _image(heatmap, wide) if still else _cells(heatmap, wide)
    rows = "".join(
        f'<text x="-5" y="{row * ROW + 12}" text-anchor="end" font-size="9">{xml_text(_short(label))}</text>'
        for row, label in enumerate(heatmap.rows.labels)
    )
    frame = f'<rect width="{count * wide:g}" height="{lines * ROW}" fill="none" stroke="#999"/>'
    words = f"{heatmap.title}; rows: {heatmap.rows.title}, columns: {heatmap.columns.title}"
    body = (
        f'<text y="0" font-size="12">{xml_text(words)}</text><g transform="translate({left:g} 6)">{bar}</g>'
        f'<g transform="translate({left:g} 40)">{cells}{frame}{rows}{below}</g>'
    )
    return (
        body,
        int(left + max(count * wide, LEAST_WIDTH - left, LETTER * 1.2 * len(words))) + 6,
        40 + lines * ROW + depth,
    )


def _cells(heatmap: Heatmap, wide: float) -> str:
    """A rectangle with its number for each cell that was measured."""
    values, pixels = four_digits(heatmap.values), cell_pixels(heatmap)
    ink = np.abs(np.nan_to_num(shades(heatmap))) > 0.55
    signed = heatmap.kind == "diverging"
    parts = []
    for row, column in np.ndindex(values.shape):
        value = float(values[row, column])
        told = f"{heatmap.cell(row, column)}: " + (
            "not measured" if value != value else f"{three_digits(value, signed=signed)} {heatmap.unit}".strip()
        )
        if heatmap.low is not None and heatmap.high is not None and value == value:
            ends = (three_digits(float(end[row, column]), signed=signed) for end in (heatmap.low, heatmap.high))
            told += f" [{', '.join(ends)}]"
        told += "".join(f"; {also.label} {three_digits(float(also.values[row, column]))}" for also in heatmap.also)
        word = "" if heatmap.words is None else heatmap.words[row][column]
        told += f"; “{word}”" if word else ""
        parts.append(
            f'<rect x="{column * wide:g}" y="{row * ROW}" width="{wide:g}" height="{ROW}" '
            f'fill="{css(pixels[row, column])}"><title>{xml_text(told)}</title></rect>'
        )
        if word:
            colour = "#fff" if ink[row, column] else "#2b333d"
            shown = xml_text(word if len(word) <= 8 else word[:7] + "…")
            parts.append(
                f'<text x="{column * wide + 2:g}" y="{row * ROW + 11}" font-size="8" fill="{colour}">{shown}</text>'
            )
    return f'<g shape-rendering="crispEdges">{"".join(parts)}</g>' + _frames(heatmap, wide)


def _frames(heatmap: Heatmap, wide: float) -> str:
    return "".join(
        f'<rect x="{column * wide + 0.75:g}" y="{row * ROW + 0.75}" width="{wide - 1.5:g}" height="{ROW - 1.5}" '
        f'fill="none" stroke="{FRAME}" stroke-width="1.5"/>'
        for row, column in heatmap.framed
    )


def _image(heatmap: Heatmap, wide: float) -> str:
    lines, count = heatmap.values.shape
    address = quoteattr(png_address(cell_pixels(heatmap)))
    size = f'width="{count * wide:g}" height="{lines * ROW}" preserveAspectRatio="none"'
    return f'<image {size} href={address} style="image-rendering: pixelated"/>' + _frames(heatmap, wide)


def _columns(axis: Axis, wide: float, top: int) -> tuple[str, int]:
    """Labels, marks and groups below the columns, and their height."""
    count, parts, depth = len(axis.labels), [], 12
    if axis.marks:
        for place, mark in axis.marks.items():
            middle = (place + 0.5) * wide
            symbol = SYMBOLS.get(mark, "▲")
            parts.append(
                f'<text x="{middle:g}" y="{top + 9}" text-anchor="middle" font-size="8" fill="{FRAME}">{symbol}</text>'
            )
        depth += 8
    every = 1 if wide >= 9 else -(-10 // int(wide))
    longest = 0
    for place in range(0, count, every):
        label = _short(axis.labels[place])
        longest = max(longest, len(label))
        x, y = (place + 0.5) * wide + 3, top + depth - 8
        turned = f'transform="translate({x:g} {y}) rotate(-90)"'
        parts.append(f'<text {turned} text-anchor="end" font-size="8">{xml_text(label)}</text>')
    depth += int(longest * LETTER)
    for name, first in axis.groups:
        x = f"{first * wide:g}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{top + depth}" stroke="{GREY}" stroke-width="0.7"/>')
        parts.append(f'<text x="{first * wide + 3:g}" y="{top + depth + 4}" font-size="9">{xml_text(name)}</text>')
    if axis.begins is not None:
        x = f"{axis.begins * wide:g}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="-4" y2="{top + depth}" stroke="#e58a1f" stroke-width="1.5"/>')
    return "".join(parts), depth + (12 if axis.groups else 0)


def _legend(heatmap: Heatmap) -> str:
    """The colour bar with its least, middle and largest value."""
    strip = Heatmap("", np.linspace(-1, 1, 60)[None], heatmap.rows, heatmap.columns, "", "diverging", span=(-1.0, 1.0))
    if heatmap.kind == "diverging":
        side = 1 if heatmap.ends()[1] > 0 else -1
        strip = Heatmap("", strip.values * side, strip.rows, strip.columns, "", "diverging", span=(-1.0, 1.0))
    else:
        strip = Heatmap("", np.linspace(0, 1, 60)[None], strip.rows, strip.columns, "", "plain", span=(0.0, 1.0))
    address = quoteattr(png_address(cell_pixels(strip)))
    signed = heatmap.kind == "diverging"
    labels = ""
    for (place, value), anchor in zip(legend(heatmap), ("start", "middle", "end"), strict=True):
        number = three_digits(value, signed=signed)
        labels += f'<text x="{place * 180:g}" y="24" font-size="8.5" text-anchor="{anchor}">{number}</text>'
    unit = xml_text(heatmap.unit)
    return (
        f'<image y="4" width="180" height="9" preserveAspectRatio="none" href={address}/>'
        f'<rect y="4" width="180" height="9" fill="none" stroke="#999" stroke-width="0.5"/>{labels}'
        f'<text x="188" y="12" font-size="9">{unit}</text>'
    )


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
