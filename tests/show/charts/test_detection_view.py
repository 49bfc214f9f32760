"""The chart of a detector: every line has the numbers of the result, and what cannot be shown is refused."""

# Plotly declares every part of a figure as a union of all that may be assigned to it, so reading one back never types.
# pyright: reportAttributeAccessIssue=false, reportOptionalIterable=false, reportIndexIssue=false
import numpy as np
import pytest

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.charts.detection_figures import best_baseline, measure_by_k, reliability
from tests.report.conftest import KS, METHODS, detection


@pytest.fixture
def found():
    return detection(np.random.default_rng(0))


@pytest.mark.parametrize("measure", ["tpr_at_1", "tpr_at_01", "auroc"])
def test_every_method_has_a_line_at_its_numbers(found, measure):
    figure = measure_by_k(found, measure)
    factor = 1 if measure == "auroc" else 100
    lines = {trace.name: trace for trace in figure.data if trace.name}
    shown = dict(zip(("detector", "running NLL", "entropy"), METHODS, strict=True))
    assert set(lines) == set(shown)
    for name, line in lines.items():
        one = found.sel({"method": shown[name]})
        np.testing.assert_allclose(line.x, np.array(KS) + 1)
        np.testing.assert_allclose(line.y, factor * one[measure].values)
        ends = np.stack([factor * one[f"{measure}_low"].values, factor * one[f"{measure}_high"].values, KS], 1)
        np.testing.assert_allclose(line.customdata, ends)
    assert lines["detector"].line.dash == "solid"
    dashes = {(lines[name].line.dash, lines[name].line.color) for name in ("running NLL", "entropy")}
    assert len(dashes) == 2 and all(dash != "solid" for dash, _ in dashes)
    # Areas: of the detector and of the best baseline alone.
    areas = [trace.legendgroup for trace in figure.data if trace.fill]
    assert sorted(areas) == ["detector", "running NLL"]


def test_the_best_baseline_is_no_detector_and_may_differ_by_k(found):
    assert best_baseline(found, "tpr_at_1") == "nll"
    crossed = found.copy(deep=True)
    crossed["tpr_at_1"][{"method": 2, "k": 3}] = 0.99
    assert best_baseline(crossed, "tpr_at_1", 4) == "entropy" and best_baseline(crossed, "tpr_at_1", 0) == "nll"
    assert best_baseline(found.isel(method=[0]), "tpr_at_1") is None


def test_reliability_shows_the_bins_that_have_scores(found):
    diagonal, points = reliability(found).data
    assert list(diagonal.x) == list(diagonal.y) == [0, 100]
    known = [0, 1, 3, 4]
    np.testing.assert_allclose(points.x, 100 * found.predicted.values[0, known])
    np.testing.assert_allclose(points.y, 100 * found.observed.values[0, known])
    np.testing.assert_allclose(points.error_y.array, 100 * (found.observed_high - found.observed).values[0, known])
    np.testing.assert_allclose([row[2] for row in points.customdata], [40, 20, 10, 30])


def test_the_chart_has_both_panels_and_refuses_other_results(found):
    chart = mm.show.detection(found)
    assert len([trace for trace in chart.figure.data if trace.name in ("detector", "running NLL", "entropy")]) == 4
    assert "1 % false alarms" in chart.caption and "seed 0" in chart.caption
    assert "0.5: not at all" in mm.show.detection(found, measure="auroc").caption
    with pytest.raises(InputError, match="without observed; need the whole Dataset that mechmem.evaluate_detector"):
        mm.show.detection(found.drop_vars("observed"))
    with pytest.raises(InputError, match="an evaluation of no detector"):
        mm.show.detection(found.isel(method=[1, 2]))
    with pytest.raises(InputError, match="got measure 'loss'; need one of tpr_at_1"):
        mm.show.detection(found, measure="loss")
