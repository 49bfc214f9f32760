"""Heatmaps in a real browser: hover, click and keyboard say the numbers, and text from outside does nothing."""

import numpy as np
import pytest
import xarray as xr

import mechmem as mm
from mechmem.show.maps.heatmap import Axis, Heatmap, Kind
from mechmem.show.maps.heatmap_axes import layer_axis
from mechmem.show.maps.heatmap_colours import shades
from mechmem.show.maps.heatmap_page import Chooser, Words, heatmap_picture
from mechmem.show.packed_numbers import four_digits, three_digits
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of, ready_in_page_and_frame

pytestmark = needs_chromium

PROBE = probe_of("""
while (!document.querySelector(".mechmem[data-ready]")) await pause(20);
seen.opened = performance.now();
const root = document.querySelector(".mechmem").shadowRoot, find = (selector) => root.querySelector(selector);
const maps = () => [...root.querySelectorAll(".heatmap")];
const heat = (at) => maps()[at].querySelector("canvas");
const move = (canvas, kind, place) => canvas.dispatchEvent(new MouseEvent(kind, { bubbles: true, ...place }));
const tip = () => [...find(".tip").children].map((line) => line.textContent);
const pick = async (name, value) => {
  const select = [...root.querySelectorAll("select")].find((each) => each.getAttribute("aria-label") === name);
  select.value = String(value);
  select.dispatchEvent(new Event("change"));
  await pause(150);
};
const key = (canvas, name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
const cell = (canvas, row, column) => move(canvas, "mousemove", canvas.mechmem.spot(row, column));
const click = async (canvas, row, column) => {
  move(canvas, "click", canvas.mechmem.spot(row, column));
  await pause(200);
};
STEPS
seen.finished = performance.now();
seen.pwned = window.pwned === 1;
seen.intruders = root.querySelectorAll("img, [onload], [onerror], a").length;
seen.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
""")


def visit(picture, folder, steps, **options):
    """What the steps saw; nothing may throw, be asked of the network, or stand wider than the page."""
    page = picture.save(folder / "view.html").read_text(encoding="utf-8")
    seen, requests = open_page(page, folder, PROBE.replace("STEPS", steps), **options)
    assert seen["errors"] == [] and requests == [] and seen["sideways"] <= 0 and not seen["pwned"]
    return seen


@pytest.fixture(scope="module")
def pair(tiny_paragraphs):
    clean = tiny_paragraphs[:2]
    tokens = clean.tokens.clone()
    tokens[:, 4] = (tokens[:, 4] + 1) % 61
    tokens[:, 15:] = (tokens[:, 15:] + 5) % 61
    return clean, clean.replace_tokens(tokens)


def number(value, unit):
    return f"{three_digits(float(four_digits(value)), signed=True)} {unit}"


def test_hover_click_and_keys_say_the_results_numbers(tiny_model, pair, tmp_path):
    clean, corrupt = pair
    effect = mm.patch(tiny_model, clean, corrupt, site="z", average=False)
    picture = mm.show.effects(effect, clean, corrupt=corrupt, model=tiny_model)
    steps = """
      await pick("paragraph", 1);
      cell(heat(0), 2, 15); seen.hover = tip();
      cell(heat(0), 3, 4); seen.changed = tip();
      await click(heat(0), 1, 6);
      seen.note = find(".said").textContent;
      seen.text = [...root.querySelectorAll(".text .token")].map((token) => token.firstChild.textContent);
      seen.pinned = [...root.querySelectorAll(".text .token")].findIndex((token) => token.classList.contains("pinned"));
      seen.marked = [...root.querySelectorAll(".text .token")].map((token) => token.classList.contains("marked"));
      seen.without = find(".beside").textContent;
      await click(heat(1), 2, 1);
      const inner = find(".beside > div").shadowRoot;
      seen.pattern = inner.querySelector("h3").textContent;
      seen.patternText = inner.querySelectorAll(".token").length;
      heat(1).focus();
      key(heat(1), "ArrowRight"); key(heat(1), "ArrowDown");
      seen.keys = find(".said").textContent;
      key(heat(1), "ArrowRight"); key(heat(1), "Enter"); await pause(200);
      seen.entered = find(".beside > div").shadowRoot.querySelector("h3").textContent;
      await pick("show", 3);
      cell(heat(0), 1, 9); seen.layer = tip();
      seen.maps = maps().length;
    """
    seen = visit(picture, tmp_path, steps)
    unit, one = "nats per token", effect[0].values
    assert seen["hover"] == [
        number(one.sum(1)[2, 15], unit),
        f"L2, position 15 “ {int(clean.tokens[0, 15])}”, in the corrupt text “ {int(corrupt.tokens[0, 15])}”",
        "first token that differs in the continuation",
    ]
    assert seen["changed"][0] == number(one.sum(1)[3, 4], unit) and seen["changed"][2] == "changed token"
    assert seen["note"].startswith(f"L1, position 6 “ {int(clean.tokens[0, 6])}”; {number(one.sum(1)[1, 6], unit)}")
    assert seen["text"] == [f" {token}" for token in clean.tokens[0].tolist()] and seen["pinned"] == 6
    assert [place for place, marked in enumerate(seen["marked"]) if marked] == [4, 15]
    assert seen["without"].startswith("Click a cell of a head")
    assert seen["pattern"] == "L2H1" and seen["patternText"] == 23
    assert seen["keys"] == f"L3H2; {number(one.sum(-1)[3, 2], unit)}" and seen["entered"] == "L3H2"
    assert seen["layer"][0] == number(one[2, 1, 9], unit) and seen["layer"][1].startswith("L2H1, position 9 ")
    assert seen["maps"] == 1


