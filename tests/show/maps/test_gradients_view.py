"""The view of gradients: sizes, shares and differences are those of the arrays."""

import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.sites import reduce_by_component
from tests.show.maps.heatmap_pages import axis_of, number_told, numbers_of, options, page_data, shown_maps, told_in_svg


@pytest.fixture(scope="module")
def sets(tiny_model, tiny_paragraphs):
    return [mm.parameter_gradients(tiny_model, part) for part in (tiny_paragraphs[:3], tiny_paragraphs[3:6])]


def close(found, truth):
    np.testing.assert_allclose(found, truth, rtol=2e-4, atol=1e-12)


def test_two_sets_and_their_difference(sets, tiny_model):
    picture = mm.show.gradients(*sets, names=("memorized", "other"), model=tiny_model)
    first, second, change = shown_maps(picture)
    assert [each["title"] for each in (first, second, change)] == ["memorized", "other", "other minus memorized"]
    for panel, truth in ((first, sets[0]), (second, sets[1]), (change, sets[1] - sets[0])):
        close(numbers_of(picture, panel), truth)
    # The same colours for the same numbers; blue is where the second is larger.
    assert first["ends"] == second["ends"] and first["kind"] == "log" and change["ends"][1] > 0
    assert axis_of(picture, first, "columns")["names"] == sets[0].component.values.tolist()
    assert [group[0] for group in axis_of(picture, first, "columns")["groups"]] == ["Q", "K", "V", "O", "MLP"]
    shares = [each / each.sum() for each in sets]
    for panel, truth in zip(shown_maps(picture, values="share of the set's sum"), shares, strict=False):
        close(numbers_of(picture, panel), truth)
        assert truth.sum() == pytest.approx(1)


def test_single_paragraphs_and_their_mean(tiny_model, tiny_paragraphs):
    found = mm.paragraph_gradients(tiny_model, tiny_paragraphs[:3])
    picture = mm.show.gradients(found)
    close(numbers_of(picture, shown_maps(picture)[0]), found.mean("paragraph"))
    close(numbers_of(picture, shown_maps(picture, paragraph=options(picture, "paragraph")[3])[0]), found[2])


@pytest.mark.parametrize("reduction", ["max", "sum", "norm"])
def test_scores_of_weights_are_reduced_by_component(tiny_model, tiny_paragraphs, reduction):
    weights = mm.weight_gradients(tiny_model, tiny_paragraphs[:3])
    picture = mm.show.gradients(weights, reduction=reduction)
    close(numbers_of(picture, shown_maps(picture)[0]), reduce_by_component(tiny_model, weights, reduction))


def test_activation_gradients_stand_over_the_tokens(tiny_model, tiny_paragraphs):
    found = mm.activation_gradients(tiny_model, tiny_paragraphs[:2], site="v", average=False)
    picture = mm.show.gradients(found, paragraphs=tiny_paragraphs[:2])
    positions, heads = shown_maps(picture, paragraph=options(picture, "paragraph")[1])
    close(numbers_of(picture, positions), found[0].max("head"))
    close(numbers_of(picture, heads), found[0].max("pos"))
    axis = axis_of(picture, positions, "columns")
    assert axis["labels"][5] == f" {int(tiny_paragraphs.tokens[0, 5])}" and axis["begins"] == 13
    assert positions["kind"] == "root"


def test_signed_gradients_are_blue_where_the_activation_helps(tiny_model, tiny_paragraphs):
    found = mm.activation_gradients(tiny_model, tiny_paragraphs[:2], site="z", method="gradient_x_activation")
    other = mm.activation_gradients(tiny_model, tiny_paragraphs[2:4], site="z", method="gradient_x_activation")
    picture = mm.show.gradients(found, other)
    maps = shown_maps(picture)
    close(numbers_of(picture, maps[0]), found.sum("head"))
    close(numbers_of(picture, maps[2]), (other.values - found.values).sum(1))
    close(numbers_of(picture, maps[5]), (other.values - found.values).sum(2))
    assert maps[0]["ends"][1] < 0 < maps[2]["ends"][1]
    assert "Blue: the activation makes the text more likely" in page_data(picture)["caption"]
    stream = mm.activation_gradients(tiny_model, tiny_paragraphs[:1], site="resid_mid")
    close(numbers_of(one := mm.show.gradients(stream), shown_maps(one)[0]), stream)


def test_the_svg_says_the_numbers(sets, tmp_path):
    told = told_in_svg(mm.show.gradients(*sets).save(tmp_path / "gradients.svg"))
    truth = np.concatenate([sets[0].values.ravel(), sets[1].values.ravel(), (sets[1] - sets[0]).values.ravel()])
    np.testing.assert_allclose([number_told(text) for text in told], truth, rtol=6e-3)
    assert told[1].startswith("L0 Q1: ")


def test_bad_input_is_a_sentence(sets, tiny_model, tiny_paragraphs):
    at_values = mm.activation_gradients(tiny_model, tiny_paragraphs[:1])
    cases = [
        (lambda: mm.show.gradients(sets[0], at_values), "to compare; need two of one kind and size"),
        (lambda: mm.show.gradients(sets[0], names=("a", "b")), "need two words for gradients and compare"),
        (lambda: mm.show.gradients(sets[0], reduction="max"), "leave reduction out"),
        (lambda: mm.show.gradients(sets[0], paragraphs=tiny_paragraphs), "leave paragraphs out"),
        (lambda: mm.show.gradients({}), "got gradients without tensors"),
        (lambda: mm.show.gradients({"unembed.W_U": tiny_model.W_U}), "need weights named blocks.0.attn.W_Q"),
        (lambda: mm.show.gradients(sets[0].rename(layer="x")), "need what mechmem.parameter_gradients"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()
