"""Masks and edits in notebooks: the counts that they have, and nothing that acts."""

import re

import torch

import mechmem as mm


def cells(page):
    """The body's rows as texts."""
    rows = re.findall(r"<tr>(<th>\d+</th>.*?)</tr>", page)
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_a_mask_shows_its_weights_by_layer_and_component():
    shapes = {f"blocks.{layer}.{name}": (4, 5) for layer in range(3) for name in ("attn.W_V", "mlp.W_in")}
    mask = mm.Mask(
        {
            "blocks.0.attn.W_V": torch.arange(7),
            "blocks.2.mlp.W_in": torch.arange(3),
            "blocks.2.attn.W_V": torch.arange(1),
        },
        shapes,
    )
    page = mask._repr_html_()
    assert "Mask(11 of 120 weights, in 3 of 6 tensors)" in page
    assert re.findall(r"<th>(\w+)</th>", page.split("</thead>")[0]) == ["layer", "W_V", "W_in"]
    assert cells(page) == [["0", "7", "·"], ["2", "1", "3"]]
    # The longest bar is that of the largest count.
    assert re.findall(r"width:([\d.]+)em", page) == ["3.00", "0.43", "1.29"]


def test_an_edit_shows_what_it_sets_how_large_it_is_and_its_notes(tiny_model):
    edited, _ = mm.edit_weights(tiny_model, {"W_V": 0.0}, heads=["L1H2"])
    edit = mm.Edit.between(tiny_model, edited, {"why": "<img src=x onerror=alert(1)>" + 300 * "x"})
    page = edit._repr_html_()
    assert cells(page) == [["1", str(edit.count)]]
    assert "most of them in layer 1: 100%" in page and "of places and values" in page
    assert "<img" not in page and "&lt;img" in page and "x…" in page


def test_an_empty_edit_and_an_empty_mask_show_themselves(tiny_model):
    assert "Edit(0 weights" in mm.Edit.between(tiny_model, tiny_model)._repr_html_()
    assert "Mask(0 of 6 weights" in mm.Mask({}, {"blocks.0.attn.W_V": (2, 3)})._repr_html_()
