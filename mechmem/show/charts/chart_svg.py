"""Figures as SVG, drawn by Chromium: plotly has no other renderer."""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go

from mechmem.data.errors import InputError
from mechmem.show.browser import browser, headless
from mechmem.show.charts.plotly_script import plotly_markup
from mechmem.show.embed import json_text_markup
from mechmem.show.theme import page_colour, template

WIDTH, HEIGHT, SECONDS = 960, 420, 300
# The figures' JSON is in the page; every finished SVG is written into it as text, which --dump-dom prints.
PAGE = """<!doctype html><meta charset="utf-8"><head></head><body>{plotly}
<script type="application/json" id="figures">{figures}</script><script>
(async () => {{
  const plotly = await window.mechmemPlotly;
  for (const [name, figure] of Object.entries(JSON.parse(document.getElementById("figures").textContent))) {{
    const place = document.createElement("pre");
    place.className = "svg";
    place.dataset.name = name;
    const size = {{format: "svg", width: {width}, height: figure.layout.height || {height}}};
    const address = await plotly.toImage(figure, size);
    place.textContent = decodeURIComponent(address.slice(address.indexOf(",") + 1));
    document.body.append(place);
  }}
}})();
</script>"""
FOUND = re.compile(r'<pre class="svg" data-name="([\w-]+)">(.*?)</pre>', re.DOTALL)


def drawn_figures(figures: Mapping[str, go.Figure], *, dark: bool = False) -> dict[str, str]:
    """The SVG text of each figure that the browser drew, 960 pixels wide.

    Args:
        figures: by names of ASCII letters, digits, hyphens.
        dark: draw them for a dark page.

    Raises:
        InputError: there is no Chromium, or it could not open the page.
    """
    program = browser()
    if program is None:
        raise InputError("Chromium was not found; charts as SVG, PDF and PNG need it, .html needs none")
    with tempfile.TemporaryDirectory(prefix="mechmem-") as place:
        page = Path(place) / "figures.html"
        page.write_text(_page(figures, dark), encoding="utf-8", errors="backslashreplace")
        command = [*headless(program, Path(place) / "profile"), "--virtual-time-budget=60000", "--dump-dom"]
        try:
            answer = subprocess.run([*command, page.as_uri()], capture_output=True, timeout=SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise InputError(f"{program} could not draw the SVG files ({type(error).__name__})") from error
    return {name: html.unescape(text) for name, text in FOUND.findall(answer.stdout.decode("utf-8", "replace"))}


def _page(figures: Mapping[str, go.Figure], dark: bool) -> str:
    shown = {name: json.loads(str(_on_page(figure, dark).to_json())) for name, figure in figures.items()}
    text = json_text_markup(json.dumps(shown, allow_nan=False))
    return PAGE.format(plotly=plotly_markup(), figures=text, width=WIDTH, height=HEIGHT)


def _on_page(figure: go.Figure, dark: bool) -> go.Figure:
    """With its title, on the page's colour."""
    colour = page_colour(dark=dark)
    return go.Figure(figure).update_layout(template=template(dark=dark), paper_bgcolor=colour, plot_bgcolor=colour)
