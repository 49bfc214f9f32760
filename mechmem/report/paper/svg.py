"""Figures as SVG files, drawn by a browser: plotly has no other renderer."""

from __future__ import annotations

import html
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechmem.data.files import replacing
from mechmem.report.paper.drawing import Drawing
from mechmem.show.browser import browser, headless
from mechmem.show.embed import json_text_markup, script_markup
from mechmem.show.theme import template

WIDTH, SECONDS = 960, 300
# The figures' JSON is in the page; every finished SVG is written into it as text, which --dump-dom prints.
PAGE = """<!doctype html><meta charset="utf-8"><body><script>{plotly}</script>
<script type="application/json" id="figures">{figures}</script><script>
(async () => {{
  for (const [name, figure] of Object.entries(JSON.parse(document.getElementById("figures").textContent))) {{
    const place = document.createElement("pre");
    place.className = "svg";
    place.dataset.name = name;
    const size = {{format: "svg", width: {width}, height: figure.layout.height || 420}};
    const address = await Plotly.toImage(figure, size);
    place.textContent = decodeURIComponent(address.slice(address.indexOf(",") + 1));
    document.body.append(place);
  }}
}})();
</script>"""
FOUND = re.compile(r'<pre class="svg" data-name="([\w-]+)">(.*?)</pre>', re.DOTALL)


def write_svgs(folder: Path, drawings: Sequence[Drawing]) -> str | None:
    """Write NAME.svg of each figure.

    Args:
        folder: made if missing.
        drawings: with different names.

    Returns:
        None, or why there are no files, in words.
    """
    program = browser()
    if program is None:
        return "Chromium was not found, so no SVG files were drawn; install it and remove paper.html to draw them"
    with tempfile.TemporaryDirectory(prefix="mechmem-") as place:
        page = Path(place) / "figures.html"
        page.write_text(_page(drawings), encoding="utf-8")
        command = [*headless(program, Path(place) / "profile"), "--virtual-time-budget=60000", "--dump-dom"]
        try:
            answer = subprocess.run([*command, page.as_uri()], capture_output=True, timeout=SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            return f"{program} could not draw the SVG files ({type(error).__name__})"
    found = {name: html.unescape(text) for name, text in FOUND.findall(answer.stdout.decode("utf-8", "replace"))}
    for drawing in drawings:
        if drawing.name in found:
            with replacing(folder / f"{drawing.name}.svg") as temporary:
                temporary.write_text(found[drawing.name], encoding="utf-8")
    missing = [drawing.name for drawing in drawings if drawing.name not in found]
    return f"{program} did not draw {', '.join(missing)}" if missing else None


def _page(drawings: Sequence[Drawing]) -> str:
    figures = {drawing.name: json.loads(str(_for_paper(drawing.figure).to_json())) for drawing in drawings}
    text = json_text_markup(json.dumps(figures, allow_nan=False))
    return PAGE.format(plotly=script_markup(get_plotlyjs()), figures=text, width=WIDTH)


def _for_paper(figure: go.Figure) -> go.Figure:
    """On white, with its title."""
    shown = go.Figure(figure)
    return shown.update_layout(template=template(), paper_bgcolor="#ffffff", plot_bgcolor="#ffffff")
