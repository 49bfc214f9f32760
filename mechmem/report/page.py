"""One self-contained HTML page: the blocks that a report is made of, and the file with everything inside it."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import plotly.io.json as plotly_json
from markupsafe import Markup

from mechmem.data.files import replacing
from mechmem.show.charts.plotly_script import plotly_markup
from mechmem.show.embed import json_markup, json_text_markup, script_markup
from mechmem.show.picture import Picture
from mechmem.show.theme import template

# Nothing may be loaded or sent: were an escape ever missing, a paragraph's text could still not reach a server.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "connect-src 'none'; worker-src 'none'; object-src 'none'; frame-src 'none'; base-uri 'none'; form-action 'none'"
)
# Unique in a notebook, by process and number.
_VIEW_NAME = re.compile(r'^<div id="(mechmem-\d+-\d+)"')


@dataclass(frozen=True)
class Card:
    """A number of the summary: what it is, its value, and a note on it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """A sentence of the page's beginning: the question in a word or two, the answer, and the section that shows it."""

    label: str
    sentence: str
    section: str


@dataclass(frozen=True)
class Figure:
    """A figure and how to read it; its own title becomes the heading.

    Attributes:
        figure: what is drawn.
        reading: what it shows, with units and what higher means.
        wide: whether it gets the full width.
        code: the line that makes it in a notebook, where `study` is the opened study.
    """

    figure: go.Figure
    reading: str
    wide: bool = True
    code: str = ""


@dataclass(frozen=True)
class Passage:
    """A table cell with a paragraph: what was given, what follows in the text, what the model said if it differs."""

    prefix: str
    continuation: str
    said: str = ""


Cell = str | int | float | Passage | None


@dataclass(frozen=True)
class Table:
    """Rows under a heading, folded away unless `opened`. Every column can be sorted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    opened: bool = False

    @property
    def passages(self) -> bool:
        """Whether rows hold paragraphs, which need the page's whole width."""
        return any(isinstance(cell, Passage) for row in self.rows for cell in row)


@dataclass(frozen=True)
class View:
    """A picture of `mechmem.show` that answers to clicks, with a heading and how to read it."""

    title: str
    picture: Picture
    reading: str
    code: str = ""


@dataclass(frozen=True)
class Verbatim:
    """Text shown letter by letter, folded away."""

    title: str
    text: str


Block = Figure | Table | View | Verbatim


@dataclass(frozen=True)
class Section:
    """A question, its answer and what the answer rests on.

    Attributes:
        name: the anchor, a word of ASCII letters.
        title: a few words, for the table of contents too.
        question: what is asked.
        answer: sentences with numbers; the first stands out.
        blocks: figures, tables, views, in order.
        reading: how to read the section, for a newcomer.
        missing: what has not been run, a sentence each.
        limits: what the figures do not show, a sentence each.
    """

    name: str
    title: str
    question: str
    answer: Sequence[str]
    blocks: Sequence[Block] = ()
    reading: Sequence[str] = ()
    missing: Sequence[str] = ()
    limits: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """Everything on the page.

    Attributes:
        title: the heading, and the browser's title.
        lead: one or two sentences under it.
        facts: short facts on one line: model, corpus, date.
        cards: the summary.
        sections: in order.
        terms: terms and their meaning, folded away.
        answers: what the page begins with, a sentence each.
        basis: what the answers rest on, a line below them.
        view: what stands between the answers and the sections.
    """

    title: str
    lead: str
    facts: Sequence[str]
    cards: Sequence[Card]
    sections: Sequence[Section]
    terms: Sequence[tuple[str, str]] = ()
    answers: Sequence[Answer] = ()
    basis: str = ""
    view: View | None = None


def write_page(path: str | Path, page: Page) -> Path:
    """Write the page as one HTML file that loads nothing, whole or not at all; returns the path.

    All text is escaped. The script of plotly stands in the file once, and only if a figure needs it.
    """
    html = page_html(page)
    path = Path(path)
    with replacing(path) as temporary:
        # A lone surrogate, which JSON can carry, has no UTF-8 form: it is shown as its escape.
        temporary.write_bytes(html.encode("utf-8", "backslashreplace"))
    return path


def page_html(page: Page) -> str:
    """The page as HTML text."""
    files = resources.files("mechmem.report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
    )
    blocks = [block for section in page.sections for block in section.blocks]
    has_figures = any(isinstance(block, Figure) for block in blocks)
    own_script = (files / "page.js").read_text(encoding="utf-8")
    html = environment.get_template("page.html.jinja").render(
        page=page,
        policy=CONTENT_SECURITY_POLICY,
        style=Markup((files / "page.css").read_text(encoding="utf-8")),
        libraries=[plotly_markup()] * has_figures,
        script=script_markup(own_script),
        templates=json_markup({mode: template(dark=mode == "dark").to_plotly_json() for mode in ("light", "dark")}),
        kind=lambda block: type(block).__name__,
        figure_json=_figure_json,
        figure_title=lambda figure: figure.layout.title.text or "",
        picture=_picture(),
        cell=_cell,
    )
    # A browser replaces a NUL and turns a carriage return into a line feed. In scripts neither is left.
    return html.replace("\0", "\\x00").replace("\r", "&#13;")


def _picture() -> Callable[[Picture], Markup]:
    """What gives pictures as HTML, numbered in their order on the page, so that equal results give equal bytes."""
    count = itertools.count(1)

    def numbered(picture: Picture) -> Markup:
        name = _VIEW_NAME.search(picture.html)
        return Markup(picture.html if name is None else picture.html.replace(name[1], f"view-{next(count)}"))

    return numbered


def _figure_json(figure: go.Figure) -> Markup:
    """The figure without its title, which is the page's heading, and its template, which follows the page's colours."""
    parts: dict[str, Any] = figure.to_dict()
    layout = {key: value for key, value in parts["layout"].items() if key not in ("template", "title")}
    layout["margin"] = {"l": 56, "r": 12, "t": 14, "b": 48}
    text = plotly_json.to_json_plotly({"data": parts["data"], "layout": layout})
    return json_text_markup(str(text))


def _cell(value: Cell) -> dict[str, Any]:
    """What the template needs of a cell: the text shown, the key to sort by and whether it is a number."""
    if isinstance(value, Passage):
        return {"passage": value, "number": False, "key": "", "text": ""}
    if value is None or isinstance(value, float | np.floating) and not np.isfinite(value):
        return {"passage": None, "number": True, "key": "-Infinity", "text": "–"}
    if isinstance(value, int | np.integer):
        return {"passage": None, "number": True, "key": str(int(value)), "text": f"{int(value):,}"}
    if isinstance(value, float | np.floating):
        return {"passage": None, "number": True, "key": repr(float(value)), "text": decimal(float(value))}
    return {"passage": None, "number": False, "key": "", "text": str(value)}


def decimal(value: float) -> str:
    """Two decimals where they say something, three digits otherwise; a true minus sign."""
    text = f"{value:.2f}" if value == 0 or 0.1 <= abs(value) < 1e5 else f"{value:.3g}"
    return text.replace("-", "−")
