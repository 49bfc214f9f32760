import json
import re
import sys
from html import unescape
from subprocess import run

import numpy as np
import plotly.graph_objects as go
import pytest

from mechmem.report.page import (
    Answer,
    Card,
    Figure,
    Page,
    Passage,
    Section,
    Table,
    Verbatim,
    View,
    page_html,
    write_page,
)
from mechmem.show.embed import json_markup, script_markup
from mechmem.show.patterns.attention_picture import attention_picture
from mechmem.show.patterns.attention_side import Side

BAD = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>{{7*7}}\u2028&amp;"


def page(blocks=(), text="plain") -> Page:
    section = Section("one", text, text, [text], blocks, [text], [text], [text])
    answers = [Answer(text, text, "one")]
    return Page(text, text, [text], [Card(text, text, text)], [section], [(text, text)], answers, text)


def view(text="plain") -> View:
    side = Side(text, [(0, 0)], [text, text], None, 1, np.eye(2)[None])
    return View(text, attention_picture([[side]]), text, text)


@pytest.mark.parametrize("value", [BAD, {"<b>": [BAD, 1.5, None]}, ["\u2029", "é", 3]])
def test_embedded_json_says_the_same_and_has_no_way_out(value):
    text = str(json_markup(value))
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


def test_embedded_json_has_no_nan():
    assert json.loads(str(json_markup({"a": [float("nan"), float("inf"), 1.0]}))) == {"a": [None, None, 1.0]}


def test_a_library_cannot_end_its_own_script_element():
    safe = str(script_markup('x = "<script></script><!--";\n//# sourceMappingURL=x.map\ny = "\u2028"'))
    assert not re.search(r"</?script|<!--|sourceMappingURL", safe)
    assert "\u2028" in safe and safe.count("\n") == 1


def test_text_is_escaped_in_every_block():
    table = Table(BAD, [BAD], [[BAD], [Passage(BAD, BAD, BAD)]], BAD)
    figure = Figure(go.Figure(layout={"title": {"text": BAD}}), BAD, code=BAD)
    html = page_html(page([table, figure, view(BAD), Verbatim(BAD, BAD)], BAD))
    # The view's still picture is an image of its own.
    html = html.replace('<img alt="Attention of L0H0" src="data:image/png;base64,', "")
    assert "<script>window.pwned" not in html and "<img" not in html
    assert "{{7*7}}" in html and ">49<" not in html
    assert "&lt;img src=x onerror=" in html


def test_plotly_stands_in_the_page_once_and_only_if_used():
    nothing = page_html(page([view()]))
    both = page_html(page([Figure(go.Figure(), "r")] * 2 + [view("one"), view("two")]))
    assert len(nothing) < 120_000 and "const packed" not in nothing
    assert both.count("const packed") == 1 and both.count('class="plot-data"') == 2
    assert len(both) < 2_200_000
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids))


def test_nothing_in_the_page_is_loaded_from_elsewhere():
    html = page_html(page([Figure(go.Figure(), "r"), view()]))
    markup = unescape(re.sub(r"<script(?: [^>]*)?>.*?</script>", "", html, flags=re.DOTALL))
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", markup) and "@import" not in markup and "url(" not in markup
    assert "default-src 'none'" in markup and "unsafe-eval" not in markup and "connect-src 'none'" in markup


def test_a_figure_reads_back_with_its_values_and_without_its_title():
    figure = go.Figure(go.Bar(x=["a"], y=[2.0]), layout={"title": {"text": "Heading"}, "height": 123})
    html = page_html(page([Figure(figure, "how")]))
    data = re.search(r'class="plot-data" data-for="plot-1">(.*?)</script>', html)
    assert data is not None
    parts = json.loads(data[1])
    assert parts["data"][0]["x"] == ["a"] and parts["layout"]["height"] == 123
    assert "title" not in parts["layout"] and "<h3>Heading</h3>" in html and "min-height: 123px" in html


def test_numbers_are_sorted_as_numbers():
    html = page_html(page([Table("t", ["n", "x"], [[12345, float("nan")], [2, -0.5], [3, 1e-7]])]))
    assert 'data-key="12345">12,345<' in html and 'data-key="-0.5">−0.50<' in html
    assert 'data-key="-Infinity">–<' in html and ">1e−07<" in html


def test_the_page_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "report.html"
    assert write_page(target, page()) == target
    before = target.read_bytes()
    with pytest.raises(TypeError):
        write_page(target, page([Verbatim("t", 3), Table("t", ["a"], [3])]))  # pyright: ignore
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path):
    assert b"a\\ud800b" in write_page(tmp_path / "r.html", page(text="a\ud800b")).read_bytes()


def test_importing_the_page_builder_does_not_import_torch():
    code = "import mechmem.report.page, mechmem.report.figures, sys; assert 'torch' not in sys.modules"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
