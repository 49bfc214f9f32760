"""The view of attention in a real browser: it draws, it answers to clicks, and text from outside does nothing."""

import numpy as np
import pytest
import xarray as xr

import mechmem as mm
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of, ready_in_page_and_frame

pytestmark = needs_chromium

PROBE = probe_of("""
const wait = async () => { while (!document.querySelector(".mechmem[data-ready]")) await pause(20); };
await wait();
seen.opened = performance.now();
const root = document.querySelector(".mechmem").shadowRoot, find = (selector) => root.querySelector(selector);
const move = (target, kind, x, y) => {
  const box = target.getBoundingClientRect();
  target.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: box.left + x, clientY: box.top + y }));
};
seen.heading = find("h3").textContent;
const grid = find(".grid"), matrix = find(".matrix"), size = matrix.getBoundingClientRect().width;
const length = root.querySelectorAll(".token").length;
seen.length = length;
seen.text = [...root.querySelectorAll(".token")].map((token) => token.firstChild.textContent);
// The second head of the second line: the margin is 26 pixels.
const step = (grid.getBoundingClientRect().width - 26) / COLUMNS;
move(grid, "mousemove", 26 + 1.5 * step, 26 + 1.5 * step);
seen.note = find(".note").textContent;
move(grid, "click", 26 + 1.5 * step, 26 + 1.5 * step);
seen.chosen = find("h3").textContent;
grid.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
seen.moved = find("h3").textContent;
grid.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
move(matrix, "mousemove", (KEY + 0.5) * size / length, (QUERY + 0.5) * size / length);
seen.tip = find(".tip").innerText || find(".tip").textContent;
root.querySelectorAll(".token")[QUERY].click();
seen.details = [...root.querySelectorAll(".details li")].map((item) => item.textContent);
seen.where = find("output").textContent;
const side = [...root.querySelectorAll("select")].pop();
if (side) {
  side.value = String(side.options.length - 1);
  side.dispatchEvent(new Event("change"));
  await pause(100);
  move(matrix, "mousemove", (KEY + 0.5) * size / length, (QUERY + 0.5) * size / length);
  seen.difference = find(".tip").textContent;
}
seen.drawn = performance.now();
seen.pwned = window.pwned === 1;
seen.intruders = root.querySelectorAll("img, [onload], [onerror], a").length;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
""")


def probe(columns, query, key):
    return PROBE.replace("COLUMNS", str(columns)).replace("QUERY", str(query)).replace("KEY", str(key))


def page_of(picture, folder):
    return picture.save(folder / "view.html").read_text(encoding="utf-8")


def test_clicks_and_hovers_say_the_models_numbers(tiny_model, tiny_paragraphs, tmp_path):
    edited, _ = mm.edit_weights(tiny_model, {"W_Q": lambda weight: 0 * weight}, heads=["L1H1"])
    paragraphs, query, key = tiny_paragraphs[:1], 17, 6
    counts = np.arange(100)
    picture = mm.show.attention(tiny_model, paragraphs, compare=edited, counts=counts)
    seen, requests = open_page(page_of(picture, tmp_path), tmp_path, probe(3, query, key))
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0
    before, after = (
        mm.capture(model, paragraphs, sites="pattern").pattern[0, 1, 1].values for model in (tiny_model, edited)
    )
    assert (seen["heading"], seen["chosen"], seen["moved"]) == ("L0H0", "L1H1", "L1H0")
    tokens = paragraphs.tokens[0].tolist()
    assert seen["tip"].startswith(f"{before[query, key]:.3f}"[:4])
    assert f"query {query} “ {tokens[query]}”, {counts[tokens[query]]} in the corpus" in seen["tip"]
    assert f"key {key} “ {tokens[key]}”" in seen["tip"]
    strongest = int(before[query, : query + 1].argmax())
    assert f": {strongest} “ {tokens[strongest]}”" in seen["details"][0]
    assert seen["where"] == f"{query}  {tokens[query]}"
    change = 100 * (after - before)[query, key]
    said = float(seen["difference"].split(" pp")[0].replace("−", "-"))
    assert said == pytest.approx(change, abs=0.5) and abs(change) > 0.5
    first = before[1:, 0].mean()
    assert seen["note"].startswith("L1H1: ") and abs(float(seen["note"].split()[1]) / 100 - first) < 0.01


def capture_of(texts, heads=(2, 2), seed=0):
    """Random patterns of a text, as `capture` returns them."""
    length = len(texts)
    weights = np.tril(np.random.default_rng(seed).random((1, *heads, length, length)) ** 8)
    weights /= weights.sum(-1, keepdims=True)
    tokens = np.arange(length)[None]
    coords = {
        "paragraph": [0],
        "layer": np.arange(heads[0]),
        "head": np.arange(heads[1]),
        "query_pos": np.arange(length),
        "key_pos": np.arange(length),
        "key_token": (("paragraph", "key_pos"), tokens),
        "key_text": (("paragraph", "key_pos"), np.array([texts], dtype=object)),
    }
    return xr.Dataset({"pattern": (("paragraph", "layer", "head", "query_pos", "key_pos"), weights)}, coords)


IMAGE = "<img/src=x onerror=window.pwned=1>"
NASTY = ["</script>", IMAGE, "{{7*7}}", "שלום", "😀", "x" * 2000, "\u2028", "\0"]


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_tokens_are_shown_and_do_nothing(tmp_path, policy):
    texts = [*NASTY, *(HOSTILE[start : start + 39] for start in range(0, len(HOSTILE), 39)), HOSTILE]
    page = page_of(mm.show.attention(capture_of(texts)), tmp_path)
    if not policy:
        page = page.replace("Content-Security-Policy", "Nothing")
    seen, requests = open_page(page, tmp_path, probe(2, 5, 3))
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert seen["text"][:5] == NASTY[:5] and seen["text"][5] == "x" * 39 + "…"


def test_the_detector_notices_a_missing_escape(tmp_path):
    page = page_of(mm.show.attention(capture_of(NASTY)), tmp_path).replace("Content-Security-Policy", "Nothing")
    broken = page.replace("\\u003c", "<").replace("\\u003e", ">")
    # Data that ends its script element is markup: the image's handler runs, and there is no view.
    tells = "<img/src=x onerror=document.documentElement.dataset.probe='{\"pwned\":true}'>"
    broken = broken.replace(IMAGE, tells)
    seen, _ = open_page(broken, tmp_path, "<script></script>")
    assert seen["pwned"]


def test_a_grid_of_144_heads_is_small_and_1024_tokens_do_not_freeze(tmp_path):
    page = page_of(mm.show.attention(capture_of([f" w{place}" for place in range(100)], (12, 12))), tmp_path)
    assert len(page) < 3_000_000
    seen, _ = open_page(page, tmp_path, probe(12, 50, 20))
    assert seen["errors"] == [] and seen["chosen"] == "L1H1"
    long = page_of(mm.show.attention(capture_of([f" w{place}" for place in range(1024)], (1, 12))), tmp_path)
    seen, _ = open_page(long, tmp_path, probe(12, 1000, 20))
    assert seen["length"] == 1024 and seen["errors"] == []


def test_many_views_stand_in_one_page_and_in_frames(tiny_model, tiny_paragraphs, tmp_path):
    views = [mm.show.attention(tiny_model, tiny_paragraphs[row : row + 1]) for row in range(3)]
    assert ready_in_page_and_frame([view.html for view in views], tmp_path) == (2, 1)
