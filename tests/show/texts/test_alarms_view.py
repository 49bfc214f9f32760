"""Texts coloured by a detector's score: each token has its number, and the alarm has its frame."""

import json
import re

import numpy as np
import pytest
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.colour_scale import ORANGE, PAPER, Scale
from tests.browser import HOSTILE, needs_chromium, open_page, probe_of
from tests.report.conftest import FULL, detection

PROBE = probe_of("""
while (!document.querySelector(".mechmem[data-ready]")) await pause(20);
const root = document.querySelector(".mechmem").shadowRoot, texts = [...root.querySelectorAll(".text")];
const tokens = [...texts[0].querySelectorAll(".token")];
seen.texts = texts.length;
seen.bare = tokens.filter((token) => token.classList.contains("bare")).length;
seen.begins = tokens.findIndex((token) => token.classList.contains("begins"));
const framed = (text) => [...text.querySelectorAll(".token")].findIndex((one) => one.classList.contains("diverges"));
seen.framed = texts.map(framed);
seen.said = [...root.querySelectorAll(".said")].map((one) => one.textContent);
seen.colour = tokens[tokens.length - 1].style.background.replaceAll(" ", "");
tokens[53].dispatchEvent(new MouseEvent("mouseover", { bubbles: true, clientX: 50, clientY: 50 }));
seen.tip = [...root.querySelector(".tip").children].map((line) => line.textContent);
seen.pwned = window.pwned === 1;
seen.intruders = root.querySelectorAll("img, [onload], [onerror], a, iframe").length;
""")


@pytest.fixture
def found():
    return detection(np.random.default_rng(0))


def page_of(picture) -> dict:
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', picture.html, re.DOTALL)[1])  # pyright: ignore


def test_every_token_has_its_score_and_the_alarm_its_place(found):
    data = page_of(mm.show.alarms(found))
    for row, text in enumerate(data["paragraphs"]):
        labels = [data["vocabulary"]["labels"][place] for place in text["tokens"]]
        assert labels == found.example_text.values[row].tolist() and text["prefix"] == FULL
        values = [np.nan if value is None else value for value in text["values"][0]]
        np.testing.assert_allclose(values, found.example_score.values[row], rtol=1e-3)
        alarm = int(found.example_alarm[row])
        assert text["diverges"] == [None if alarm < 0 else {"pos": alarm, "says": None}]
        said = "no alarm" if alarm < 0 else f"alarm after {alarm - FULL} own tokens"
        kind, em = str(found.example_kind.values[row]), int(found.example_em[row])
        assert text["facts"] == [f"id {row}", kind, f"EM {em}", said]
    assert [order["name"] for order in data["orders"]] == ["as given", "highest score", "earliest alarm"]
    assert data["orders"][2]["by"] == [3, 0, None, 20, None, None]


def test_a_probability_has_the_ink_of_its_share_and_other_values_that_of_the_root():
    linear, root = (Scale(1.0, signed=False, blue_is_high=False, linear=each) for each in (True, False))
    for scale, share in ((linear, 0.25), (root, 0.5)):
        expected = tuple(round(paper + (ink - paper) * share) for paper, ink in zip(PAPER, ORANGE, strict=True))
        assert scale.colour(0.25) == expected
        assert scale.value(share) == 0.25


def test_the_still_picture_has_every_score_as_a_tooltip(found):
    svg, _, _ = mm.show.alarms(found).draw_svg()
    assert svg.count("<title>") == 6 * 2 * FULL and "alarm after 20 own tokens" in svg and "0.25" in svg


def test_what_a_monitor_noted_is_shown_without_the_prompt():
    token = np.array([[5, 6, 7], [8, 9, -1], [3, -1, -1]])
    score = np.where(token < 0, np.nan, token / 10)
    result = xr.Dataset(
        {
            "token": (("row", "k"), token),
            "score": (("row", "k"), score),
            "flagged_at": ("row", np.array([1, np.nan, 1.0])),
        },
        {"row": np.arange(3)},
    )
    data = page_of(mm.show.alarms(result))
    # The last row was stopped at its alarm: there is no token to frame.
    assert [text["diverges"] for text in data["paragraphs"]] == [[{"pos": 1, "says": None}], [None], [None]]
    assert [text["facts"][1] for text in data["paragraphs"]] == [
        "alarm after 1 own token", "no alarm", "alarm after 1 own token"
    ]  # fmt: skip
    labels = [[data["vocabulary"]["labels"][place] for place in text["tokens"]] for text in data["paragraphs"]]
    assert labels == [[" 5", " 6", " 7"], [" 8", " 9"], [" 3"]] and data["paragraphs"][1]["values"] == [[0.8, 0.9]]


def test_other_results_are_refused(found):
    with pytest.raises(InputError, match="got result without example_alarm"):
        mm.show.alarms(found.drop_vars("example_alarm"))
    with pytest.raises(InputError, match="which holds its texts; omit it"):
        mm.show.alarms(found, tokenizer=object())
    with pytest.raises(InputError, match="without a generation"):
        mm.show.alarms(found.isel(example=slice(0)))


@needs_chromium
def test_in_a_browser_the_alarm_is_framed_and_text_from_outside_is_inert(tmp_path):
    found = detection(np.random.default_rng(0), HOSTILE)
    page = mm.show.alarms(found).save(tmp_path / "a.html").read_text()
    seen, requests = open_page(page, tmp_path, PROBE)
    assert seen["texts"] == 6 and seen["bare"] == FULL == seen["begins"]
    assert seen["framed"] == [53, 50, -1, 70, -1, -1]
    assert seen["said"] == ["alarm at 53", "alarm at 50", "alarm at 70"]
    assert seen["tip"][1:] == ["position 53", f"score {float(found.example_score[0, 53]):.3f} "]
    assert not seen["pwned"] and seen["intruders"] == 0 and requests == []
