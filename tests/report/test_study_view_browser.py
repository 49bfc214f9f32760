"""The linked view in a real browser: search, sort, click, keyboard; and the report it stands in, for all readers."""

import json
import re

import pytest

from mechmem.report.study_files import read_study
from mechmem.report.study_view import study_view
from mechmem.study.folder import open_study
from tests.axe import serious_violations
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of

pytestmark = needs_chromium

PROBE = probe_of("""
const view = () => [...document.querySelectorAll(".mechmem")].find((host) => host.shadowRoot?.querySelector(".rows"));
for (let tries = 0; tries < 400 && !view()?.dataset.ready; tries += 1) await pause(50);
const root = view().shadowRoot, find = (selector) => root.querySelector(selector);
const rows = () => [...root.querySelectorAll("tbody tr")];
const column = (name) => rows().map((row) => row.querySelector(`td.${name}`).textContent);
// The text, the heatmaps and the heads have roots of their own.
const parts = () => [...root.querySelectorAll("article div")].map((part) => part.shadowRoot).filter(Boolean);
const inside = (selector) => parts().flatMap((part) => [...part.querySelectorAll(selector)]);
const tokens = () => [...parts()[0].querySelectorAll(".token")];
const state = () => ({
  heading: find("article h3").textContent,
  said: find(".said").textContent,
  note: find(".note").textContent,
  chosen: rows().filter((row) => row.classList.contains("chosen")).map((row) => row.dataset.row),
  text: tokens().map((token) => token.textContent).join(""),
  maps: inside("canvas.heat").length,
  mapTitles: inside(".heatmap h3").map((title) => title.textContent),
  grids: inside("canvas.grid").length,
  head: inside(".right h3").map((title) => title.textContent).join(),
});
seen.first = state();
seen.found = find("output").textContent;
seen.kept = rows().filter((row) => row.querySelector(".kept")).length;
// Search, and only what holds the word is left.
const search = find("input");
search.value = WORD; search.dispatchEvent(new Event("input"));
seen.searched = { found: find("output").textContent, texts: rows().map((row) => row.textContent) };
search.value = ""; search.dispatchEvent(new Event("input"));
// Sort by EM, downwards first, then upwards.
const head = [...root.querySelectorAll("th")].find((cell) => cell.textContent === "EM");
head.firstChild.click();
seen.down = { em: column("em").map(Number), sort: head.getAttribute("aria-sort") };
head.firstChild.click();
seen.up = { em: column("em").map(Number), sort: head.getAttribute("aria-sort") };
// A click on a paragraph that no stage looked at, then arrow keys.
rows().find((row) => !row.querySelector(".kept")).click();
await pause(100);
seen.plain = state();
const button = find("tr.chosen .open");
button.focus();
button.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown", bubbles: true }));
await pause(100);
seen.keyed = {
  ...state(),
  focused: root.activeElement === find("tr.chosen .open"),
  stops: root.querySelectorAll('tbody [tabindex="0"]').length,
};
// Back to one with everything.
const choose = find("select");
choose.value = "kept"; choose.dispatchEvent(new Event("change"));
seen.onlyKept = rows().length;
rows().find((row) => row.dataset.row === "0").click();
await pause(200);
seen.again = state();
const token = tokens()[20];
if (token) {
  token.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
  seen.pointed = [...root.querySelectorAll(".note")].pop().textContent;
  token.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  seen.query = inside("output").map((part) => part.textContent).join();
}
seen.pwned = window.pwned === 1;
const deep = (part) => [...part.querySelectorAll("img, [onload], [onerror], a[href^=javascript]"),
  ...[...part.querySelectorAll("*")].filter((one) => one.shadowRoot).flatMap((one) => deep(one.shadowRoot))];
seen.intruders = deep(root).length;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
""")


def browse(page: str, folder, word: str, *, size: str = "1300,2000") -> tuple[dict, list[str]]:
    return open_page(page, folder, PROBE.replace("WORD", json.dumps(word).replace("<", "\\u003c")), size=size)


