"""Coloured texts in a real browser: they are drawn, they answer to pointer and keys, and text from outside is inert."""

import json
import re

import numpy as np
import pytest
import torch

import mechmem as mm
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of
from tests.show.texts.hostile_texts import NASTY, text_of

pytestmark = needs_chromium

PROBE = probe_of("""
while (!document.querySelector(".mechmem[data-ready]")) await pause(20);
seen.opened = performance.now();
const root = document.querySelector(".mechmem").shadowRoot, find = (selector) => root.querySelector(selector);
const texts = [...root.querySelectorAll(".text")], tokens = [...texts[0].querySelectorAll(".token")];
const colour = (token) => token.style.background.replaceAll(" ", "");
seen.title = find("h2").textContent;
seen.texts = texts.length;
seen.labels = tokens.map((token) => token.textContent);
seen.colours = tokens.map(colour);
seen.begins = tokens.findIndex((token) => token.classList.contains("begins"));
seen.diverges = tokens.findIndex((token) => token.classList.contains("diverges"));
seen.columns = [...root.querySelectorAll("article")[0].querySelectorAll("h4")].map((one) => one.textContent);
seen.direction = getComputedStyle(texts[0]).direction;
const lines = () => [...find(".tip").children].map((line) => line.textContent);
tokens[POS].dispatchEvent(new MouseEvent("mouseover", { bubbles: true, clientX: 50, clientY: 50 }));
seen.tip = lines();
seen.marked = root.querySelectorAll(".token.at").length;
texts[0].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
seen.next = lines();
texts[0].dispatchEvent(new MouseEvent("mouseleave"));
seen.hidden = find(".tip").hidden;
const choose = async (label, value) => {
  const select = find(`select[aria-label="${label}"]`);
  if (!select) return;
  select.value = String(value);
  select.dispatchEvent(new Event("change"));
  await pause(10);
};
const later = find('button[aria-label="later paragraphs"]');
if (later) {
  later.click();
  seen.page = find(".pager output").textContent;
  seen.second = root.querySelectorAll(".text").length;
}
await choose("order", 1);
seen.firstFact = find("header span").textContent;
await choose("show", 3);
seen.difference = [...find(".text").querySelectorAll(".token")].map(colour);
seen.marks = [...root.querySelectorAll(".marks span")].map((mark) => mark.textContent);
seen.drawn = performance.now();
seen.pwned = window.pwned === 1;
seen.intruders = root.querySelectorAll("img, [onload], [onerror], a, iframe").length;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
""")


def probe(pos):
    return PROBE.replace("POS", str(pos))


def page_of(picture, folder):
    return picture.save(folder / "view.html").read_text(encoding="utf-8")


def test_pointer_and_keys_say_the_models_numbers(tiny_model, tiny_paragraphs, tmp_path):
    edited, _ = mm.edit_weights(tiny_model, {"W_V": 0.0}, heads=["L0H1"])
    picture = mm.show.tokens(tiny_paragraphs, tiny_model, compare=edited, counts=np.arange(61) * 1000, theme="light")
    seen, requests = open_page(page_of(picture, tmp_path), tmp_path, probe(17))
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0
    before, after = (mm.score(model, tiny_paragraphs) for model in (tiny_model, edited))
    token = int(tiny_paragraphs.tokens[0, 17])
    first, second = (float(scores.token_nll[0, 17 - 13]) for scores in (before, after))
    assert seen["tip"][:3] == [f"“ {token}”", f"position 17, id {token}", f"{token * 1000:,} in the corpus"]
    assert seen["tip"][3].startswith("original: NLL ") and seen["tip"][3].endswith(" nats")
    told = [float(line.split()[-2].replace("−", "-")) for line in seen["tip"][3:]]
    assert told == pytest.approx([first, second, second - first], abs=0.006)
    assert seen["next"][1].startswith("position 18, id ") and seen["hidden"]
    # The same token is marked in both texts and in the difference.
    assert seen["marked"] == 3 and seen["columns"] == ["original", "edited", "edited minus original"]
    assert seen["begins"] == 13 and seen["diverges"] == 13 + int(before.em[0])
    assert seen["texts"] == 30 and seen["page"] == "11 to 11 of 11" and seen["second"] == 3
    most = int(np.abs(after.token_nll.values - before.token_nll.values).mean(1).argmax())
    assert seen["firstFact"] == f"id {tiny_paragraphs.ids[most]}"
    # Blue where the edited model's NLL is lower.
    change = (after.token_nll - before.token_nll).values[most]
    for pos, colour in enumerate(seen["difference"][13:]):
        red, _, blue = (int(part) for part in colour[4:-1].split(","))
        assert abs(change[pos]) < 0.01 or (blue > red) == (change[pos] < 0)
    assert seen["marks"][2] == "0" and seen["marks"][4] == "+" + seen["marks"][0][1:]


