"""The charts of results: the figure has the numbers of the result, and what cannot be shown is refused."""

# Plotly declares every part of a figure as a union of all that may be assigned to it, so reading one back never types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalIterable=false, reportOptionalSubscript=false
import numpy as np
import pytest
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.charts.figure_stack import origin

LAYERS, HEADS = 3, 5


def grid(rng, names, scale=1.0):
    return {name: (("layer", "head"), rng.normal(0, scale, (LAYERS, HEADS))) for name in names}


@pytest.fixture
def ablation():
    data = grid(np.random.default_rng(0), ("nll_change", "em_change"))
    return xr.Dataset(data, attrs={"method": "mean", "site": "z", "seed": 3, "paragraphs": 7})


@pytest.fixture
def rare():
    rng = np.random.default_rng(1)
    names = ("excess", "spearman", "previous_token", "duplicate_token", "induction")
    data = grid(rng, names, 0.1) | {"p_value": (("layer", "head"), rng.random((LAYERS, HEADS)))}
    for name in ("tenth_mass", "tenth_expected"):
        data[name] = (("tenth", "layer", "head"), rng.random((10, LAYERS, HEADS)))
    counts = ("tenth", np.array([12.0, 40, 90, 1234, 3e4, 5e4, 1e5, 2e6, 3e6, 4e9]))
    return xr.Dataset(data, {"tenth": np.arange(10), "tenth_count": counts}, {"seed": 5, "paragraphs": 7})


@pytest.mark.parametrize("measure", ["nll_change", "em_change"])
def test_every_head_is_a_point_at_its_numbers(ablation, rare, measure):
    chart = mm.show.heads(ablation, rare, measure=measure, top=2)
    points = {
        point[0]: (x, y, point)
        for trace in chart.figure.data
        for x, y, point in zip(trace.x, trace.y, trace.customdata, strict=True)
    }
    assert len(points) == LAYERS * HEADS
    for layer in range(LAYERS):
        for head in range(HEADS):
            x, y, point = points[f"L{layer}H{head}"]
            own, other = ablation.sel(layer=layer, head=head), rare.sel(layer=layer, head=head)
            assert (x, y) == (100 * float(other.excess), float(own[measure]))
            expected = [float(each) for each in (own.nll_change, own.em_change, other.excess, other.p_value)]
            assert list(point[1:5]) == expected
    grey, blue = chart.figure.data
    assert len(blue.x) == int((rare.p_value < 0.05).sum()) and blue.name.startswith("attends to rare tokens")
    named = {text for trace in chart.figure.data for text in trace.text if text}
    needed = ablation[measure].values.ravel() * (1 if measure == "nll_change" else -1)
    top = {*np.argsort(-needed)[:2], *np.argsort(-rare.excess.values.ravel())[:2]}
    assert named == {f"L{place // HEADS}H{place % HEADS}" for place in top}
    assert "method mean, site z, 7 paragraphs, seed 3" in chart.caption and "Spearman's correlation" in chart.caption


def test_alone_heads_are_a_grid_and_ranked_bars(ablation):
    ablation.nll_change[2, 4] = np.nan
    ablation.em_change[2, 4] = np.nan
    heatmap, bars = mm.show.heads(ablation).figure.data
    np.testing.assert_array_equal(heatmap.z, ablation.nll_change.values)
    assert len(bars.x) == LAYERS * HEADS - 1 and (np.diff(np.abs(bars.x)) >= 0).all()
    values = {name: value for name, value in zip(bars.y, bars.x, strict=True)}
    assert values["L1H3"] == float(ablation.nll_change[1, 3])
    colours = {value > 0: colour for value, colour in zip(bars.x, bars.marker.color, strict=True)}
    assert colours == {True: "#1f83c4", False: "#e58a1f"}
    # Removing a needed head lowers EM: blue is the other end.
    assert mm.show.heads(ablation, measure="em_change").figure.data[0].reversescale and not heatmap.reversescale
    # Each colour bar stands beside its own panel.
    assert heatmap.colorbar.len < 0.8


def test_effects_of_single_paragraphs_are_averaged(tiny_model, tiny_paragraphs):
    whole = mm.ablate_heads(tiny_model, tiny_paragraphs[:3], heads=["L0H1", "L1H0"])
    single = mm.ablate_heads(tiny_model, tiny_paragraphs[:3], heads=["L0H1", "L1H0"], average=False)
    for ours, theirs in zip(mm.show.heads(single).figure.data, mm.show.heads(whole).figure.data, strict=True):
        np.testing.assert_allclose(
            ours.x if ours.type == "bar" else ours.z, theirs.x if theirs.type == "bar" else theirs.z
        )


