"""The view of the logit lens: first choices, NLL and rank of each depth, and when the true token stays on top."""

import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from tests.show.maps.heatmap_pages import axis_of, numbers_of, options, page_data, shown_maps, told_in_svg


@pytest.fixture(scope="module")
def found(tiny_model, tiny_paragraphs):
    return mm.logit_lens(tiny_model, tiny_paragraphs[:3])


def test_every_cell_is_the_results(found, tiny_model, tiny_paragraphs):
    picture = mm.show.lens(found, model=tiny_model)
    second = options(picture, "paragraph")[1]
    panel = shown_maps(picture, paragraph=second)[0]
    np.testing.assert_allclose(numbers_of(picture, panel), found.nll[1], rtol=2e-4)
    rank = numbers_of(picture, {**panel, "packed": panel["also"][0]["packed"]})
    np.testing.assert_array_equal(rank, found["rank"][1])
    words = np.array([panel["words"][place] for place in panel["word"]]).reshape(5, 10)
    assert words.tolist() == [[f" {token}" for token in row] for row in found.choice.values[1].tolist()]
    depths = found["first"].values[1]
    assert panel.get("framed", []) == [[int(depth), place] for place, depth in enumerate(depths) if depth < 5]
    axis = axis_of(picture, panel, "columns")
    assert axis["labels"] == [f" {token}" for token in tiny_paragraphs.tokens[1, 13:].tolist()]
    assert axis["names"][0].startswith("position 13 ")
    ranks = shown_maps(picture, show="rank of the true token", paragraph=second)[0]
    np.testing.assert_array_equal(numbers_of(picture, ranks), found["rank"][1])
    # The best end has the full colour.
    assert ranks["ends"][1] == 1 and panel["ends"][1] == 0


def test_a_rank_of_one_is_the_first_choice(found):
    np.testing.assert_array_equal(found["rank"] == 1, found.top)
    np.testing.assert_array_equal(found.choice == found.token, found.top)


def test_paragraphs_are_chosen_by_their_ids(found, tiny_paragraphs, tmp_path):
    picture = mm.show.lens(found, tiny_paragraphs[2:3])
    assert len(options(picture, "paragraph")) == 1
    np.testing.assert_allclose(numbers_of(picture, shown_maps(picture)[0]), found.nll[2], rtol=2e-4)
    told = told_in_svg(picture.save(tmp_path / "lens.svg"))
    assert (
        len(told) == 50 and told[0].startswith("stream into L0, position 13 ") and "rank of the true token" in told[0]
    )


def test_heads_that_were_ablated_are_named(tiny_model, tiny_paragraphs):
    found = mm.logit_lens(tiny_model, tiny_paragraphs[:2], without=["L1H2"])
    assert "without heads [(1, 2)]" in page_data(mm.show.lens(found))["facts"].lower()


def test_bad_input_is_a_sentence(found, tiny_paragraphs):
    cases = [
        (lambda: mm.show.lens(found.drop_vars("rank")), "got lens without rank; need the whole Dataset"),
        (lambda: mm.show.lens(found, tiny_paragraphs[5:6]), "are not in this result"),
        (lambda: mm.show.lens(found.isel(paragraph=[])), "got 0 paragraphs"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()
