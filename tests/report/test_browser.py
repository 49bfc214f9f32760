"""The report in a real browser: it draws everything, text from outside does nothing, and no request leaves.

A content security policy would hide a missing escape, so the hostile study is opened without it as well; and each way
out is opened on purpose once, to see that the detector sees it.
"""

import re

import pytest

from mechmem.report.page import CONTENT_SECURITY_POLICY
from mechmem.report.study_report import write_report
from tests.browser import HOSTILE, needs_chromium, open_page

pytestmark = needs_chromium

# Stands first in the page, where no broken markup can swallow it. Opens every fold so that all views are drawn, shows
# hover labels and tooltips, and writes what it sees on the page.
PROBE = """<script>
window.errors = [];
window.addEventListener("error", (event) => window.errors.push(String(event.message)));
window.addEventListener("securitypolicyviolation", (event) => window.errors.push("policy: " + event.blockedURI));
const all = (selector) => [...document.querySelectorAll(selector)];
const count = (selector) => all(selector).length;
const touch = async () => {
  for (const fold of all("details")) fold.open = true;
  const plotly = await window.mechmemPlotly;
  for (const plot of all(".js-plotly-plot")) {
    plotly.Fx.hover(plot, [{ curveNumber: 0, pointNumber: plot.data[0].type === "heatmap" ? [0, 0] : 0 }]);
  }
  for (const view of all(".mechmem[data-ready]")) {
    for (const token of [...view.shadowRoot.querySelectorAll(".token")].filter((_, index) => index % 45 === 0)) {
      for (const kind of ["mouseover", "mouseenter"]) token.dispatchEvent(new MouseEvent(kind, { bubbles: true }));
    }
  }
};
// Elements of the page and of all views in it.
const deep = (root, selector) => [...root.querySelectorAll(selector), ...[...root.querySelectorAll("*")]
  .filter((part) => part.shadowRoot).flatMap((part) => deep(part.shadowRoot, selector))];
const look = () => ({
  pwned: window.pwned === 1,
  errors: window.errors,
  plots: count(".js-plotly-plot"),
  drawn: count(".js-plotly-plot .main-svg"),
  hovers: count(".hoverlayer .hovertext"),
  data: count("script.plot-data"),
  views: count(".mechmem"),
  ready: count(".mechmem[data-ready]"),
  tokens: deep(document, ".mechmem .token, .view .token").length,
  intruders: deep(document.querySelector("main") || document,
    "img:not([src^='data:image/png']), [onload], [onerror], a[href^=javascript]").length,
  rows: count(".passages tbody tr"),
  sideways: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  wide: all("main > *, .blocks > *").filter((part) => part.scrollWidth > part.clientWidth + 1).map((part) => part.id),
  text: document.querySelector(".passages .prefix")?.textContent,
});
// On a busy machine a page of many figures takes its time; a page without any is done at once.
const drawn = () => count(".js-plotly-plot .main-svg") >= count("script.plot-data")
  && count(".mechmem[data-ready]") >= count(".mechmem") && document.readyState === "complete";
const settle = async () => {
  const pause = (time) => new Promise((go) => setTimeout(go, time));
  for (let tries = 0; tries < 60 && !drawn(); tries += 1) { await pause(500); await touch(); }
  for (let again = 0; again < 3; again += 1) { await pause(700); await touch(); }
  await pause(1000);
};
settle().catch((error) => window.errors.push(String(error))).then(() => {
  document.documentElement.dataset.probe = JSON.stringify(look());
});
</script>"""


def browse(page, folder, *, size="1300,2000"):
    return open_page(page, folder, PROBE, size=size)


def without_policy(page: str) -> str:
    stripped = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert stripped != page
    return stripped


@pytest.fixture(scope="module")
def hostile_page(make_study, tmp_path_factory) -> str:
    return write_report(make_study(tmp_path_factory.mktemp("hostile"), HOSTILE)).read_text(encoding="utf-8")


def assert_drawn(seen: dict) -> None:
    assert seen["plots"] == seen["data"] >= 12
    assert seen["drawn"] >= seen["plots"] and seen["hovers"] >= 5
    assert seen["ready"] == seen["views"] >= 2
    assert seen["rows"] >= 20 and seen["errors"] == []


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_text_is_shown_and_does_nothing(hostile_page, tmp_path, policy):
    seen, requests = browse(hostile_page if policy else without_policy(hostile_page), tmp_path)
    assert not seen["pwned"] and seen["intruders"] == 0
    assert requests == []
    assert_drawn(seen)
    assert seen["text"].endswith(HOSTILE), "the text is shown as it is"


@pytest.mark.parametrize("size", ["1300,2000", "1000,1600", "500,1600"])
def test_the_report_is_drawn_and_nothing_is_wider_than_the_page(study_folder, tmp_path, size):
    seen, requests = browse(write_report(study_folder).read_text(encoding="utf-8"), tmp_path, size=size)
    assert_drawn(seen)
    assert requests == [] and seen["sideways"] <= 0 and seen["wide"] == []


def replaced(page: str, pairs: dict[str, str]) -> str:
    for old, new in pairs.items():
        assert old in page
        page = page.replace(old, new)
    return page


# Each undoes one escape: the detector must notice, or the tests above prove nothing.
BREAKS = {
    "data can end its script element": lambda page: replaced(page, {"\\u003c": "<", "\\u003e": ">"}),
    "text is markup": lambda page: replaced(page, {"&lt;": "<", "&gt;": ">", "&#34;": '"', "&#39;": "'"}),
}


@pytest.mark.parametrize("name", BREAKS)
def test_the_detector_notices_a_missing_escape(hostile_page, tmp_path, name):
    seen, requests = browse(BREAKS[name](without_policy(hostile_page)), tmp_path)
    assert seen["pwned"]
    assert any("leak.test" in request for request in requests)


def test_the_policy_alone_keeps_requests_inside(tmp_path):
    leak = '<img src="http://leak.test/a"><script>fetch("http://leak.test/b").catch(() => 0)</script>'
    for policy, expected in ((CONTENT_SECURITY_POLICY, False), ("img-src *", True)):
        meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        page = f"<!doctype html><html><head>{meta}</head><body>{leak}</body></html>"
        _, requests = browse(page, tmp_path)
        assert any("leak.test" in request for request in requests) is expected