def test_what_heads_cannot_show_is_refused(ablation, rare):
    with pytest.raises(InputError, match="got attention without"):
        mm.show.heads(ablation, ablation)
    with pytest.raises(InputError, match="need the same model's heads"):
        mm.show.heads(ablation, rare.isel(head=slice(2)))
    with pytest.raises(InputError, match="got an ablation of no head"):
        mm.show.heads(ablation * np.nan)
    with pytest.raises(InputError, match="got measure 'loss'"):
        mm.show.heads(ablation, measure="loss")
    with pytest.raises(InputError, match="got theme 'blue'"):
        mm.show.heads(ablation, theme="blue")


def test_one_heads_tenths_and_its_place_among_all(rare):
    chart = mm.show.rare_tokens(rare, head="L1H3")
    bars, line, heads = chart.figure.data
    np.testing.assert_allclose(bars.y, 100 * rare.tenth_mass[:, 1, 3])
    np.testing.assert_allclose(line.y, 100 * rare.tenth_expected[:, 1, 3])
    assert bars.x[0] == "1<br>12" and bars.x[1] == "2<br>" and bars.x[3] == "4<br>1.2k" and bars.x[9] == "10<br>4G"
    np.testing.assert_allclose(heads.y, 100 * np.sort(rare.excess.values.ravel())[::-1])
    marked = [point[0] for point, size in zip(heads.customdata, heads.marker.size, strict=True) if size == 13]
    assert marked == ["L1H3"] and chart.title == "L1H3 and rare tokens"
    rank = int((rare.excess > rare.excess[1, 3]).sum()) + 1
    assert f"number {rank} of 15 heads, p = {float(rare.p_value[1, 3]):.2g}" in chart.caption
    symbols = dict(zip([point[0] for point in heads.customdata], heads.marker.symbol, strict=True))
    assert [symbols[f"L{i}H{j}"] == "diamond" for i in range(3) for j in range(5)] == (
        rare.p_value.values < 0.05
    ).ravel().tolist()


def test_without_a_name_the_head_that_attends_most_is_shown(rare):
    layer, head = divmod(int(rare.excess.values.argmax()), HEADS)
    assert mm.show.rare_tokens(rare).title == f"L{layer}H{head} and rare tokens"
    assert mm.show.rare_tokens(rare, head=(2, 1)).title == "L2H1 and rare tokens"
    for wrong in ("L3H0", (0, 5), "x", (-1, 0)):
        with pytest.raises(InputError, match="need a name such as 'L0H0', or a pair, of heads up to L2H4"):
            mm.show.rare_tokens(rare, head=wrong)


def test_a_heads_report_shows_both_sets_and_the_tests(tiny_model, tiny_paragraphs):
    counts = np.arange(tiny_model.cfg.d_vocab) + 1.0
    report = mm.head_report(tiny_model, tiny_paragraphs[:4], tiny_paragraphs[4:8], head="L1H1", counts=counts)
    chart = mm.show.rare_tokens(report)
    assert chart.title == "L1H1 and rare tokens"
    traces = {trace.name: trace for trace in chart.figure.data if trace.name}
    for name in ("memorized", "other"):
        own = report.sel(set=name, layer=1, head=1)
        np.testing.assert_allclose(traces[f"{name}: this head"].y, 100 * own.tenth_mass)
        np.testing.assert_allclose(traces[f"{name}: expected"].y, 100 * own.tenth_expected)
        assert float(own.tenth_mass[0] - own.tenth_expected[0]) == pytest.approx(float(own.excess))
    tests = chart.figure.data[-1]
    assert list(tests.y)[::-1] == [f"its {name}" for name in report.test.values]
    np.testing.assert_allclose(tests.x[::-1], report.nll_mean)
    np.testing.assert_allclose(np.add(tests.x, tests.error_x.array)[::-1], report.nll_high)
    # Another head of the report has no causal tests.
    assert len(mm.show.rare_tokens(report, head="L0H0").figure.data) == len(chart.figure.data) - 1


def run(method="npo", ended="steps", steps=4, prefix="memorized"):
    rng = np.random.default_rng(len(method))
    columns = {f"{prefix}_nll": rng.random(steps), f"{prefix}_em": rng.random(steps), "keep_kl": rng.random(steps)}
    columns["objective"] = rng.random(steps)
    final = {key: 9.0 for key in columns} if ended == "steps" else {key: values[-1] for key, values in columns.items()}
    if ended == "budget":
        final = {key: values[1] for key, values in columns.items()}
    attrs = {"ended": ended, "method": method, "seed": 0, "em_before": 50.0, "em_after": 3.25}
    attrs |= {f"final_{key}": value for key, value in final.items()}
    return xr.Dataset({key: ("step", values) for key, values in columns.items()}, {"step": np.arange(steps)}, attrs)


def test_a_history_is_its_lines_and_a_star_where_it_ended():
    history = run()
    nll, star, em, _, kl, _ = mm.show.history(history).figure.data
    assert list(nll.y) == [*history.memorized_nll.values, 9.0] and list(nll.x) == [0, 1, 2, 3, 4]
    assert list(em.y) == [*history.memorized_em.values, 9.0] and list(kl.y) == [*history.keep_kl.values, 9.0]
    assert (star.x, star.y) == ((4,), (9.0,))


