# Plotly declares every part of a figure as a union of all that may be assigned to it, so reading one back never types.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOptionalSubscript=false, reportOptionalIterable=false, reportArgumentType=false
import numpy as np
import pytest
import xarray as xr

from mechmem.report import figures
from mechmem.show.charts import heatmap_figures, history_figures, score_figures
from mechmem.show.theme import COLOURS, plotly_text, template


def paragraphs(values):
    return xr.DataArray(np.array(values), dims="paragraph")


def test_text_for_plotly_shows_letter_by_letter():
    assert plotly_text('<a href="x">&lt;</a>') == '&lt;a href="x"&gt;&amp;lt;&lt;/a&gt;'
    assert plotly_text("one\ntwo\u2028three") == "one two three"
    assert plotly_text("x" * 100, limit=5) == "xxxx…"


def test_the_histogram_counts_every_paragraph_once():
    figure = score_figures.em_histogram(paragraphs([0, 0, 10, 11, 49, 50, 50, 50]), full=50)
    counts = {int(x): int(y) for bar in figure.data for x, y in zip(bar.x, bar.y, strict=True) if y}
    assert counts == {0: 2, 10: 1, 11: 1, 49: 1, 50: 3}
    assert [sum(bar.y) for bar in figure.data] == [3, 2, 3]
    assert figure.layout.yaxis.type == "log"


def test_few_counts_stand_for_themselves_and_many_fall_into_powers_of_two():
    labels, group = score_figures.count_bins(np.array([0, 3, 3, 1]))
    assert labels == ["0", "1", "3"] and group.tolist() == [0, 2, 2, 1]
    labels, group = score_figures.count_bins(np.arange(0, 40))
    assert labels == ["0", "1", "2–3", "4–7", "8–15", "16–31", "32–63"]
    assert group[[0, 1, 2, 3, 4, 31, 32]].tolist() == [0, 1, 2, 2, 3, 5, 6]


def test_quartiles_and_shares_by_count_are_those_of_the_groups():
    em, count = paragraphs([0, 2, 4, 50, 50, 10]), paragraphs([0, 0, 0, 7, 7, 7])
    figure = score_figures.em_by_count(em, count, full=50)
    median = next(trace for trace in figure.data if trace.name == "median")
    share = next(trace for trace in figure.data if trace.type == "bar")
    assert list(median.x) == ["0", "7"] and list(median.y) == [2, 50]
    assert list(share.y) == pytest.approx([0, 200 / 3])


def test_a_component_map_keeps_layers_and_components_in_place():
    values = xr.DataArray([[1.0, 10.0], [100.0, 0.0], [1.0, 1.0]], {"layer": [0, 1, 2], "component": ["Q0", "K0"]})
    heatmap = heatmap_figures.component_heatmap(values, title="t", unit="u", kind="log").data[0]
    assert heatmap.z[0].tolist() == [0, 1] and heatmap.z[1][0] == 2
    assert np.isnan(heatmap.z[1][1]), "a gradient of zero has no logarithm and is left blank"
    assert list(heatmap.x) == ["Q0", "K0"] and list(heatmap.y) == ["L0", "L1", "L2"]
    plain = heatmap_figures.component_heatmap(values.transpose(), title="t", unit="u", kind="plain").data[0]
    assert plain.z.tolist() == values.values.tolist()


def test_shared_colours_stand_for_the_same_values():
    values = xr.DataArray([[1.0, 10.0]], {"layer": [0], "component": ["Q0", "K0"]})
    heatmap = heatmap_figures.component_heatmap(values, title="t", unit="u", kind="log", span=(0.1, 1000.0)).data[0]
    assert (heatmap.zmin, heatmap.zmax) == pytest.approx((-1, 3))


def test_a_head_map_is_centred_on_zero_and_frames_the_largest():
    values = xr.DataArray([[1.0, -7.0, 5.0], [0.0, 2.0, -1.0]], {"layer": [0, 1], "head": [0, 1, 2]})
    figure = heatmap_figures.head_heatmap(values, title="t", unit="u", top=2)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-7, 7)
    assert [(note.text, note.x, note.y) for note in figure.layout.annotations] == [("1", 2, 0), ("2", 1, 1)]
    assert len(figure.layout.shapes) == 2
    assert heatmap_figures.top_cells(values.values, 6) == [(0, 2), (1, 1), (0, 0)], "what does not help is never framed"


def test_a_head_map_can_show_the_lowest_as_the_finding():
    values = xr.DataArray([[1.0, -7.0, 5.0], [0.0, 2.0, -1.0]], {"layer": [0, 1], "head": [0, 1, 2]})
    high, low = (
        heatmap_figures.head_heatmap(values, title="t", unit="u", top=3, blue=end) for end in ("highest", "lowest")
    )
    assert low.data[0].z.tolist() == values.values.tolist() and low.data[0].reversescale
    assert not high.data[0].reversescale
    assert [(note.text, note.x, note.y) for note in low.layout.annotations] == [("1", 1, 0), ("2", 2, 1)]


def test_intervals_reach_from_low_to_high(synthetic):
    data = synthetic.unlearned(np.random.default_rng(0))
    bar = figures.em_intervals(data).data[1]
    row = data.sel(edit="NPO, top 0.1 %")
    assert np.allclose(bar.y + bar.error_y.array, row.em_high) and np.allclose(
        bar.y - bar.error_y.arrayminus, row.em_low
    )


def test_the_trade_off_shows_changes_from_before(synthetic):
    figure = figures.trade_off(synthetic.unlearned(np.random.default_rng(0)), target="targets", keep="other")
    points = {trace.name: (trace.x[0], trace.y[0]) for trace in figure.data}
    assert points["original"] == (0, 0)
    assert points["NPO, top 0.1 %"] == pytest.approx((0.4 - 3.9 / 200, -43.7))


def test_edits_without_a_history_have_no_line(synthetic):
    figure = history_figures.nll_history(synthetic.unlearned(np.random.default_rng(0)).nll_history)
    assert [trace.name for trace in figure.data] == ["NPO, top 0.1 %", "NPO, random 0.1 %", "contrastive, all weights"]


def test_names_from_outside_are_escaped_everywhere():
    bad = '<a href="http://127.0.0.1">x</a>'
    share = xr.DataArray([50.0], {"source": [bad]}, ("source",))
    pictures = [
        figures.memorized_by_kind(share, xr.ones_like(share)),
        figures.stage_timings({bad: 1.0}),
        heatmap_figures.component_heatmap(
            xr.DataArray([[1.0]], {"layer": [0], "component": [bad]}), title="t", unit="u", kind="plain"
        ),
        figures.layer_shares(xr.DataArray([[1.0]], {"set": [bad], "layer": [0]}, ("set", "layer"))),
    ]
    for picture in pictures:
        assert "&lt;a href" in str(picture.to_dict()["data"]) and "<a" not in str(picture.to_dict()["data"])


def test_both_templates_differ_in_ink_and_share_the_palette():
    light, dark = template(), template(dark=True)
    assert light.layout.font.color != dark.layout.font.color
    assert light.layout.font.family == dark.layout.font.family
    assert COLOURS["memorized"] != COLOURS["other"]
