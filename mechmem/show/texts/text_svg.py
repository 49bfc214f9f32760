"""Coloured texts without a script: as SVG for papers, and as plain HTML for where scripts do not run."""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from mechmem.show.colour_scale import FRAME, Scale, css, number_text, short_text, text_colour
from mechmem.show.svg_text import FONT, xml_text

# Pixels of a letter of the fixed-width font, of a line, and of the picture.
CELL, LINE, WIDTH = 7.2, 22, 940
# Tokens of the plain HTML, which stands in every notebook beside the data.
PLAIN = 200


@dataclass(frozen=True)
class Text:
    """One text.

    Attributes:
        title: what it is, one line.
        labels: of its tokens.
        values: of its tokens; None: no value.
        scale: of the values.
        quantity: what the values are, with their unit: the legend.
        units: of the values.
        begins: where the continuation begins; None: nowhere.
        diverges: the token that is framed; None: none.
    """

    title: str
    labels: Sequence[str]
    values: Sequence[float | int | None]
    scale: Scale
    quantity: str
    units: str
    begins: int | None = None
    diverges: int | None = None


def still_texts(texts: Sequence[Text]) -> str:
    """The beginning of each text as HTML with its colours."""
    return "".join(f"<p><small>{html.escape(clean(text.title))}</small><br>{_plain(text)}</p>" for text in texts)


def text_svg(texts: Sequence[Text], title: str, caption: str) -> tuple[str, int, int]:
    """The SVG text, its width and its height: the texts below one another, every number as a tooltip.

    Args:
        texts: those that are drawn.
        title: a line above.
        caption: below; broken into lines.
    """
    parts, y = [f'<text y="16" font-size="15" font-weight="600">{xml_text(title)}</text>'], 26.0
    for text in {text.scale: text for text in texts}.values():
        parts.append(_legend(text, y))
        y += 24
    y += 10
    for text in texts:
        body, height = _drawn(text)
        parts.append(f'<g transform="translate(0 {y:g})">{body}</g>')
        y += height
    for line in textwrap.wrap(caption, int(WIDTH / 5.2), break_long_words=False, break_on_hyphens=False):
        parts.append(f'<text y="{y + 10:g}" font-size="10" fill="#555">{xml_text(line)}</text>')
        y += 14
    height = round(y + 16)
    size = f'width="{WIDTH + 20}" height="{height}" viewBox="-10 -4 {WIDTH + 20} {height}"'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" fill="#2b333d">'
        f'<rect x="-10" y="-4" width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
    return svg, WIDTH + 20, height


def clean(text: str) -> str:
    """Text without what HTML and UTF-8 have no form for."""
    return html.unescape(xml_text(text))


def _plain(text: Text) -> str:
    spans = []
    for label, value in list(zip(text.labels, text.values, strict=True))[:PLAIN]:
        said = html.escape(clean(label))
        if value is None:
            spans.append(said)
            continue
        colour = text.scale.colour(value)
        spans.append(f'<span style="background:{css(colour)};color:{css(text_colour(colour))}">{said}</span>')
    return "".join(spans) + ("…" if len(text.labels) > PLAIN else "")


def _drawn(text: Text) -> tuple[str, float]:
    """One text with its title, and its height."""
    parts = [f'<text y="12" font-size="11" fill="#555">{xml_text(text.title)}</text>']
    x, y = 0.0, 20.0
    widths = [max(1, _cells(label)) * CELL for label in text.labels]
    for pos, (label, value, wide) in enumerate(zip(text.labels, text.values, widths, strict=True)):
        if pos == text.begins:
            x += 4
        if x + _word(text.labels, widths, pos) > WIDTH or x + wide > WIDTH:
            x, y = 0.0, y + LINE
        if pos == text.begins:
            parts.append(f'<path d="M{x - 2:g} {y:g}v18" stroke="#2b333d" stroke-width="2"/>')
        parts.append(_token(text, pos, label, value, x, y, wide))
        x += wide
        if label.rstrip(" ").endswith("↵"):
            x, y = 0.0, y + LINE
    return "".join(parts), y + LINE + 14


def _word(labels: Sequence[str], widths: Sequence[float], pos: int) -> float:
    """The width of the word that begins at a token; of a token in the middle of one, nothing."""
    if pos and not labels[pos].startswith((" ", "·")):
        return 0.0
    stop = pos + 1
    while stop < len(labels) and not labels[stop].startswith((" ", "·", "↵")):
        stop += 1
    whole = sum(widths[pos:stop])
    # What does not fit a line is broken anywhere.
    return whole if whole <= WIDTH / 2 else 0.0


def _token(text: Text, pos: int, label: str, value: float | None, x: float, y: float, wide: float) -> str:
    said = "no value" if value is None else f"{number_text(value)} {text.units}".strip()
    colour = (255, 255, 255) if value is None else text.scale.colour(value)
    ink = "#6b7580" if value is None else css(text_colour(colour))
    frame = f' stroke="{FRAME}" stroke-width="2"' if pos == text.diverges else ""
    words, lead = label.strip(" "), len(label) - len(label.lstrip(" "))
    start, long = x + lead * CELL, max(1, _cells(words)) * CELL
    letters = (
        f'<text x="{start:.1f}" y="{y + 13:g}" font-family="monospace" font-size="12" fill="{ink}" '
        f'textLength="{long:.1f}" lengthAdjust="spacingAndGlyphs">{xml_text(words)}</text>'
        if words
        else ""
    )
    return (
        f"<g><title>{pos} “{xml_text(label)}”: {said}</title>"
        f'<rect x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="18" fill="{css(colour)}"{frame}/>{letters}</g>'
    )


def _legend(text: Text, y: float) -> str:
    """A few colours with their numbers."""
    scale = text.scale
    if scale.is_match and not scale.signed:
        steps = [(1.0, "the first choice"), (0.0, "another token is")]
    else:
        shares = (-1.0, -0.5, 0.0, 0.5, 1.0) if scale.signed else (0.0, 0.25, 0.5, 0.75, 1.0)
        values = [scale.value(share) for share in shares]
        said = [short_text(float(f"{value:.6g}")) for value in values]
        signs = ["+" if scale.signed and value > 0 else "" for value in values]
        steps = [(value, sign + text) for value, sign, text in zip(values, signs, said, strict=True)]
    parts, wide = [], 100 if scale.is_match and not scale.signed else 46
    for number, (value, said) in enumerate(steps):
        colour = scale.colour(value)
        parts.append(
            f'<rect x="{number * wide}" y="{y:g}" width="{wide}" height="16" fill="{css(colour)}" stroke="#bbb"/>'
            f'<text x="{number * wide + wide / 2}" y="{y + 12:g}" font-size="10" text-anchor="middle" '
            f'fill="{css(text_colour(colour))}">{xml_text(said)}</text>'
        )
    parts.append(f'<text x="{len(steps) * wide + 6}" y="{y + 12:g}" font-size="11">{xml_text(text.quantity)}</text>')
    return "".join(parts)


def _cells(text: str) -> int:
    """Letters of a fixed-width font that a text takes: none for marks, two for Chinese and emoji."""
    marks = sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
