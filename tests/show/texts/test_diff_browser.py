"""Continuations side by side in a real browser: the slider, the pointer, and text from outside that is inert."""

import torch

import mechmem as mm
from mechmem.measure.greedy_texts import greedy_texts
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of
from tests.show.texts.hostile_texts import NASTY, Says

pytestmark = needs_chromium

PROBE = probe_of("""
while (!document.querySelector(".mechmem[data-ready]")) await new Promise((go) => setTimeout(go, 20));
const root = document.querySelector(".mechmem").shadowRoot, find = (selector) => root.querySelector(selector);
const read = () => {
  const box = find("article"), texts = [...box.querySelectorAll(".column .text")];
  return {
    names: [...box.querySelectorAll("h4")].map((one) => one.textContent),
    facts: [...box.querySelectorAll(".facts")].map((one) => one.textContent),
    labels: texts.map((text) => [...text.querySelectorAll(".token")].map((token) => token.textContent)),
    framed: texts.map((text) => [...text.querySelectorAll(".token")].findIndex((one) => one.matches(".diverges"))),
    dotted: texts.map((text) => text.querySelectorAll(".fresh").length),
    step: find(".step").textContent,
  };
};
seen.prefix = [...find(".prefix").querySelectorAll(".token")].map((token) => token.textContent);
seen.last = read();
const slider = find("input[type=range]");
if (slider) {
  slider.value = "1";
  slider.dispatchEvent(new Event("input"));
  seen.first = read();
}
const hover = (token) => {
  token.dispatchEvent(new MouseEvent("mouseover", { bubbles: true, clientX: 50, clientY: 50 }));
  return [...find(".tip").children].map((line) => line.textContent);
};
const texts = [...find("article").querySelectorAll(".text")];
seen.tips = texts.map((text) => hover(text.querySelectorAll(".token")[3]));
seen.marked = [...root.querySelectorAll(".token.at")].map((token) => token.dataset.pos);
seen.pwned = window.pwned === 1;
seen.intruders = root.querySelectorAll("img, [onload], [onerror], a, iframe").length;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
""")


def test_the_slider_goes_through_the_steps_of_an_edit(tiny_model, tiny_paragraphs, tmp_path):
    edited, _ = mm.edit_weights(tiny_model, {"W_V": 0.0}, heads=["L0H1", "L1H2"])
    paragraphs = tiny_paragraphs[:2]
    picture = mm.show.diff(tiny_model, edited, paragraphs, scales=[0.5, 1], counts=range(61))
    page = picture.save(tmp_path / "view.html").read_text(encoding="utf-8")
    seen, requests = open_page(page, tmp_path, PROBE)
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0
    original, half, whole = (
        greedy_texts(model, paragraphs)
        for model in (tiny_model, mm.Edit.between(tiny_model, edited).scaled(0.5).apply(tiny_model), edited)
    )
    tokens = paragraphs.tokens[0].tolist()
    assert seen["prefix"] == [f" {token}" for token in tokens[:13]]
    for now, name, truth in (("last", "1 × the edit", whole), ("first", "0.5 × the edit", half)):
        shown = seen[now]
        assert shown["names"] == ["true text", "original", name]
        said = [tokens[13:], original.said.values[0].tolist(), truth.said.values[0].tolist()]
        assert shown["labels"] == [[f" {token}" for token in row] for row in said]
        assert shown["framed"] == [-1, int(original.em[0]), int(truth.em[0])]
        words = f"EM {int(truth.em[0])} of 10, edit distance {int(truth.edit_distance[0])}, NLL "
        assert shown["facts"][2].startswith(words) and f"{name}: mean EM {float(truth.em.mean()):.1f}" in shown["step"]
    assert seen["first"]["dotted"][0] == 0 and seen["first"]["dotted"][2] > 0
    given, true, first, second = seen["tips"]
    assert given == [
        f"“ {tokens[3]}”",
        f"position 3, id {tokens[3]}",
        f"{tokens[3]} in the corpus",
        "given to all models",
    ]
    assert true[1] == f"position 16, id {tokens[16]}" and len(true) == 5
    told = [float(line.split()[-2]) for line in (*true[3:], first[3], second[3])]
    wanted = [original.token_nll, half.token_nll, original.said_nll, half.said_nll]
    for number, truth in zip(told, wanted, strict=True):
        assert abs(number - float(truth[0, 3])) < 0.006
    assert second[4] == f"true token: “ {tokens[16]}”"
    # The same position is marked in all texts.
    assert seen["marked"] == ["16"] * 3


def test_hostile_tokens_are_shown_and_do_nothing(tiny_model, tmp_path):
    texts = [*NASTY, *(HOSTILE[start : start + 39] for start in range(0, len(HOSTILE), 39)), HOSTILE]
    tokens = torch.arange(min(23, len(texts)))[None]
    nasty = mm.Paragraphs(tokens, 4).with_columns(source=[HOSTILE], id=[HOSTILE])
    tokenizer, former = Says([*texts, *["x"] * (61 - len(texts))]), tiny_model.tokenizer
    tiny_model.tokenizer = tokenizer
    try:
        picture = mm.show.diff(tiny_model, {HOSTILE: mm.edit_weights(tiny_model, {"W_V": 0.0}, layers=[0])[0]}, nasty)
    finally:
        tiny_model.tokenizer = former
    page = (
        picture.save(tmp_path / "view.html").read_text(encoding="utf-8").replace("Content-Security-Policy", "Nothing")
    )
    seen, requests = open_page(page, tmp_path, PROBE)
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert seen["prefix"] == NASTY[:4] and seen["last"]["names"][2] == HOSTILE and seen["sideways"] <= 0
