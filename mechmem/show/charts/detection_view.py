"""`show.detection`: what a detector finds at each token beside the baselines, and what its scores are worth."""

from __future__ import annotations

import xarray as xr

from mechmem.data.argument_checks import check_results
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.show.charts.chart import Chart
from mechmem.show.charts.detection_figures import Measure, is_detector, measure_by_k, reliability
from mechmem.show.charts.figure_stack import origin, stacked
from mechmem.show.fragment import Theme

CAPTION = (
    "Above: {what}, by how many tokens the model has said itself; solid lines are detectors, dashed ones baselines "
    "that cost nothing; the areas are 95 % intervals of the detectors and of the best baseline. Below: among steps of "
    "about one score, how often the model recites, both at even odds; larger points stand for more steps, whiskers are "
    "95 % intervals."
)
WHAT = {
    "tpr_at_1": "share of recitations found at 1 % false alarms (higher: more found)",
    "tpr_at_01": "share of recitations found at 0.1 % false alarms (higher: more found)",
    "auroc": "area under the ROC curve (higher: recitations and other text are told apart better; 0.5: not at all)",
}


def detection(evaluation: xr.Dataset, *, measure: Measure | str = "tpr_at_1", theme: Theme | str = "auto") -> Chart:
    """Show how much a detector finds after k tokens beside every baseline, and whether its scores are probabilities.

    Args:
        evaluation: what `evaluate_detector` returned.
        measure: "tpr_at_1" (share of recitations found at 1 % false alarms), "tpr_at_01" (at 0.1 %) or "auroc".
        theme: "auto" follows the notebook or the browser.

    Returns:
        A `Chart`: a notebook displays it, `.figure` is plotly's, `.save("detection.html")` writes it.

    Raises:
        InputError: another kind of result, or one without a detector.
    """
    check_choice("theme", theme, Theme)
    check_choice("measure", measure, Measure)
    ends = [f"{measure}{end}" for end in ("", "_low", "_high")]
    of_bins = ("predicted", "observed", "observed_low", "observed_high", "in_bin")
    check_results("evaluation", evaluation, (*ends, *of_bins), "evaluate_detector")
    if "kind" not in evaluation.coords or not is_detector(evaluation).any():
        raise InputError("got an evaluation of no detector; need what mechmem.evaluate_detector returned")
    figure = stacked("Recitations found while decoding", [measure_by_k(evaluation, measure), reliability(evaluation)])
    # A dozen methods take several lines, which would lie on the title.
    figure.update_layout(legend={"y": -0.1, "yanchor": "top"})
    return Chart(figure, f"{CAPTION.format(what=WHAT[measure])}\n{origin(evaluation)}".strip(), theme)