def test_gradients_masks_and_the_lens_open_and_answer(tiny_model, tiny_paragraphs, tmp_path):
    sets = [mm.parameter_gradients(tiny_model, part) for part in (tiny_paragraphs[:2], tiny_paragraphs[2:4])]
    seen = visit(
        mm.show.gradients(*sets), tmp_path, "cell(heat(2), 3, 13); seen.hover = tip(); seen.maps = maps().length;"
    )
    change = float((sets[1] - sets[0])[3, 13])
    assert seen["maps"] == 3
    assert seen["hover"] == [number(change, "nats per token per unit of weight"), "L3 mlp_out"]
    mask = mm.Mask.top(mm.weight_gradients(tiny_model, tiny_paragraphs[:2]), fraction=0.05)
    seen = visit(mm.show.mask(mask), tmp_path, 'await pick("show", 1); cell(heat(0), 0, 12); seen.hover = tip();')
    held = len(mask.indices["blocks.0.mlp.W_in"])
    assert seen["hover"][0] == f"{held} weights" and f"weights of the component: {21 * 44}" in seen["hover"]
    found = mm.logit_lens(tiny_model, tiny_paragraphs[:2])
    seen = visit(mm.show.lens(found), tmp_path, 'await pick("paragraph", 1); cell(heat(0), 3, 2); seen.hover = tip();')
    here = found.isel(paragraph=1, depth=3, pos=2)
    assert f"rank of the true token: {int(here['rank'])}" in seen["hover"] and f"“ {int(here.choice)}”" in seen["hover"]


def test_numbers_read_the_same_in_the_page_and_in_python(tmp_path):
    values = np.array(
        [[0.0, 1e-9, -2.5e-4, 0.00099999, 0.0123456, 0.5, -9.995, 99.95, 999.4, 999.6, 12345.6, 1e6, -3e12]]
    )
    columns = [str(place) for place in range(values.shape[1])]
    one = Heatmap("numbers", values, layer_axis([0]), Axis("n", columns, columns), "", "diverging")
    picture = heatmap_picture(Words("t", "c"), [Chooser("show", ["all"])], lambda _: [one], theme="auto")
    steps = "seen.said = []; for (let at = 0; at < 13; at += 1) { cell(heat(0), 0, at); seen.said.push(tip()[0]); }"
    said = visit(picture, tmp_path, steps)["said"]
    assert said == [three_digits(float(value), signed=True) for value in four_digits(values)[0]]


KINDS: dict[Kind, tuple[float, float]] = {
    "diverging": (3.0, -3.0),
    "log": (0.01, 2.0),
    "root": (0.0, 2.0),
    "plain": (2.0, 0.5),
}


def test_colours_are_the_same_in_the_page_and_in_python(tmp_path):
    """In and outside of the span, where nothing was measured, and at zero."""
    values = np.array([[-5.0, -1.0, 0.0, 1e-6, 0.01, 0.3, 1.0, 2.0, 7.0, np.nan]])
    columns = [str(place) for place in range(10)]
    rows, axis = layer_axis([0]), Axis("n", columns, columns)
    # Sizes are never below zero.
    given = {"diverging": values, "log": np.abs(values), "root": np.abs(values), "plain": values}
    maps = [Heatmap(kind, given[kind], rows, axis, "", kind, span=span) for kind, span in KINDS.items()]
    picture = heatmap_picture(Words("t", "c"), [Chooser("show", ["all"])], lambda _: maps, theme="light")
    steps = """
      seen.shades = [0, 1, 2, 3].map((map) => Array.from({ length: 10 }, (_, at) =>
        heat(map).mechmem.shade(heat(map).mechmem.value(0, at))));
    """
    seen = np.array(visit(picture, tmp_path, steps)["shades"], dtype=float)
    np.testing.assert_allclose(seen, [shades(heatmap)[0] for heatmap in maps], atol=1e-6)
    assert np.nanmin(seen[3]) == 0 and np.nanmax(np.abs(seen)) == 1


