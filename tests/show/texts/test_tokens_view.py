"""Coloured texts: the page and the still picture hold the model's own numbers, and bad input is a sentence."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.hooks import with_hooks

SPACE = "{http://www.w3.org/2000/svg}"


def data_of(picture):
    found = re.search(r'type="application/json"[^>]*>(.*?)</script>', picture.html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def shown(picture, paragraph=0, side=0):
    """The values of a text, NaN where there is none."""
    return np.array(data_of(picture)["paragraphs"][paragraph]["values"][side], dtype=float)


@pytest.fixture(scope="module")
def few(tiny_paragraphs):
    return tiny_paragraphs[:3]


@pytest.fixture(scope="module")
def logits(tiny_model, few):
    with torch.no_grad():
        return tiny_model(few.tokens).double()


@pytest.fixture(scope="module")
def edited(tiny_model):
    return mm.edit_weights(tiny_model, {"W_V": 0.0}, heads=["L0H1"])[0]


def nll_of(logits, tokens, prefix_len):
    """Of every continuation token, one after the other."""
    rows = []
    for row, text in enumerate(tokens.tolist()):
        chances = logits[row].log_softmax(-1)
        rows.append([-float(chances[pos - 1, text[pos]]) for pos in range(prefix_len, len(text))])
    return np.array(rows)


def test_a_model_is_scored_and_its_numbers_stand_at_their_tokens(tiny_model, few, logits):
    picture = mm.show.tokens(few, tiny_model)
    truth = nll_of(logits, few.tokens, few.prefix_len)
    for row in range(3):
        values = shown(picture, row)
        assert np.isnan(values[: few.prefix_len]).all()
        np.testing.assert_allclose(values[few.prefix_len :], truth[row], rtol=1e-3, atol=1e-5)
    data = data_of(picture)
    assert (data["quantity"], data["units"]) == ("NLL", "nats")
    one = data["paragraphs"][1]
    assert [data["vocabulary"]["ids"][token] for token in one["tokens"]] == few.tokens[1].tolist()
    assert one["prefix"] == few.prefix_len and one["facts"][0] == f"id {few.ids[1]}"


def test_the_first_token_that_greedy_decoding_does_not_give_is_marked(tiny_model, few, logits):
    data = data_of(mm.show.tokens(few, tiny_model))
    for row, text in enumerate(few.tokens.tolist()):
        greedy = logits[row].argmax(-1).tolist()
        first = next(pos for pos in range(few.prefix_len, len(text)) if greedy[pos - 1] != text[pos])
        found = data["paragraphs"][row]["diverges"][0]
        assert found["pos"] == first and data["vocabulary"]["ids"][found["says"]] == greedy[first - 1]
        assert f"EM {first - few.prefix_len} of 10" in data["paragraphs"][row]["facts"]


def test_a_text_that_the_model_says_is_not_marked(tiny_model, few):
    said = few.tokens.clone()
    with torch.no_grad():
        for pos in range(few.prefix_len, said.shape[1]):
            said[:, pos] = tiny_model(said[:, :pos])[:, -1].argmax(-1)
    data = data_of(mm.show.tokens(mm.Paragraphs(said, few.prefix_len), tiny_model))
    assert [one["diverges"] for one in data["paragraphs"]] == [[None]] * 3


def test_scores_give_what_their_model_gives_in_any_order(tiny_model, few):
    scores = mm.score(tiny_model, few)
    whole = data_of(mm.show.tokens(few, tiny_model))["paragraphs"]
    assert data_of(mm.show.tokens(few, scores))["paragraphs"] == whole
    turned = scores.isel(paragraph=[2, 0, 1])
    assert data_of(mm.show.tokens(few, turned))["paragraphs"] == whole
    assert data_of(mm.show.tokens(few, turned.token_nll))["paragraphs"][1]["values"] == whole[1]["values"]


def test_yes_and_no_are_colours_of_their_own(tiny_model, few):
    scores = mm.score(tiny_model, few)
    picture = mm.show.tokens(few, scores, variable="match")
    np.testing.assert_array_equal(shown(picture, 2)[few.prefix_len :], scores.match.values[2])
    data = data_of(picture)
    assert data["scale"]["is_match"] and "first choice" in data["caption"]


def test_an_edited_model_stands_beside_the_original_with_the_difference(tiny_model, edited, few, tmp_path):
    picture = mm.show.tokens(few[:1], tiny_model, compare=edited)
    before, after = (mm.score(model, few[:1]).token_nll.values[0] for model in (tiny_model, edited))
    np.testing.assert_allclose(shown(picture, 0, 0)[few.prefix_len :], before, rtol=1e-3)
    np.testing.assert_allclose(shown(picture, 0, 1)[few.prefix_len :], after, rtol=1e-3)
    data = data_of(picture)
    assert data["names"] == ["original", "edited"] and data["difference"] == "edited minus original"
    # Likelier text is the better end: blue is below zero.
    assert data["change"]["signed"] and not data["change"]["blue_is_high"]
    assert "blue where edited is lower" in data["caption"]
    assert data["change"]["most"] >= np.abs(after - before).max()
    told = tooltips(picture, tmp_path)[2]
    assert told == pytest.approx(dict(zip(range(13, 23), after - before, strict=True)), rel=0.02, abs=0.003)


def tooltips(picture, folder):
    """What the SVG says of the tokens of each text: position -> value."""
    root = ElementTree.parse(picture.save(folder / "text.svg")).getroot()
    texts = []
    for group in root.findall(f"{SPACE}g"):
        told = {}
        for title in group.iter(f"{SPACE}title"):
            found = re.fullmatch(r"(\d+) “.*”: (no value|(−?)([\d.e-]+) .*)", title.text or "", re.DOTALL)
            assert found is not None, title.text
            if found[4]:
                told[int(found[1])] = float(found[4]) * (-1 if found[3] else 1)
        texts.append(told)
    return texts


def test_the_svg_says_the_same_numbers(tiny_model, few, logits, tmp_path):
    truth = nll_of(logits, few.tokens, few.prefix_len)
    for row, told in enumerate(tooltips(mm.show.tokens(few, tiny_model), tmp_path)):
        assert told == pytest.approx(dict(zip(range(13, 23), truth[row], strict=True)), rel=0.01, abs=0.001)


def test_colours_of_the_svg_grow_with_the_number(tmp_path):
    paragraphs = mm.Paragraphs(torch.arange(6)[None], prefix_len=2)
    picture = mm.show.tokens(paragraphs, [[np.nan, 0.0, 1.0, 4.0, -4.0, 16.0]])
    root = ElementTree.parse(picture.save(tmp_path / "text.svg")).getroot()
    found = [box.attrib["fill"] for box in root.findall(f"{SPACE}g/{SPACE}g/{SPACE}rect")]
    assert found[:2] == ["#ffffff", "#ffffff"] and found[5] == "#0b5a94"
    # A quarter of the largest has half of the ink; below zero the ink is the other.
    assert found[3] == "#85acca" and found[4] == "#d9ac82"


def test_values_of_other_functions_are_shown(tiny_model, few):
    drop = mm.perturb_prefix(tiny_model, few)
    picture = mm.show.tokens(few, drop.em_change)
    np.testing.assert_allclose(shown(picture, 1)[: few.prefix_len], drop.em_change.values[1], atol=1e-3)
    assert np.isnan(shown(picture, 1)[few.prefix_len :]).all()
    assert data_of(picture)["scale"]["blue_is_high"]
    rise = data_of(mm.show.tokens(few, drop, variable="nll_change"))
    assert not rise["scale"]["blue_is_high"]
    slopes = mm.activation_gradients(tiny_model, few, average=False).sel(layer=1, head=2)
    np.testing.assert_allclose(shown(mm.show.tokens(few, slopes), 2), slopes.values[2], rtol=1e-3, atol=1e-6)
    pattern = mm.capture(tiny_model, few, sites="pattern").pattern.sel(layer=1, head=2, query_pos=20)
    np.testing.assert_allclose(shown(mm.show.tokens(few, pattern), 0), pattern.values[0], rtol=1e-3, atol=1e-6)


def test_scores_beside_other_numbers_mark_the_first_difference(tiny_model, few):
    scores = mm.score(tiny_model, few)
    plain, marked = (data_of(mm.show.tokens(few, few.tokens, scores=given)) for given in (None, scores))
    assert plain["paragraphs"][0]["diverges"] == [None]
    assert marked["paragraphs"][0]["diverges"] == data_of(mm.show.tokens(few, scores))["paragraphs"][0]["diverges"]


def test_hooks_on_the_model_are_seen(tiny_model, few):
    def silent(z, hook):  # noqa: ARG001 - TransformerLens passes both
        z[:, :, 1] = 0
        return z

    with with_hooks(tiny_model, {"blocks.0.attn.hook_z": silent}):
        hooked = shown(mm.show.tokens(few, tiny_model))
    assert np.nanmax(np.abs(hooked - shown(mm.show.tokens(few, tiny_model)))) > 0.01


def test_a_header_says_what_the_table_knows_and_orders_by_it(tiny_model, few):
    told = few.with_columns(set=["memorized", "other", "keep"], count=[7, 12345, 1], source=["a", "b", "c"])
    data = data_of(mm.show.tokens(told, tiny_model))
    assert data["paragraphs"][1]["facts"][:4] == [f"id {few.ids[1]}", "set other", "b", "count 12,345"]
    orders = {one["name"]: one["by"] for one in data["orders"]}
    assert orders["highest count"] == [7, 12345, 1]
    nll = mm.score(tiny_model, few).nll.values
    np.testing.assert_allclose(orders["highest mean NLL"], nll, rtol=1e-3)
    # Without scores the table's own columns are read.
    known = data_of(mm.show.tokens(few.with_columns(em=[3, 0, 1]), few.tokens))["paragraphs"][0]["facts"]
    assert known[1:] == ["EM 3 of 10"]


def test_text_is_found_by_the_paragraphs_own_vocabulary(bundled_model, bundled):
    mm.score(bundled_model, bundled[:1])
    picture = mm.show.tokens(bundled[:1], np.zeros((1, 100)))
    data = data_of(picture)
    text = "".join(data["vocabulary"]["labels"][token] for token in data["paragraphs"][0]["tokens"])
    assert text == str(bundled.column("text")[0]).replace("\n", "↵")
    unknown = mm.Paragraphs(bundled.tokens[:1], 50)
    labels = data_of(mm.show.tokens(unknown, np.zeros((1, 100))))["vocabulary"]["labels"]
    assert labels[0] == f" {int(bundled.tokens[0, 0])}"
    named = data_of(mm.show.tokens(unknown, np.zeros((1, 100)), tokenizer=bundled_model))["vocabulary"]["labels"]
    assert named == data["vocabulary"]["labels"]


def test_counts_belong_to_their_tokens(tiny_model, few):
    found = data_of(mm.show.tokens(few, tiny_model, counts=np.arange(61) * 10))["vocabulary"]
    assert found["counts"] == [10 * token for token in found["ids"]]


def test_the_fragment_stays_small(bundled_model, bundled):
    picture = mm.show.tokens(bundled[:10], bundled_model)
    # Forty of these are a fifth of what a notebook may have.
    assert len(picture.html) < 100_000


def test_bad_input_is_a_sentence(tiny_model, few, tiny_paragraphs):
    slopes = mm.activation_gradients(tiny_model, few, average=False)
    scores = mm.score(tiny_model, few)
    none = mm.Paragraphs(few.tokens[:0], few.prefix_len)
    cases = [
        (lambda: mm.show.tokens(few, slopes), "need paragraph and pos: choose one, values.sel.layer=0."),
        (lambda: mm.show.tokens(few, np.zeros((3, 10))), r"got values of shape \(3, 10\) for 3 paragraphs of 23"),
        (lambda: mm.show.tokens(tiny_paragraphs, scores), "8 of 11 paragraphs are not in this result"),
        (lambda: mm.show.tokens(few, scores, variable="kl"), "variable= one of match, token_nll, greedy"),
        (lambda: mm.show.tokens(few, tiny_model, variable="kl"), "variable= one of match, token_nll, greedy"),
        (lambda: mm.show.tokens(few, few.tokens, variable="kl"), "got variable='kl' and no Dataset"),
        (lambda: mm.show.tokens(few, np.full((3, 23), np.inf)), "got infinite numbers as values"),
        (lambda: mm.show.tokens(few, np.full((3, 23), "x")), "need numbers"),
        (lambda: mm.show.tokens(few, scores.em), "got values with dimensions paragraph; need paragraph and pos"),
        (lambda: mm.show.tokens(few, scores.token_nll.assign_coords(pos=range(20, 30))), "positions .20. to .29."),
        (lambda: mm.show.tokens(none, np.zeros((0, 23))), "got 0 paragraphs"),
        (lambda: mm.show.tokens(few, tiny_model, theme="blue"), "theme 'blue'"),
        (lambda: mm.show.tokens(few, tiny_model, names=("a", "b")), "need two words, and two sides"),
        (lambda: mm.show.tokens(few, tiny_model, counts=[1, 2]), "got counts of 2 tokens for tokens up to"),
        (lambda: mm.show.tokens(few, tiny_model, counts=[[1]]), r"got counts of shape \(1, 1\)"),
        (lambda: mm.show.tokens(few, few.tokens, scores=xr.Dataset()), "got scores without em"),
        (lambda: mm.show.tokens(few, scores.match, compare=scores.token_nll), "need two of one kind"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()


def test_more_than_a_page_can_hold_is_refused(tiny_model, few, monkeypatch):
    monkeypatch.setattr("mechmem.show.texts.tokens_data.MOST_TOKENS", 50)
    with pytest.raises(InputError, match="got 69 tokens to show; need at most 50"):
        mm.show.tokens(few, tiny_model)
