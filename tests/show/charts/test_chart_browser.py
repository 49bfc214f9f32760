"""Charts in a real browser: they draw and answer the pointer, text from outside does nothing, nothing is loaded."""

import html
import json
import sys
from types import SimpleNamespace

import pytest

import mechmem as mm
from mechmem.show.charts import plotly_script
from mechmem.show.charts.plotly_script import plotly_markup
from mechmem.show.picture import POLICY
from mechmem.show.theme import empty_figure, plotly_text
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of
from tests.show.charts.test_chart import Kernel

pytestmark = needs_chromium

PROBE = probe_of("""
const all = () => [...document.querySelectorAll(".mechmem")];
const drawn = () => document.readyState !== "loading" && all().length && all().every((one) => one.dataset.ready);
const hopeless = () => document.readyState !== "loading" && (!window.mechmemPlotly || !window.DecompressionStream);
const told = () => hopeless() && all().some((one) => one.shadowRoot?.querySelector(".line:not([hidden])"));
// Unpacking goes on beside the page, and the browser's clock here does not wait for it: only work takes real time.
for (let tries = 0; tries < 2500 && !drawn() && !told(); tries += 1) {
  for (let part = 0; part < 2e6; part += 1) seen.work = Math.sqrt(part);
  await pause(20);
}
const host = all()[0], root = host.shadowRoot, plot = host.querySelector(".js-plotly-plot");
seen.count = all().filter((one) => one.dataset.ready).length;
seen.words = [...root.querySelectorAll("h2, p")].filter((one) => !one.hidden).map((one) => one.textContent);
seen.dark = host.dataset.dark;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
if (plot) {
  seen.ink = getComputedStyle(plot.querySelector(".xtick text")).fill;
  seen.ticks = [...plot.querySelectorAll(".xtick text")].map((one) => one.textContent);
  seen.width = plot.querySelector(".main-svg").getBoundingClientRect().width / innerWidth;
  // Hover over the second bar, as a pointer does.
  const bar = plot.querySelectorAll(".point path")[1].getBoundingClientRect();
  const drag = plot.querySelector(".nsewdrag");
  const at = { bubbles: true, clientX: bar.left + bar.width / 2, clientY: bar.top + bar.height / 2 };
  drag.dispatchEvent(new MouseEvent("mouseover", at));
  drag.dispatchEvent(new MouseEvent("mousemove", at));
  await pause(300);
  seen.hover = [...plot.querySelectorAll(".hoverlayer text")].map((one) => one.textContent).join(" ");
}
seen.pwned = window.pwned === 1;
seen.intruders = document.querySelectorAll("[onload], [onerror], .mechmem a[href]").length;
seen.global = window.Plotly === undefined ? "none" : window.Plotly.version;
""")


def chart(title="Paragraphs by set", names=("memorized", "other"), theme="auto"):
    figure = empty_figure(title, 300)
    figure.add_bar(x=[plotly_text(name, 500) for name in names], y=[7, 3], hovertemplate="%{x}: %{y}<extra></extra>")
    return mm.show.Chart(figure, "How many there are.\nmodel tiny, seed 0", theme)


def page_of(*fragments, policy=True):
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">' if policy else ""
    body = "\n".join(fragments)
    return f'<!doctype html><html><head><meta charset="utf-8">{meta}</head><body style="margin:0">{body}</body></html>'


@pytest.mark.parametrize("size", ["1400,900", "400,900"])
def test_a_chart_draws_and_says_its_numbers(tmp_path, size):
    seen, requests = open_page(page_of(chart().html), tmp_path, PROBE, size=size)
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0 and seen["count"] == 1
    assert seen["words"] == ["Paragraphs by set", "How many there are.", "model tiny, seed 0"]
    assert seen["ticks"] == ["memorized", "other"] and seen["hover"] == "other: 3"
    assert seen["dark"] == "false" and 0.85 < seen["width"] <= 1


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_names_are_shown_and_do_nothing(tmp_path, policy):
    names = (HOSTILE, "</script><script>window.pwned=1</script>{{7*7}}שלום 😀")
    page = page_of(chart(plotly_text(HOSTILE, 900), names).html, policy=policy)
    seen, requests = open_page(page, tmp_path, PROBE)
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert seen["words"][0] == " ".join(HOSTILE.split()) and names[1] in seen["hover"]


def test_the_detector_notices_a_missing_escape(tmp_path):
    tells = "<img/src=x onerror=document.documentElement.dataset.probe='{\"pwned\":true}'>"
    page = page_of(chart(plotly_text(f"</script>{tells}", 900)).html, policy=False)
    broken = page.replace("\\u003c", "<").replace("\\u003e", ">")
    seen, _ = open_page(broken.replace('\\"', '"'), tmp_path, "<script></script>")
    assert seen["pwned"]


