"""Charts: what a notebook keeps of them, which cell carries plotly.js, and what their files say."""

import builtins
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.charts import chart_svg, plotly_script
from mechmem.show.theme import empty_figure
from tests.browser import needs_chromium

CARRIER = "const packed ="


def chart(title="Paragraphs by set", theme="auto"):
    figure = empty_figure(title, 300)
    figure.add_bar(x=["memorized", "other"], y=[7, 3])
    return mm.show.Chart(figure, "How many there are.\nmodel tiny, seed 0", theme)


class Events:
    def __init__(self):
        self.callbacks = []

    def register(self, name, callback):
        assert name == "pre_run_cell"
        self.callbacks.append(callback)


class Kernel:
    """A notebook's kernel, as IPython shows it: cells run with an id or, in old front ends, with their text alone."""

    def __init__(self):
        self.kernel, self.events, self.parent = self, Events(), {}

    def get_parent(self):
        return self.parent

    def run(self, shown, cell=None, code="chart"):
        """What the cell's output holds."""
        self.parent = {"metadata": {} if cell is None else {"cellId": cell}, "content": {"code": code}}
        for callback in self.events.callbacks:
            callback(SimpleNamespace())
        return shown._repr_mimebundle_()["text/html"] if shown is not None else ""


@pytest.fixture
def kernel(monkeypatch):
    shell = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(plotly_script, "_carrier", plotly_script._Carrier())
    return shell


def test_the_first_cell_with_a_chart_carries_plotly(kernel):
    first, second = kernel.run(chart(), "a"), kernel.run(chart(), "b")
    assert CARRIER in first and CARRIER not in second and len(second) < 30_000
    # Two charts in one cell need one script.
    assert CARRIER not in chart()._repr_mimebundle_()["text/html"]


def test_the_same_cell_run_again_carries_it_again(kernel):
    kernel.run(chart(), "a")
    assert CARRIER in kernel.run(chart(), "a")
    # The cell was changed: it no longer shows a chart, so the next one that does carries the script.
    kernel.run(None, "a", "1 + 1")
    assert CARRIER in kernel.run(chart(), "b") and CARRIER not in kernel.run(chart(), "c")


def test_cells_without_ids_are_known_by_their_text(kernel):
    assert CARRIER in kernel.run(chart(), code="one")
    assert CARRIER not in kernel.run(chart(), code="two") and CARRIER in kernel.run(chart(), code="one")


def test_a_cell_carries_it_on_request(kernel):
    kernel.run(chart(), "a")
    kernel.run(None, "top")
    assert CARRIER in mm.show.load_plotly()._repr_html_()
    # Now the first cell need not.
    assert CARRIER not in kernel.run(chart(), "a") and CARRIER in kernel.run(chart(), "top")


def test_in_colab_every_cell_carries_it(kernel, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert all(CARRIER in kernel.run(chart(), cell) for cell in "abc")


def test_outside_of_notebooks_every_chart_carries_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert CARRIER in chart()._repr_html_() and CARRIER in chart().html
    monkeypatch.delitem(sys.modules, "IPython")
    assert CARRIER in chart()._repr_html_()


def test_forty_charts_stay_below_three_megabytes(kernel):
    pages = [kernel.run(chart(f"set {number}"), f"cell {number}") for number in range(40)]
    assert sum(map(len, pages)) < 3_000_000
    names = [re.findall(r'<div id="(mechmem-[\w-]+)"', page)[0] for page in pages]
    assert len(set(names)) == 40


def test_the_figure_in_the_page_is_the_figure():
    shown = chart("a < b & </script>")
    shown.figure.update_layout(title="Changed", height=333).add_scatter(x=[1], y=[float("nan")])
    page = shown.fragment()
    data = json.loads(re.findall(r'type="application/json"[^>]*>(.*?)</script>', page)[0])
    assert data["data"][0]["x"] == ["memorized", "other"] and data["data"][1]["y"] == [None]
    assert data["title"] == "Changed" and data["height"] == 333 and set(data["templates"]) == {"light", "dark"}
    assert "template" not in data["layout"] and "title" not in data["layout"]
    shown.figure.update_layout(template="plotly_dark")
    assert '"template"' in shown.fragment().split("<script>")[0]


def test_a_chart_says_what_it_is():
    assert chart("a &lt; b").title == "a < b" and repr(chart()).startswith("Chart('Paragraphs by set')")
    assert set(chart()._repr_mimebundle_()) == {"text/html", "text/plain"}
    assert mm.show.Chart(go.Figure(), "").title == "Chart"


def test_without_chromium_the_error_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(chart_svg, "browser", lambda: None)
    for ending in ("svg", "pdf", "png"):
        with pytest.raises(InputError, match="Chromium was not found; charts as SVG, PDF and PNG need it"):
            chart().save(tmp_path / f"chart.{ending}")
    assert chart().save(tmp_path / "chart.html").stat().st_size < 2_100_000
    assert [path.name for path in tmp_path.iterdir()] == ["chart.html"]


@needs_chromium
def test_the_svg_is_valid_and_shows_the_words(tmp_path):
    root = ElementTree.parse(chart("a &lt; b &amp; c").save(tmp_path / "chart.svg")).getroot()
    text = "".join(root.itertext())
    for words in ("a < b & c", "memorized", "How many there are.", "model tiny, seed 0"):
        assert words in text
    assert root.attrib["width"] == "960" and "#ffffff" in (tmp_path / "chart.svg").read_text(encoding="utf-8")
    dark = chart(theme="dark").draw_svg()[0]
    assert "#151a20" in dark and "#ffffff" not in dark


def test_the_module_needs_no_ipython(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("IPython"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert CARRIER in chart()._repr_html_()