def test_hostile_tokens_are_shown_and_do_nothing(tmp_path):
    texts = [*NASTY, *(HOSTILE[start : start + 39] for start in range(0, len(HOSTILE), 39)), HOSTILE]
    paragraphs, tokenizer = text_of(texts)
    nasty = paragraphs.with_columns(source=[HOSTILE], id=[HOSTILE])
    values = np.linspace(-1, 1, len(texts))[None]
    picture = mm.show.tokens(nasty, values, compare=-values, names=(HOSTILE, HOSTILE), tokenizer=tokenizer)
    # Without the policy, which would hide a missing escape.
    page = page_of(picture, tmp_path).replace("Content-Security-Policy", "Nothing")
    seen, requests = open_page(page, tmp_path, probe(1))
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert seen["labels"][:4] == NASTY[:4] and seen["labels"][5] == "x" * 39 + "…" and seen["sideways"] <= 0
    assert seen["labels"][6:9] == ["‹U+2028›", "␀", "‹U+202E›"]
    assert seen["tip"][0] == "“<img/src=x onerror=window.pwned=1>”"


def test_1024_tokens_open_at_once(tmp_path):
    texts = [f" w{place}" for place in range(1024)]
    paragraphs, tokenizer = text_of(texts)
    picture = mm.show.tokens(paragraphs, np.random.default_rng(0).normal(size=(1, 1024)), tokenizer=tokenizer)
    page = page_of(picture, tmp_path)
    assert len(page) < 120_000
    seen, _ = open_page(page, tmp_path, probe(1000))
    assert len(seen["labels"]) == 1024 and seen["errors"] == [] and seen["drawn"] - seen["opened"] < 2000


def in_one_page(fragments, framed, folder, script):
    frame = json.dumps(framed).replace("</", "<\\/")
    page = (
        f"<!doctype html><html><head></head><body>{''.join(fragments)}<iframe></iframe>"
        f"<script>document.querySelector('iframe').srcdoc = {frame};</script></body></html>"
    )
    return open_page(
        page,
        folder,
        f"""<script>setTimeout(async () => {{
      const seen = {{}}, views = [...document.querySelectorAll(".mechmem[data-ready]")].map((host) => host.shadowRoot);
      const tokens = (place) => [...views[place].querySelectorAll(".token")];
      const colours = (place) => tokens(place).map((token) => token.style.background);
      {script}
      document.documentElement.dataset.probe = JSON.stringify(seen);
    }}, 2000);</script>""",
    )


SCRIPT = """
      const pause = (time) => new Promise((go) => setTimeout(go, time));
      const inside = document.querySelector("iframe").contentDocument;
      Object.assign(seen, { own: views.length, framed: inside.querySelectorAll(".mechmem[data-ready]").length });
      seen.direction = [0, 1].map((place) => getComputedStyle(views[place].querySelector(".text")).direction);
      seen.still = document.querySelector(".still").textContent;
      Object.assign(seen, { pwned: window.pwned === 1, images: document.images.length });
      seen.themes = [];
      for (const light of ["true", "false", "true"]) {
        document.body.dataset.jpThemeLight = light;
        await pause(50);
        seen.themes.push(colours(0));
      }"""


def test_views_stand_in_one_page_and_in_a_frame_and_follow_its_theme(tmp_path):
    numbers = mm.Paragraphs(torch.arange(6)[None], prefix_len=2)
    coloured = mm.show.tokens(numbers, [[np.nan, 0.0, 1.0, 4.0, -4.0, 16.0]])
    hebrew, tokenizer = text_of(["שלום", " עולם", " של", " bits", " טקסט"])
    right = mm.show.tokens(hebrew, [[1.0] * 5], tokenizer=tokenizer)
    nasty, tokenizer = text_of(NASTY)
    # What stands there where no script runs.
    still = mm.show.tokens(nasty, [[0.5] * len(NASTY)], tokenizer=tokenizer).html.split("<script")[0]
    fragments = [coloured.html, right.html, f'<div class="still">{still}</div>']
    seen, requests = in_one_page(fragments, coloured.html, tmp_path, SCRIPT)
    assert (seen["own"], seen["framed"], requests) == (2, 1, [])
    assert seen["direction"] == ["ltr", "rtl"]
    assert not seen["pwned"] and seen["images"] == 0 and "".join(NASTY[:5]) in seen["still"]
    light, dark, again = seen["themes"]
    assert light == again and light[0] == "" and light[1] == "rgb(255, 255, 255)"
    assert (light[5], dark[5]) == ("rgb(11, 90, 148)", "rgb(120, 200, 250)")
    # The page draws the colours of the still picture.
    svg = coloured.draw_svg()[0]
    for colour in light[1:]:
        assert any(close(colour, red, blue, green) for red, green, blue in hexadecimal(svg)), colour


def hexadecimal(svg):
    return [
        [int(code[start : start + 2], 16) for start in (0, 2, 4)] for code in re.findall('fill="#([0-9a-f]{6})"', svg)
    ]


def close(colour, red, blue, green):
    """Equal up to the 256 steps that the page has."""
    found = [int(part) for part in colour[4:-1].split(",")]
    return np.abs(np.array(found) - [red, green, blue]).max() <= 1