NASTY = ["</script>", "<img/src=x onerror=window.pwned=1>", "{{7*7}}", "שלום", "😀", "x" * 2000, "\u2028", "\0"]


def experiment_of(texts, layers=3, seed=0):
    """Effects of a stream over some texts, as `patch_experiment` returns them."""
    length, values = len(texts), np.random.default_rng(seed).standard_normal((1, 1, layers, len(texts)))
    tokens = np.arange(length)[None]
    other = np.array([[*texts[:1], *texts[1:][::-1]]], dtype=object)
    data = {
        "effect": (("direction", "paragraph", "layer", "pos"), values, {"units": "nats per token"}),
        "effect_mean": (("direction", "layer", "pos"), values[:, 0]),
        "clean_token": (("paragraph", "pos"), tokens),
        "corrupt_token": (("paragraph", "pos"), np.where(tokens == 0, 0, length - tokens)),
        "clean_text": (("paragraph", "pos"), np.array([texts], dtype=object)),
        "corrupt_text": (("paragraph", "pos"), other),
    }
    coords = {"direction": ["noising"], "paragraph": [7], "layer": np.arange(layers), "pos": np.arange(length)}
    return xr.Dataset(
        data, coords, {"site": "resid_pre", "metric": "nll", "scored": "impact", "prefix_len": length // 2}
    )


@pytest.mark.parametrize("policy", [True, False], ids=["with policy", "without policy"])
def test_hostile_tokens_are_shown_and_do_nothing(tmp_path, policy):
    texts = [*NASTY, *(HOSTILE[start : start + 39] for start in range(0, len(HOSTILE), 39)), HOSTILE]
    page = mm.show.effects(experiment_of(texts)).save(tmp_path / "view.html").read_text(encoding="utf-8")
    if not policy:
        page = page.replace("Content-Security-Policy", "Nothing")
    steps = """
      for (let column = 0; column < 9; column += 1) cell(heat(0), 1, column);
      await click(heat(0), 1, 1);
      seen.text = [...root.querySelectorAll(".text .token")].map((token) => token.firstChild.textContent);
    """
    seen, requests = open_page(page, tmp_path, PROBE.replace("STEPS", steps))
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == [] and seen["errors"] == []
    assert seen["text"][:5] == NASTY[:5] and seen["text"][5] == "x" * 39 + "…"


@pytest.mark.parametrize(("length", "size"), [(100, "1400,1000"), (1024, "1400,1000"), (1024, "500,900")])
def test_long_texts_open_at_once_and_every_column_can_be_reached(tmp_path, length, size):
    found = experiment_of([f" w{place}" for place in range(length)], layers=12)
    picture = mm.show.effects(found)
    steps = f"""
      cell(heat(0), 5, {length - 1}); seen.last = tip();
      const enlarge = root.querySelector(".window button");
      seen.narrow = !root.querySelector(".window").hidden;
      if (seen.narrow) {{ enlarge.click(); await pause(50); }}
      heat(0).focus(); key(heat(0), "ArrowRight"); key(heat(0), "End");
      seen.end = find(".said").textContent;
      cell(heat(0), 0, {length - 1}); seen.enlarged = tip();
    """
    seen = visit(picture, tmp_path, steps, size=size)
    truth = found.effect.values[0, 0]
    assert seen["last"][0] == number(truth[5, -1], "nats per token") or length > 100
    assert seen["narrow"] == (length > 100)
    assert seen["enlarged"][0] == number(truth[0, -1], "nats per token")
    assert f"position {length - 1} " in seen["end"]
    assert len(picture.html) < (150_000 if length == 100 else 400_000) and seen["opened"] < 5000


def test_forty_views_stay_small_and_stand_in_frames(tmp_path):
    found = experiment_of([f" w{place}" for place in range(100)], layers=12)
    views = [mm.show.effects(found) for _ in range(3)]
    assert 40 * max(len(view.html) for view in views) < 6_000_000
    assert ready_in_page_and_frame([view.html for view in views], tmp_path) == (2, 1)
