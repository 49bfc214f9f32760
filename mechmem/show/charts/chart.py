"""A plotly figure that a notebook displays offline in its own light or dark theme, and that is saved as one file."""

from __future__ import annotations

import html
import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io.json as plotly_json
from markupsafe import escape

from mechmem.data.errors import InputError
from mechmem.show.charts.chart_svg import HEIGHT, WIDTH, drawn_figures
from mechmem.show.charts.plotly_script import plotly_here, plotly_markup
from mechmem.show.fragment import Theme, fragment
from mechmem.show.picture import save_picture
from mechmem.show.svg_text import xml_text
from mechmem.show.theme import FONT, page_colour, template

MARGIN = {"l": 56, "r": 12, "t": 14, "b": 48}
STILL = "an interactive chart, shown where scripts run, as in a trusted notebook."


@dataclass(frozen=True, eq=False)
class Chart:
    """A chart of a result: a picture whose plotly figure can be changed further. A notebook displays it.

    The notebook holds plotly.js once, in the cell that first shows a chart; later charts use it. JupyterLab, VS Code
    and exported pages show it offline; in Colab every cell carries it.

    Attributes:
        figure: the plotly figure; what changes it changes the chart.
        caption: what is shown, with unit and what higher means; a line below it names the model.
        theme: "auto" follows the notebook or the browser; "light"; "dark".
    """

    figure: go.Figure
    caption: str
    theme: Theme | str = "auto"

    @property
    def title(self) -> str:
        """The figure's title, without markup."""
        return html.unescape(re.sub(r"<[^>]*>", "", self._layout.title.text or "Chart"))

    @property
    def html(self) -> str:
        """A fragment that stands anywhere by itself, with plotly.js."""
        return f"{plotly_markup()}{self.fragment()}"

    @property
    def _layout(self) -> Any:
        # Plotly's attributes are made at run time.
        return self.figure.layout

    @property
    def _height(self) -> int:
        return int(self._layout.height or HEIGHT)

    def __repr__(self) -> str:
        return f"Chart({self.title!r}): a notebook displays it; .figure is plotly's; .save('chart.html') writes it"

    def _repr_html_(self) -> str:
        return f"{plotly_here()}{self.fragment()}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What a notebook keeps: HTML and a line of text.

        Plotly's own type is left out: front ends would prefer it, and show the figure without its caption, in one
        theme, by whichever plotly.js they bring.
        """
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}

    def fragment(self) -> str:
        """The chart as HTML for a page that has `plotly_script.plotly_markup()` somewhere, once."""
        parts = self.figure.to_plotly_json()
        layout = {key: value for key, value in parts["layout"].items() if key not in ("title", "template")}
        layout["margin"] = MARGIN | layout.get("margin", {})
        themes = {mode: template(dark=mode == "dark").to_plotly_json() for mode in ("light", "dark")}
        chosen = self._layout.template.to_plotly_json()
        if chosen not in ({}, themes["light"]):
            layout["template"] = chosen
        figure = json.loads(str(plotly_json.to_json_plotly({"data": parts["data"], "layout": layout})))
        data = figure | {
            "title": self.title,
            "caption": self.caption,
            "height": self._height,
            "theme": self.theme,
            "templates": themes,
        }
        return fragment("ChartView", ("chart",), data, f"<p>{escape(self.title)}: {STILL}</p>")

    def save(self, path: str | Path) -> Path:
        """Write one file that needs no other: .html (the same as in a notebook), .svg, .pdf or .png (still pictures).

        Args:
            path: its ending decides. HTML needs nothing; SVG, PDF and PNG are drawn by Chromium.

        Returns:
            The path.

        Raises:
            InputError: another ending, a place that cannot be written, or a still picture without Chromium.
        """
        return save_picture(path, self.title, lambda: self.html, self.draw_svg)

    def draw_svg(self) -> tuple[str, int, int]:
        """The chart as SVG with its caption, its width and its height.

        Raises:
            InputError: there is no Chromium, or it could not draw.
        """
        dark = self.theme == "dark"
        drawn = drawn_figures({"chart": self.figure}, dark=dark).get("chart")
        if drawn is None:
            raise InputError("Chromium did not draw the chart; write it as .html")
        lines = [line for part in self.caption.split("\n") for line in textwrap.wrap(part, 150) or [""]]
        top = self._height
        height = top + 16 * len(lines) + 16
        words = "".join(
            f'<text x="12" y="{top + 16 * (number + 1)}">{xml_text(line)}</text>' for number, line in enumerate(lines)
        )
        size = f'width="{WIDTH}" height="{height}"'
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {height}">'
            f'<rect {size} fill="{page_colour(dark=dark)}"/>{drawn}'
            f'<g font-family=\'{FONT}\' font-size="12" fill="{"#98a3b0" if dark else "#5b6672"}">{words}</g></svg>\n'
        )
        return svg, WIDTH, height
