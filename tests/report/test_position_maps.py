# Plotly declares every part of a figure as a union of all that may be assigned to it, so reading one back never types.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mechmem.report.position_maps import position_heatmap

WORDS: dict[str, Any] = {"title": "t", "unit": "u"}


def grid(row="layer"):
    return xr.DataArray([[1.0, -4.0, 2.0], [0.0, np.nan, 3.0]], {row: [0, 1], "pos": [7, 8, 9]}, (row, "pos"))


@pytest.mark.parametrize(("row", "names"), [("layer", ["L0", "L1"]), ("head", ["H0", "H1"])])
def test_rows_and_positions_stay_in_place(row, names):
    for values in (grid(row), grid(row).transpose()):
        figure = position_heatmap(values, kind="sequential", **WORDS)
        heatmap = figure.data[0]
        np.testing.assert_array_equal(heatmap.z, grid(row).values)
        np.testing.assert_array_equal(heatmap.customdata, grid(row).values)
        assert list(heatmap.y) == names and list(heatmap.x) == ["7", "8", "9"]
        assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == (row, "position")
        assert figure.layout.title.text == "t" and heatmap.colorbar.title.text == "u"


def test_zero_is_in_the_middle_of_a_diverging_map_only():
    diverging = position_heatmap(grid(), kind="diverging", **WORDS).data[0]
    assert (diverging.zmin, diverging.zmax) == (-4, 4)
    sequential = position_heatmap(grid(), kind="sequential", span=(0.5, 6.0), **WORDS).data[0]
    assert (sequential.zmin, sequential.zmax) == (0.5, 6)
    assert diverging.colorscale != sequential.colorscale


def test_tokens_show_letter_by_letter_and_equal_ones_keep_their_own_columns():
    figure = position_heatmap(grid(), kind="diverging", tokens=["<b>", "&", "<b>"], **WORDS)
    heatmap, axis = figure.data[0], figure.layout.xaxis
    assert list(heatmap.x) == list(axis.tickvals) == ["7", "8", "9"]
    assert list(axis.ticktext) == ["&lt;b&gt;", "&amp;", "&lt;b&gt;"]
    assert [list(row) for row in heatmap.text] == [list(axis.ticktext)] * 2 and "%{text}" in heatmap.hovertemplate
    plain = position_heatmap(grid(), kind="diverging", **WORDS)
    assert plain.layout.xaxis.ticktext is None and plain.layout.height < figure.layout.height


def test_one_layer_of_a_larger_result_can_be_drawn():
    values = grid("head").assign_coords(layer=3)
    assert list(position_heatmap(values, kind="sequential", **WORDS).data[0].y) == ["H0", "H1"]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="need layer and pos, or head and pos"):
        position_heatmap(grid().rename(pos="component"), kind="diverging", **WORDS)
    with pytest.raises(ValueError, match="got 2 tokens for 3 positions"):
        position_heatmap(grid(), kind="diverging", tokens=["a", "b"], **WORDS)
