"""Attention patterns as SVG, for papers: one head's matrix with its tokens, or the grid of all heads."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

import numpy as np

from mechmem.model.head_names import head_name
from mechmem.show.colour_scale import css
from mechmem.show.patterns.attention_side import Side, grid_of
from mechmem.show.patterns.thumbnails import coloured, thumbnail
from mechmem.show.png import png_address
from mechmem.show.svg_text import FONT, xml_text

CELL, SPACE, THUMB = 11, 120, 54
# A cell below this would be white on paper.
LEAST = 0.004


def attention_svg(sides: Sequence[Side], names: Sequence[str], caption: str) -> tuple[str, int, int]:
    """The SVG text, its width and its height; two sides stand beside each other.

    Args:
        sides: of one paragraph, one or two.
        names: of the sides.
        caption: a line below.
    """
    one_head = len(sides[0].heads) == 1
    drawn = [_matrix(side) if one_head else _grid(side) for side in sides]
    width = sum(part[1] for part in drawn) + 20 * (len(drawn) - 1)
    height = max(part[2] for part in drawn) + 60
    parts, x = [], 0
    for side, name, (body, wide, _) in zip(sides, names, drawn, strict=False):
        said = f"{head_name(side.heads[0]) if one_head else f'{len(side.heads)} heads'}, {side.title}"
        heading = f"{said}, {name}" if len(drawn) > 1 else said
        parts.append(
            f'<g transform="translate({x} 24)"><text y="-8" font-size="13">{xml_text(heading)}</text>{body}</g>'
        )
        x += wide + 20
    words = f'<text x="0" y="{height - 8}" font-size="9" fill="#555">{xml_text(caption.split(";")[0])}.</text>'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{FONT}"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}{words}</svg>\n'
    )
    return svg, width, height


def _matrix(side: Side) -> tuple[str, int, int]:
    """Every cell that has a colour, with its numbers as a tooltip; tokens along both axes."""
    pattern, length = side.pattern[0], len(side.text)
    colours = coloured(pattern)
    cells = []
    for query, key in zip(*np.nonzero(pattern >= LEAST), strict=True):
        said = f"query {query} “{side.text[query]}”, key {key} “{side.text[key]}”: {pattern[query, key]:.3f}"
        cells.append(
            f'<rect x="{SPACE + key * CELL}" y="{SPACE + query * CELL}" width="{CELL}" height="{CELL}" '
            f'fill="{css(colours[query, key])}"><title>{xml_text(said)}</title></rect>'
        )
    labels = []
    for place, text in enumerate(side.text):
        middle = SPACE + place * CELL + CELL - 2
        label = xml_text(f"{text[:14]} {place}")
        labels.append(f'<text x="{SPACE - 4}" y="{middle}" text-anchor="end">{label}</text>')
        labels.append(f'<text transform="translate({middle} {SPACE - 4}) rotate(-90)">{label}</text>')
    size = SPACE + length * CELL
    frame = (
        f'<rect x="{SPACE}" y="{SPACE}" width="{length * CELL}" height="{length * CELL}" fill="none" stroke="#999"/>'
    )
    return (
        f'<g shape-rendering="crispEdges">{"".join(cells)}{frame}</g><g font-size="8">{"".join(labels)}</g>',
        size,
        size,
    )


def _grid(side: Side) -> tuple[str, int, int]:
    """A small image of every head, with its name."""
    columns, step = grid_of(side.heads)["columns"], THUMB + 16
    parts = []
    for number, (place, pattern) in enumerate(zip(side.heads, side.pattern, strict=True)):
        row, column = divmod(number, columns)
        address = quoteattr(png_address(coloured(thumbnail(pattern, len(pattern)))))
        parts.append(
            f'<g transform="translate({column * step} {row * step})">'
            f'<text y="10" font-size="9">{head_name(place)}</text>'
            f'<image y="13" width="{THUMB}" height="{THUMB}" href={address} style="image-rendering: pixelated"/>'
            f'<rect y="13" width="{THUMB}" height="{THUMB}" fill="none" stroke="#999" stroke-width="0.5"/></g>'
        )
    lines = -(-len(side.heads) // columns)
    return "".join(parts), max(columns * step, 360), lines * step
