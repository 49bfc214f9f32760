"""The view of masks and edits: every weight is counted in its own component."""

import copy

import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from tests.show.maps.heatmap_pages import axis_of, number_told, numbers_of, options, page_data, shown_maps, told_in_svg


@pytest.fixture(scope="module")
def mask(tiny_model, tiny_paragraphs):
    return mm.Mask.top(mm.weight_gradients(tiny_model, tiny_paragraphs[:3]), fraction=0.05)


def counted(mask, layers=4, heads=3):
    """Weights of each component, one index at a time."""
    names = [*(f"{letter}{head}" for letter in "QKVO" for head in range(heads)), "mlp_in", "mlp_out"]
    counts, sizes = np.zeros((2, layers, len(names)))
    for name, shape in mask.shapes.items():
        layer, part = int(name.split(".")[1]), name.rsplit("_", 1)[1]
        for index in range(int(np.prod(shape))):
            head = index // int(np.prod(shape[1:]))
            column = names.index(f"{part}{head}" if ".attn." in name else f"mlp_{part}")
            sizes[layer, column] += 1
            if name in mask.indices and index in set(mask.indices[name].tolist()):
                counts[layer, column] += 1
    return counts, sizes


def test_counts_and_shares_are_those_of_each_component(mask, tmp_path):
    counts, sizes = counted(mask)
    assert counts.sum() == mask.count and sizes.sum() == mask.total
    picture = mm.show.mask(mask)
    share, weights = (shown_maps(picture, show=option)[0] for option in options(picture, "show"))
    np.testing.assert_allclose(numbers_of(picture, share), counts / sizes, rtol=2e-4)
    np.testing.assert_array_equal(numbers_of(picture, weights), counts)
    also = {each["label"]: numbers_of(picture, {**share, "packed": each["packed"]}) for each in share["also"]}
    np.testing.assert_array_equal(also["weights"], counts)
    np.testing.assert_array_equal(also["weights of the component"], sizes)
    assert axis_of(picture, share, "columns")["names"][-1] == "mlp_out"
    assert page_data(picture)["caption"].startswith(f"{mask.count:,} of {mask.total:,} weights are in the mask")
    told = told_in_svg(picture.save(tmp_path / "mask.svg"))
    np.testing.assert_allclose([number_told(text) for text in told], (counts / sizes).ravel(), rtol=6e-3)


def test_an_edit_says_where_it_moved_and_how_far(tiny_model):
    edited, _ = mm.edit_weights(tiny_model, {"W_Q": lambda weight: 0 * weight}, heads=["L1H2"])
    edit = mm.Edit.between(tiny_model, edited)
    picture = mm.show.mask(edit, model=tiny_model)
    share, weights, size = (shown_maps(picture, show=option)[0] for option in options(picture, "show"))
    moved = tiny_model.W_Q[1, 2]
    expected = np.zeros((4, 14))
    expected[1, 2] = moved.numel()
    np.testing.assert_array_equal(numbers_of(picture, weights), expected)
    np.testing.assert_array_equal(numbers_of(picture, share), expected > 0)
    expected[1, 2] = float(moved.detach().norm())
    np.testing.assert_allclose(numbers_of(picture, size), expected, rtol=2e-4)


def test_weights_outside_the_components_are_said(tiny_model):
    edited = copy.deepcopy(tiny_model)
    edited.unembed.W_U.data[0, :5] += 1.0
    edited.blocks[0].mlp.W_in.data[0, 0] += 1.0
    picture = mm.show.mask(mm.Edit.between(tiny_model, edited), model=tiny_model)
    assert " 5 of them are outside these components" in page_data(picture)["caption"]


def test_bad_input_is_a_sentence(mask, tiny_model):
    edit = mm.Edit.between(tiny_model, mm.edit_weights(tiny_model, {"W_Q": lambda w: 2 * w}, heads=["L1H2"])[0])
    cases = [
        (lambda: mm.show.mask(mask, model=tiny_model), "leave model out"),
        (lambda: mm.show.mask(edit), "need the original, whose weights it moves"),
        (lambda: mm.show.mask(edit, model=edit.apply(tiny_model)), "load the model that was edited"),
        (lambda: mm.show.mask(mm.Mask({}, {"a": (2, 3)})), "need weights named blocks.0.attn.W_Q"),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()