@pytest.mark.parametrize(("ended", "place"), [("stop rule", 3), ("budget", 1), ("diverged", 3)])
def test_the_star_is_at_the_weights_that_were_returned(ended, place):
    history = run(ended=ended)
    chart = mm.show.history(history)
    line, star = chart.figure.data[:2]
    assert len(line.x) == 4 and star.x == (place,) and star.y == (float(history.memorized_nll[place]),)
    assert f"(step {place}), mean EM of the targets 50.0 → 3.2 tokens" in chart.caption


def test_several_histories_share_the_panels():
    both = {"first": run(), "<b>second</b>": run("edit", prefix="target", steps=6)}
    chart = mm.show.history(both, stop=mm.Stop(target_em=10.0, keep_kl=0.5))
    assert [trace.name for trace in chart.figure.data if trace.showlegend] == ["first", "&lt;b&gt;second&lt;/b&gt;"]
    assert chart.figure.layout.showlegend and chart.title == "Steps of edits"
    assert sorted(shape.y0 for shape in chart.figure.layout.shapes) == [0.5, 10]
    # What holds of one of them only is not said below.
    assert chart.caption.endswith("\nseed 0")


def test_a_real_history_is_shown(tiny_model, tiny_paragraphs):
    rule = mm.Training(steps=3, learning_rate=1e-3)
    _, history = mm.unlearn(
        tiny_model, tiny_paragraphs[:4], tiny_paragraphs[4:8], training=rule, stop=mm.Stop(), check_targets=False
    )
    line = mm.show.history(history).figure.data[0]
    assert list(line.y) == pytest.approx([*history.memorized_nll.values, history.attrs["final_memorized_nll"]])


def test_what_is_no_history_is_refused():
    with pytest.raises(InputError, match="got no history"):
        mm.show.history({})
    with pytest.raises(InputError, match="got history 'a' without objective"):
        mm.show.history({"a": xr.Dataset()})
    with pytest.raises(InputError, match="without a step of its targets"):
        mm.show.history(run().isel(step=slice(0)))


def scored(tiny_paragraphs, em=(30, 0, 7, 30)):
    count = len(em)
    data = {
        "em": ("paragraph", np.array(em)),
        "nll": ("paragraph", np.linspace(0.1, 2, count)),
        "match": (("paragraph", "pos"), np.zeros((count, 30), bool)),
    }
    return xr.Dataset(data, {"paragraph": tiny_paragraphs[:count].ids})


def test_scores_are_counted_by_em_and_their_nll_is_shown_by_set(tiny_paragraphs):
    scores = scored(tiny_paragraphs)
    chart = mm.show.scores(scores)
    bars = [trace for trace in chart.figure.data if trace.type == "bar"]
    counts = {int(x): int(y) for bar in bars for x, y in zip(bar.x, bar.y, strict=True) if y}
    assert counts == {0: 1, 7: 1, 30: 2}
    boxes = {box.name: list(box.x) for box in chart.figure.data if box.type == "box"}
    nll = scores.nll.values
    assert boxes == {"other": [nll[1]], "between": [nll[2]], "memorized": [nll[0], nll[3]]}
    assert "of 30" in chart.caption and chart.caption.endswith("4 paragraphs")


def test_scores_by_count_and_of_given_sets(tiny_paragraphs):
    scores = scored(tiny_paragraphs)
    known = tiny_paragraphs[:4].select([3, 1, 0]).with_columns(count=np.array([8, 0, 8]))
    chart = mm.show.scores(scores, known, sets={"mine <b>": tiny_paragraphs[:2], "<i>": tiny_paragraphs[2:4]})
    boxes = {box.name: list(box.x) for box in chart.figure.data if box.type == "box"}
    assert boxes == {"mine &lt;b&gt;": scores.nll.values[:2].tolist(), "&lt;i&gt;": scores.nll.values[2:].tolist()}
    share = [trace for trace in chart.figure.data if trace.type == "bar"][-1]
    assert list(share.x) == ["0", "8"] and list(share.y) == [0, 100]


def test_what_scores_cannot_show_is_refused(tiny_paragraphs):
    scores = scored(tiny_paragraphs)
    with pytest.raises(InputError, match="got scores of no paragraph"):
        mm.show.scores(scores.isel(paragraph=slice(0)))
    with pytest.raises(InputError):
        mm.show.scores(scores, tiny_paragraphs[4:6])


def test_the_line_below_says_where_numbers_come_from():
    assert origin(xr.Dataset(attrs={"model": "gpt", "seed": 1, "other": 2})) == "model gpt, seed 1"
    assert origin(xr.Dataset()) == ""
