"""The view of attention: what is in it is what the model computes, and bad input is a sentence."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.hooks import with_hooks
from mechmem.show.patterns.attention_data import sides_of
from mechmem.show.patterns.attention_side import grid_of
from mechmem.show.patterns.packed_patterns import packed, unpacked
from mechmem.show.patterns.thumbnails import thumbnail


def data_of(picture):
    found = re.search(r'type="application/json"[^>]*>(.*?)</script>', picture.html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def shown(picture, paragraph=0, side=0):
    data = data_of(picture)
    one = data["paragraphs"][paragraph]["sides"][side]
    return unpacked(one["packed"], len(data["heads"]), len(one["text"]))


@pytest.fixture(scope="module")
def few(tiny_paragraphs):
    return tiny_paragraphs[:2]


def expected(model, paragraphs):
    """[paragraph, layer * head, query, key], from the cache of TransformerLens."""
    _, cache = model.run_with_cache(paragraphs.tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    layers = [cache["pattern", layer].numpy() for layer in range(model.cfg.n_layers)]
    return np.concatenate(layers, 1)


def test_packing_keeps_weights_to_a_part_in_two_hundred():
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.dirichlet(np.full(9, 0.3), (3, 9)))
    back = unpacked(packed(pattern), 3, 9)
    assert np.abs(back - pattern).max() < 0.004
    small = pattern < 0.01
    assert np.abs(back - pattern)[small].max() < 0.0005


def test_the_page_holds_the_models_own_patterns(tiny_model, few):
    picture = mm.show.attention(tiny_model, few)
    truth = expected(tiny_model, few)
    for paragraph in range(2):
        assert np.abs(shown(picture, paragraph) - truth[paragraph]).max() < 0.004
    data = data_of(picture)
    assert data["heads"][:4] == ["L0H0", "L0H1", "L0H2", "L1H0"]
    assert (data["columns"], data["rows"]) == (3, ["L0", "L1", "L2", "L3"])
    assert data["paragraphs"][0]["sides"][0]["prefix"] == few.prefix_len
    # Heads that changed places would be seen.
    assert np.abs(shown(picture)[0] - truth[0, 1]).max() > 0.01


def test_heads_come_in_the_order_in_which_they_were_named(tiny_model, few):
    picture = mm.show.attention(tiny_model, few, heads=["L2H1", (0, 2)])
    assert data_of(picture)["heads"] == ["L2H1", "L0H2"]
    truth = expected(tiny_model, few)[0]
    assert np.abs(shown(picture) - truth[[2 * 3 + 1, 2]]).max() < 0.004


def test_a_capture_shows_the_same(tiny_model, few):
    found = mm.capture(tiny_model, few, sites="pattern")
    first, second = mm.show.attention(found), mm.show.attention(tiny_model, few)
    assert (
        data_of(first)["paragraphs"][1]["sides"][0]["packed"] == data_of(second)["paragraphs"][1]["sides"][0]["packed"]
    )
    one = mm.show.attention(found, heads="L1H2")
    assert np.abs(shown(one)[0] - found.pattern[0, 1, 2].values).max() < 0.004


def test_hooks_on_the_model_are_seen(tiny_model, few):
    def uniform(pattern, hook):  # noqa: ARG001 - TransformerLens passes both
        return (pattern > 0).float() / (pattern > 0).sum(-1, keepdim=True)

    with with_hooks(tiny_model, {"blocks.1.attn.hook_pattern": uniform}):
        picture = mm.show.attention(tiny_model, few, heads="L1H0")
    assert shown(picture)[0][9, :10] == pytest.approx(0.1, abs=0.004)


def test_an_edited_model_stands_beside_the_original(tiny_model, few):
    edited, _ = mm.edit_weights(tiny_model, {"W_Q": lambda weight: 0 * weight}, heads=["L0H1"])
    picture = mm.show.attention(tiny_model, few, compare=edited)
    data = data_of(picture)
    assert data["names"] == ["original", "edited"] and data["difference"] == "edited minus original"
    change = shown(picture, side=1) - shown(picture, side=0)
    # The edited head's pattern is uniform; other heads of its layer are as they were.
    assert np.abs(change[[0, 2]]).max() == 0 and shown(picture, side=1)[1][4, :5] == pytest.approx(0.2, abs=0.003)


def test_other_paragraphs_stand_beside_the_first(tiny_model, tiny_paragraphs):
    picture = mm.show.attention(
        tiny_model, tiny_paragraphs[:1], compare=tiny_paragraphs[3:4], names=("memorized", "other")
    )
    truth = expected(tiny_model, tiny_paragraphs[3:4])[0]
    assert np.abs(shown(picture, side=1) - truth).max() < 0.004
    assert data_of(picture)["difference"] == "other minus memorized"
    shorter = mm.Paragraphs(tiny_paragraphs.tokens[3:4, :20], 13)
    assert data_of(mm.show.attention(tiny_model, tiny_paragraphs[:1], compare=shorter))["difference"] is None


def test_counts_belong_to_their_tokens(tiny_model, few):
    counts = np.arange(100) * 10
    one = data_of(mm.show.attention(tiny_model, few, counts=counts))["paragraphs"][1]["sides"][0]
    assert one["counts"] == (few.tokens[1] * 10).tolist()


def test_the_svg_of_one_head_says_the_same_numbers(tiny_model, few, tmp_path):
    path = mm.show.attention(tiny_model, few[:1], heads="L1H2").save(tmp_path / "head.svg")
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    told = {}
    for title in root.iter(f"{space}title"):
        found = re.fullmatch(r"query (\d+).*, key (\d+).*: ([\d.]+)", title.text or "", re.DOTALL)
        assert found is not None
        query, key, weight = found.groups()
        told[int(query), int(key)] = float(weight)
    truth = expected(tiny_model, few[:1])[0, 5]
    assert set(told) == set(zip(*np.nonzero(truth >= 0.004), strict=True))
    assert all(abs(truth[place] - weight) < 6e-4 for place, weight in told.items())
    labels = [text.text for text in root.iter(f"{space}text")]
    assert any((label or "").startswith("L1H2, 0: ") for label in labels)


def test_the_svg_of_all_heads_has_an_image_each(tiny_model, few, tmp_path):
    path = mm.show.attention(tiny_model, few[:1], compare=few[1:]).save(tmp_path / "grid.svg")
    images = list(ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}image"))
    assert len(images) == 2 * tiny_model.cfg.n_layers * tiny_model.cfg.n_heads


def test_a_thumbnail_is_the_largest_weight_of_each_part():
    pattern = np.random.default_rng(0).random((23, 23))
    small = thumbnail(pattern, 7)
    places = np.arange(23) * 7 // 23
    slow = np.array(
        [[pattern[np.ix_(places == row, places == column)].max() for column in range(7)] for row in range(7)]
    )
    np.testing.assert_array_equal(small, slow)
    np.testing.assert_array_equal(thumbnail(pattern, 40), pattern)


def test_heads_that_are_no_grid_stand_one_after_the_other():
    assert grid_of([(1, 2), (0, 0)]) == {"heads": ["L1H2", "L0H0"], "columns": 2, "labels": None, "rows": None}


def test_bad_input_is_a_sentence(tiny_model, few, tiny_paragraphs):
    part = mm.capture(tiny_model, few, sites="pattern", pos=slice(0, 5))
    whole = mm.capture(tiny_model, few, sites="pattern")
    cases = [
        (lambda: mm.show.attention(tiny_model), "got a model and no paragraphs"),
        (lambda: mm.show.attention(tiny_model, few, heads="L9H0"), "need .layer, head. pairs or names"),
        (lambda: mm.show.attention(whole, heads="L9H0"), "got heads \\['L9H0'\\]; the capture holds L0H0"),
        (lambda: mm.show.attention(tiny_model, few, compare=tiny_paragraphs), "got 2 paragraphs and 11 to compare"),
        (lambda: mm.show.attention(whole, compare=few), "need a second capture"),
        (lambda: mm.show.attention(part), "got patterns of 5 queries and 23 keys"),
        (lambda: mm.show.attention(tiny_model, few, theme="blue"), "theme 'blue'"),
        (lambda: mm.show.attention(tiny_model, few, counts=[1, 2]), "got counts of shape"),
        (lambda: mm.show.attention(tiny_model, few, names=("a",)), "need two words"),
        (lambda: mm.show.attention(tiny_model, few).save("x.bmp"), "ends in one of .html, .svg, .pdf, .png"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()


def test_more_than_a_page_can_hold_is_refused(tiny_model, few, monkeypatch):
    monkeypatch.setattr("mechmem.show.patterns.attention_picture.MOST_BYTES", 1000)
    with pytest.raises(InputError, match="name fewer heads, such as"):
        mm.show.attention(tiny_model, few)


def test_paragraphs_are_named_by_place_and_beginning(tiny_model, tiny_paragraphs):
    sides = sides_of(tiny_model, tiny_paragraphs[2:4], "L0H0", None)
    tokens = tiny_paragraphs.tokens[3].tolist()
    assert sides[1].title.startswith(f"1: {tokens[0]} {tokens[1]} {tokens[2]} ") and sides[1].title.endswith("…")