def test_charts_before_and_after_the_script_draw(tmp_path):
    charts = [chart(f"Chart {number}").fragment() for number in range(40)]
    page = page_of(*charts[:20], plotly_markup(), *charts[20:])
    assert len(page) < 4_000_000 and page.count("const packed =") == 1
    seen, requests = open_page(page, tmp_path, PROBE)
    assert seen["count"] == 40 and seen["errors"] == [] and requests == []


def test_another_plotly_of_the_page_stays(tmp_path):
    foreign = "<script>window.Plotly = { version: 'foreign' }; window.define = () => {}; define.amd = true;</script>"
    seen, _ = open_page(page_of(foreign, chart().html), tmp_path, PROBE)
    assert seen["global"] == "foreign" and seen["count"] == 1 and seen["errors"] == []


def test_without_plotly_a_line_says_what_to_do(tmp_path):
    seen, _ = open_page(page_of(chart().fragment()), tmp_path, PROBE)
    assert seen["count"] == 0 and seen["errors"] == []
    assert "mm.show.load_plotly()" in seen["words"][1]


def test_an_old_browser_says_so(tmp_path):
    old = "<script>delete window.DecompressionStream;</script>"
    seen, _ = open_page(page_of(old, chart().html), tmp_path, PROBE)
    assert "too old for the charts" in seen["words"][1] and seen["errors"] == []


@pytest.mark.parametrize(
    ("mark", "theme", "dark"),
    [
        ('document.body.dataset.jpThemeLight = "false"', "auto", "true"),
        ('document.body.className = "vscode-dark"', "auto", "true"),
        ('document.body.className = "vscode-dark"', "light", "false"),
        ("", "dark", "true"),
    ],
    ids=["JupyterLab", "VS Code", "light in VS Code", "dark on a page"],
)
def test_the_theme_is_the_notebooks_or_as_asked(tmp_path, mark, theme, dark):
    seen, _ = open_page(page_of(f"<script>{mark}</script>", chart(theme=theme).html), tmp_path, PROBE)
    assert seen["dark"] == dark and seen["errors"] == []
    assert seen["ink"] == ("rgb(213, 219, 227)" if dark == "true" else "rgb(43, 51, 61)")


def test_a_changed_theme_is_followed(tmp_path):
    later = "<script>setTimeout(() => { document.body.dataset.jpThemeLight = 'false'; }, 2000);</script>"
    slow = PROBE.replace("const host", "await pause(4000); const host")
    light = "<script>document.body.dataset.jpThemeLight = 'true';</script>"
    seen, _ = open_page(page_of(light, later, chart().html), tmp_path, slow)
    assert seen["dark"] == "true" and seen["ink"] == "rgb(213, 219, 227)"


def test_in_a_frame_it_draws_as_well(tmp_path):
    inner = chart().save(tmp_path / "chart.html").read_text(encoding="utf-8").replace("<head>", "<head>" + PROBE)
    outer = """<!doctype html><html><head></head><body><iframe srcdoc="{}" width="800" height="500"></iframe>
    <script>const again = setInterval(() => {{
      const probe = document.querySelector("iframe").contentDocument?.documentElement.dataset.probe;
      if (probe) {{ document.documentElement.dataset.probe = probe; clearInterval(again); }}
    }}, 50);</script></body></html>"""
    seen, requests = open_page(outer.format(html.escape(inner)), tmp_path, "")
    assert seen["count"] == 1 and seen["hover"] == "other: 3" and requests == [] and json.dumps(seen["errors"]) == "[]"


def test_a_notebook_of_forty_charts_opens_with_all_of_them(tmp_path, monkeypatch):
    shell = Kernel()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(plotly_script, "_carrier", plotly_script._Carrier())
    outputs = [shell.run(chart(f"Chart {number}"), f"cell {number}") for number in range(40)]
    # The first cell ran again when all others had.
    outputs[0] = shell.run(chart("Chart 0"), "cell 0")
    page = page_of(*outputs)
    assert len(page) < 4_000_000 and page.count("const packed =") == 1
    seen, requests = open_page(page, tmp_path, PROBE)
    assert seen["count"] == 40 and seen["errors"] == [] and requests == []


def test_a_chart_shown_twice_is_drawn_twice(tmp_path):
    same = chart().fragment()
    seen, _ = open_page(page_of(plotly_markup(), same, same), tmp_path, PROBE)
    assert seen["count"] == 2 and seen["errors"] == []
