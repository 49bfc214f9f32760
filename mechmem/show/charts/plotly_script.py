"""plotly.js for charts: packed, once in a page, and once in a notebook however many charts it has."""

from __future__ import annotations

import base64
import gzip
import os
import sys
from functools import cache
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mechmem.data.notebook import notebook_shell
from mechmem.show.embed import script_markup
from mechmem.show.fragment import script_file
from mechmem.show.picture import Picture


@cache
def plotly_markup() -> Markup:
    """A script element with all of plotly.js: about 1.9 MB, which the browser unpacks.

    After it `window.mechmemPlotly` is a promise of the library. In a browser that cannot unpack it, the promise is
    rejected with a sentence.
    """
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
    code = script_markup(script_file("plotly_unpack.js"))
    return Markup(f'<script>(() => {{\nconst packed = "{packed}";\n{code}}})();</script>')


def load_plotly() -> Picture:
    """Put plotly.js into this cell's output: for charts whose notebook lost the cell that had it.

    A notebook holds plotly.js once, in the cell that first showed a chart. Show this picture in a cell near the top if
    that cell was deleted.

    Returns:
        A `Picture` that draws nothing.
    """
    shell = notebook_shell()
    if shell is not None:
        _carrier.watch(shell)
        _carrier.cell = _cell(shell)
    note = '<p style="font: 12px system-ui, sans-serif; opacity: 0.7">plotly.js for the charts of this notebook</p>'
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"></svg>'
    return Picture("plotly.js for the charts of this notebook", f"{note}{plotly_markup()}", lambda: (svg, 8, 8))


def plotly_here() -> Markup:
    """plotly.js where the cell that runs now has to carry it, and nothing where another cell of the notebook does.

    Outside of notebooks every place carries it, and where each output is a frame of its own (Colab, Databricks).
    """
    shell = notebook_shell()
    if shell is None:
        return plotly_markup()
    _carrier.watch(shell)
    if _carrier.cell is not None:
        return Markup("")
    _carrier.cell = _cell(shell)
    return plotly_markup()


class _Carrier:
    """Which cell carries plotly.js; the notebook loses it when the cell runs again, whatever it then shows."""

    def __init__(self) -> None:
        self.cell: str | None = None
        self._watched: Any = None

    def watch(self, shell: Any) -> None:
        """Be told when a cell runs."""
        if self._watched is not shell:
            self._watched, self.cell = shell, None
            shell.events.register("pre_run_cell", self._runs)

    def _runs(self, _: Any) -> None:
        if _own_frames() or self.cell == _cell(self._watched):
            self.cell = None


_carrier = _Carrier()


def _cell(shell: Any) -> str:
    """Which cell runs: its id, and its text in a front end that gives no ids."""
    parent = shell.get_parent()
    known = parent.get("metadata", {}).get("cellId")
    return str(known or parent.get("content", {}).get("code", ""))


def _own_frames() -> bool:
    return "google.colab" in sys.modules or "DATABRICKS_RUNTIME_VERSION" in os.environ
