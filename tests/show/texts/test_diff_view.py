"""What models write, side by side: the page holds what they write, and every step of an edit is that much of it."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.measure.greedy_texts import greedy_texts
from mechmem.show.texts.diff_steps import steps_of


def data_of(picture):
    found = re.search(r'type="application/json"[^>]*>(.*?)</script>', picture.html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def said(data, paragraph, step):
    """Token ids of what a step's model writes."""
    return [data["vocabulary"]["ids"][place] for place in data["paragraphs"][paragraph]["steps"][step]["said"]]


@pytest.fixture(scope="module")
def edited(tiny_model):
    return mm.edit_weights(tiny_model, {"W_V": 0.0, "W_O": lambda weight: 2 * weight}, heads=["L0H1", "L1H2"])[0]


@pytest.fixture(scope="module")
def memories(tiny_model, tiny_paragraphs):
    """Two texts that the model says."""
    own = greedy_texts(tiny_model, tiny_paragraphs[:2]).said.values
    return mm.Paragraphs(torch.cat([tiny_paragraphs.tokens[:2, :13], torch.from_numpy(own)], 1), 13)


def test_the_page_holds_what_both_models_write(tiny_model, edited, memories):
    data = data_of(mm.show.diff(tiny_model, edited, memories))
    assert [step["name"] for step in data["steps"]] == ["original", "edited"]
    for step, model in enumerate((tiny_model, edited)):
        truth = greedy_texts(model, memories)
        for row in range(2):
            one = data["paragraphs"][row]["steps"][step]
            assert said(data, row, step) == truth.said.values[row].tolist()
            np.testing.assert_allclose(one["said_nll"], truth.said_nll.values[row], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(one["true_nll"], truth.token_nll.values[row], rtol=1e-3, atol=1e-5)
            assert (one["em"], one["distance"]) == (int(truth.em[row]), int(truth.edit_distance[row]))
            differs = np.flatnonzero(truth.said.values[row] != memories.tokens[row, 13:].numpy())
            assert one["diverges"] == (differs[0] if len(differs) else None)
    assert data["paragraphs"][0]["steps"][0]["distance"] == 0 and data["paragraphs"][0]["steps"][1]["distance"] > 0
    assert data["steps"][0]["said"].startswith("mean EM 10.0 of 10, edit distance 0.0, NLL ")


def test_dots_are_below_what_the_true_text_does_not_have(tiny_model, edited, memories):
    data = data_of(mm.show.diff(tiny_model, edited, memories))
    for row in range(2):
        one, true = data["paragraphs"][row], memories.tokens[row, 13:].tolist()
        assert one["steps"][0]["fresh"] == "0" * 10
        step, written = one["steps"][1], said(data, row, 1)
        kept = [token for token, fresh in zip(written, step["fresh"], strict=True) if fresh == "0"]
        # What is kept stands in the true text in this order, and the rest is what the distance counts.
        rest = iter(true)
        assert all(token in rest for token in kept)
        assert len(true) - len(kept) <= step["distance"] <= 2 * (len(true) - len(kept))


def test_scales_are_shares_of_the_edit_and_the_model_keeps_its_bits(tiny_model, edited, memories):
    before = copy.deepcopy(tiny_model.state_dict())
    edit = mm.Edit.between(tiny_model, edited)
    data = data_of(mm.show.diff(tiny_model, edit, memories, scales=[0, 0.5, 1]))
    assert [step["name"] for step in data["steps"]] == ["original", "0 × the edit", "0.5 × the edit", "1 × the edit"]
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_model.state_dict().items())
    for row in range(2):
        steps = data["paragraphs"][row]["steps"]
        assert steps[0] == steps[1] != steps[3]
        assert said(data, row, 3) == greedy_texts(edited, memories).said.values[row].tolist()
    half = greedy_texts(edit.scaled(0.5).apply(tiny_model), memories)
    assert said(data, 1, 2) == half.said.values[1].tolist()
    # An edited model has the same steps.
    assert data_of(mm.show.diff(tiny_model, edited, memories, scales=[0, 0.5, 1]))["paragraphs"] == data["paragraphs"]
    assert said(data_of(mm.show.diff(tiny_model, edit, memories)), 0, 1) == said(data, 0, 3)


def test_steps_by_name_keep_their_order(tiny_model, edited, memories):
    edit = mm.Edit.between(tiny_model, edited)
    data = data_of(mm.show.diff(tiny_model, {"step 20": edited, "half": edit.scaled(0.5), "original": edit}, memories))
    assert [step["name"] for step in data["steps"]] == ["original", "step 20", "half", "original (edited)"]
    assert said(data, 0, 1) == said(data, 0, 3)


def test_the_svg_holds_the_last_steps_numbers(tiny_model, edited, memories, tmp_path):
    picture = mm.show.diff(tiny_model, edited, memories[:1])
    root = ElementTree.parse(picture.save(tmp_path / "diff.svg")).getroot()
    space = "{http://www.w3.org/2000/svg}"
    groups = [[title.text or "" for title in group.iter(f"{space}title")] for group in root.findall(f"{space}g")]
    assert len(groups) == 3
    truth = greedy_texts(edited, memories[:1])
    for told, wanted in ((groups[0][13:], truth.token_nll), (groups[2], truth.said_nll)):
        found = [float(text.rsplit(": ", 1)[1].removesuffix(" nats")) for text in told]
        assert found == pytest.approx(wanted.values[0], rel=0.01, abs=0.001)
    assert f"“ {truth.said.values[0, 3]}”" in groups[2][3]


def test_progress_goes_through_all_models(tiny_model, edited, memories):
    calls = []
    mm.show.diff(tiny_model, {"a": edited, "b": edited}, memories, progress=lambda *news: calls.append(news))
    assert calls == [(2, 6), (4, 6), (6, 6)]


def test_bad_input_is_a_sentence(tiny_model, edited, memories, bundled_model):
    edit = mm.Edit.between(tiny_model, edited)
    cases = [
        (lambda: steps_of(tiny_model, "x", None), "got str as edited; need a model, an mm.Edit, or a dict"),
        (lambda: steps_of(tiny_model, {}, None), "got steps none; need a model or an mm.Edit for each name"),
        (lambda: steps_of(tiny_model, {"a": 3}, None), r"got steps \['a'\]"),
        (lambda: mm.show.diff(tiny_model, {"a": edit}, memories, scales=[1]), "need scales with one edit"),
        (lambda: mm.show.diff(tiny_model, edit, memories, scales=[]), "got no scales"),
        (lambda: mm.show.diff(tiny_model, edit, memories, scales=[float("nan")]), "need a finite number"),
        (lambda: mm.show.diff(bundled_model, edit, memories), "load the model that was edited"),
        (lambda: mm.show.diff(tiny_model, edit, memories[:0]), "got 0 paragraphs"),
        (lambda: mm.show.diff(tiny_model, edit, memories, theme="blue"), "theme 'blue'"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()


def test_more_than_a_page_can_hold_is_refused_before_any_work(tiny_model, edited, memories, monkeypatch):
    monkeypatch.setattr("mechmem.show.texts.diff_view.MOST_TOKENS", 91)
    monkeypatch.setattr("mechmem.show.texts.diff_view.greedy_texts", None)
    with pytest.raises(InputError, match="got 92 tokens to show; need at most 91"):
        mm.show.diff(tiny_model, edited, memories)