def test_search_sort_click_and_keys_move_everything_together(small_study, tmp_path):
    study = open_study(small_study.folder)
    word = str(study.paragraphs.column("source")[0])
    seen, requests = browse(study.show().save(tmp_path / "v.html").read_text(encoding="utf-8"), tmp_path, word)
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0
    patching = study.results["patching"]
    first = seen["first"]
    assert first["heading"] == f"Paragraph {patching.shown.values[0]}" and first["chosen"] == ["0"]
    assert first["maps"] == 2 and first["grids"] == 1 and "residual stream" in first["mapTitles"][0]
    row = int((study.paragraphs.ids == patching.shown.values[0]).argmax())
    assert first["text"] == "".join(study.paragraphs.column("token_label")[row])
    assert first["said"].startswith("With “") and "leaves the text at position" in first["said"]
    assert seen["found"] == f"{len(study.paragraphs)} paragraphs"
    of_kind = int((study.paragraphs.column("source") == word).sum())
    assert int(seen["searched"]["found"].split()[0]) >= of_kind > 0
    assert all(word.lower() in text.lower() for text in seen["searched"]["texts"][:5])
    assert seen["down"]["em"] == sorted(seen["down"]["em"], reverse=True) and seen["down"]["sort"] == "descending"
    assert seen["up"]["em"] == sorted(seen["up"]["em"]) and seen["up"]["sort"] == "ascending"
    assert seen["plain"]["maps"] == seen["plain"]["grids"] == 0 and "No stage patched" in seen["plain"]["note"]
    assert seen["keyed"]["heading"] != seen["plain"]["heading"] and seen["keyed"]["focused"]
    assert seen["keyed"]["stops"] == 1, "the table is one stop of the tab key"
    assert seen["onlyKept"] == seen["kept"] >= 2 and seen["again"]["text"] == first["text"]
    nll = study.paragraphs.column("token_label")[row][20]
    assert seen["pointed"].startswith(f"Position 20 “{nll}”, given") and seen["query"].startswith("20 ")


def test_a_study_of_an_earlier_version_is_shown(study_folder, tmp_path):
    page = study_view(read_study(study_folder)).save(tmp_path / "v.html").read_text(encoding="utf-8")
    seen, _ = browse(page, tmp_path, "rain", size="500,1800")
    assert seen["errors"] == [] and "earlier version" in seen["first"]["note"] and seen["first"]["maps"] == 2
    assert seen["sideways"] <= 0


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_text_is_shown_and_does_nothing(make_study, tmp_path, policy):
    folder = make_study(tmp_path / "study", HOSTILE)
    page = study_view(read_study(folder)).save(tmp_path / "v.html").read_text(encoding="utf-8")
    if not policy:
        page = page.replace("Content-Security-Policy", "Nothing")
    seen, requests = browse(page, tmp_path, "rain")
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert HOSTILE in seen["plain"]["text"] or HOSTILE in seen["first"]["text"]


@pytest.fixture(scope="module")
def report(small_study) -> str:
    return (small_study.folder / "report.html").read_text(encoding="utf-8")


def test_the_view_stands_in_the_report_and_works_there(report, tmp_path):
    assert len(report.encode()) < 4_000_000
    seen, requests = browse(report, tmp_path, "the")
    assert seen["errors"] == [] and requests == [] and seen["first"]["maps"] == 2 and seen["sideways"] <= 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_is_for_all_readers(report, tmp_path, dark):
    assert serious_violations(report, tmp_path, dark=dark) == []


def test_the_check_notices_an_image_without_words(tmp_path):
    body = "<main><img src='data:,'></main>"
    page = f"<!doctype html><html lang='en'><head><title>x</title></head><body>{body}</body></html>"
    assert any("image-alt" in line for line in serious_violations(page, tmp_path, dark=False))


def test_headings_go_down_step_by_step(report):
    markup = re.sub(r"<(script|style)(?: [^>]*)?>.*?</\1>", "", report, flags=re.DOTALL)
    levels = [int(level) for level in re.findall(r"<h([1-6])[ >]", markup)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
