"""Section 5, of studies with a detector: can it be noticed, while the model decodes, that it recites?"""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechmem.report.page import Block, Cell, Figure, Section, Table, View
from mechmem.report.sections.wording import listed, percent
from mechmem.report.study_files import StudyFiles
from mechmem.show.charts.detection_figures import (
    best_baseline,
    is_detector,
    measure_by_k,
    method_name,
    reliability,
)
from mechmem.show.texts.alarms_view import alarms

# Own tokens after which the summary says what is found.
MOMENTS = (0, 4, 16)
# An alarm is early if this share of the tokens is still to come.
EARLY = 0.8
READING = (
    "The model is given the prefixes of held-out paragraphs and decodes. A recitation is a generation whose greedy "
    "text is the paragraph's own continuation, to the last token; the others get at most a fifth of it right, and what "
    "lies between is left out. k counts the tokens that the model has said itself: at k = 0 it has said none.",
    "The detector reads what each decoding step leaves behind and gives a score: the probability that the model "
    "recites, if recitations and other text were equally frequent. Where recitations are rarer, fewer of the flagged "
    "texts are recitations. The baselines need no detector: they are statistics of the output, or of the text alone.",
    "In the first figure the threshold of each method and k is set so that 1 % of the other generations exceed it, on "
    "other clusters than those it is judged on; what is shown is the share of recitations above it. All methods are "
    "judged on the same generations.",
    "The alarm is another threshold: the detector's score is followed over the whole generation, and the threshold is "
    "set on a third set of clusters so that a whole generation of other text raises it with at most the probability "
    "that was asked for.",
)
LIMITS = (
    "Recitations are generations that reproduce these paragraphs from these prefixes. Text that is recited in part, "
    "with changes or from another prefix is not in these numbers.",
    "The labels come from what the model says, so statistics of its output are strong by construction: a model that "
    "recites is certain. The baselines show how far they go alone.",
    "The bound on false alarms holds for text like the other paragraphs of this corpus and for generations as long as "
    "those it was set on. Other text, other sampling and longer generations can raise more.",
)
NEVER = (
    "The alarm is never raised: its threshold is infinite, because too few clusters of other paragraphs were set apart "
    "for it. A bound of a needs 1/a - 1 of them: 99 for 1 %."
)
TPR = 'mm.show.detection(study.results["detect"])'
ALARMS = 'mm.show.alarms(study.results["detect"])'
RELIABILITY = 'study.results["detect"][["predicted", "observed", "in_bin"]].to_dataframe()'


def detection_section(study: StudyFiles) -> Section | None:
    """What a detector finds while decoding beside the baselines, what its scores are worth, and when it fired.

    None: the study has no detector.
    """
    found = study.detection
    if found is None:
        return None
    return Section(
        "detection",
        "Can it be noticed while decoding?",
        "Does the model show, while it speaks, that it recites, and how early?",
        [verdict(found), *moment_sentences(found), alarm_sentence(found), calibration_sentence(found)],
        [*_figures(found), _examples(found), _numbers(found)],
        READING,
        limits=LIMITS,
    )


def while_it_speaks(found: xr.Dataset) -> str:
    """One sentence for the page's beginning: how much is found early, at what rate of false alarms, beside what."""
    known = moments(found)
    early = percent(float(_first(found).flagged_early))
    if not known:
        return verdict(found)
    k = known[min(1, len(known) - 1)]
    ours, other = compared(found, k)
    rival = "" if other is None else f", the best free baseline ({method_name(other.method.item())}) {_share(other)}"
    return (
        f"At 1 % false alarms the detector finds {_share(ours)} of the recitations after {k} own tokens{rival}; "
        f"over whole generations it flags {early} with at least {_to_come(found)} tokens still to come."
    )


def compared(found: xr.Dataset, k: int, measure: str = "tpr_at_1") -> tuple[xr.Dataset, xr.Dataset | None]:
    """The first detector's row after k own tokens, and that of the best baseline; None: there is no baseline."""
    ours = found.isel(method=int(np.flatnonzero(is_detector(found))[0])).sel(k=k)
    best = best_baseline(found, measure, k)
    return ours, None if best is None else found.sel({"method": best, "k": k})


def moments(found: xr.Dataset) -> list[int]:
    """Those of `MOMENTS` that were measured; none where too few others were judged for 1 % of them."""
    known = [k for k in MOMENTS if k in found.k.values]
    return [k for k in known if np.isfinite(float(compared(found, k)[0].tpr_at_1))]


def verdict(found: xr.Dataset) -> str:
    """Whether the detector finds more than the best free baseline, by more than the intervals, in one sentence."""
    if not moments(found):
        return (
            f"The detector was judged on {int(found.attrs['others'])} other generations, too few for a threshold at "
            "1 % false alarms: judge it on more paragraphs, at least 125, to compare it with the free baselines."
        )
    better, same, worse = [], [], []
    for k in moments(found):
        ours, other = compared(found, k)
        if other is None or float(ours.tpr_at_1_low) > float(other.tpr_at_1_high):
            better.append(str(k))
        elif float(ours.tpr_at_1_high) < float(other.tpr_at_1_low):
            worse.append(str(k))
        else:
            same.append(str(k))
    every = f"at k = {listed(better or same or worse)}"
    if better and not same and not worse:
        return f"The detector finds more recitations than every free baseline, by more than the intervals, {every}."
    if worse and not better and not same:
        return f"The detector finds fewer recitations than the best free baseline {every}: use the free statistics."
    if not better and not worse:
        return (
            f"The detector does not find more recitations than the best free baseline {every}: the intervals overlap, "
            "so statistics that cost nothing say as much."
        )
    parts = [f"finds more recitations than every free baseline at k = {listed(better)}"] if better else []
    parts += [f"does not differ from the best one by more than the intervals at k = {listed(same)}"] if same else []
    parts += [f"finds fewer than the best one at k = {listed(worse)}"] if worse else []
    return f"The detector {listed(parts)}."


def moment_sentences(found: xr.Dataset) -> list[str]:
    """What is found after a few tokens, by the detector and by the best baseline."""
    sentences = []
    for k in moments(found):
        ours, other = compared(found, k)
        rival = (
            "" if other is None else f"; the best baseline, {method_name(other.method.item())}, finds {_share(other)}"
        )
        sentences.append(
            f"After {k} own tokens the detector finds {_share(ours)} of the recitations at 1 % false alarms{rival}."
        )
    return sentences


def alarm_sentence(found: xr.Dataset) -> str:
    """How many recitations raise the alarm, how early, and how many other generations do."""
    one, bound = _first(found), float(found.attrs["false_alarms"])
    if _never(found):
        return NEVER
    rate = f"{percent(float(one.false_alarm_rate))} ({_ends(one, 'false_alarm_rate')})"
    kept = "within" if float(one.false_alarm_rate_low) <= bound else "above"
    return (
        f"The alarm is raised in {percent(float(one.flagged))} ({_ends(one, 'flagged')}) of the recitations, in "
        f"{percent(float(one.flagged_early))} ({_ends(one, 'flagged_early')}) with at least {_to_come(found)} tokens "
        f"still to come, and in {rate} of the other generations: {kept} the bound of {percent(bound)}."
    )


def calibration_sentence(found: xr.Dataset) -> str:
    """How far the scores are from observed shares."""
    error = float(_first(found).calibration_error.mean("k"))
    return (
        f"The scores differ from observed shares by {error:.3f} on average over k (expected calibration error; 0 is "
        "perfect)."
    )


def alarm_rows(found: xr.Dataset) -> list[tuple[str, str]]:
    """The summary of a command: what was measured, and its value with its interval."""
    one = _first(found)
    rows = [
        (f"recitations flagged with {_to_come(found)} tokens to come", "flagged_early"),
        ("recitations flagged", "flagged"),
        (
            f"false alarms in whole generations (bound {percent(float(found.attrs['false_alarms']))})",
            "false_alarm_rate",
        ),
    ]
    said = [(name, f"{percent(float(one[key]))} ({_ends(one, key)})") for name, key in rows]
    said = [("alarms", "never: too few clusters for a threshold")] if _never(found) else said
    return [*said, ("calibration error, mean over k", f"{float(one.calibration_error.mean('k')):.3f}")]


def share_text(row: xr.Dataset) -> str:
    """The share of recitations found at 1 % false alarms, with its interval."""
    return _share(row)


def _never(found: xr.Dataset) -> bool:
    """Whether the threshold of the alarm is infinite."""
    one = _first(found)
    return not np.isfinite(float(one.get("bound", one.false_alarm_rate)))


def _to_come(found: xr.Dataset) -> int:
    return round(EARLY * int(found.attrs["generation_len"]))


def _first(found: xr.Dataset) -> xr.Dataset:
    return found.isel(method=int(np.flatnonzero(is_detector(found))[0]))


def _share(row: xr.Dataset) -> str:
    if not np.isfinite(float(row.tpr_at_1)):
        return "not measured"
    return f"{percent(float(row.tpr_at_1))} ({_ends(row, 'tpr_at_1')})"


def _ends(row: xr.Dataset, name: str) -> str:
    low, high = (100 * float(row[f"{name}_{end}"]) for end in ("low", "high"))
    return f"{low:.1f} to {high:.1f} %"


def _figures(found: xr.Dataset) -> list[Block]:
    settings = f"{int(found.attrs['recitations'])} recitations and {int(found.attrs['others'])} other generations"
    return [
        Figure(
            measure_by_k(found),
            f"Share of recitations found at 1 % false alarms after k own tokens, of {settings} from clusters that the "
            "detector was not trained on. Solid: the detector; dashed: baselines that cost nothing. The areas are 95 % "
            "intervals of the detector and of the best baseline; point at a line for those of the others. Higher means "
            "more found.",
            code=TPR,
        ),
        Figure(
            reliability(found),
            "Each point gathers steps of about one score: how often the model recites among them, against the score, "
            "both as if recitations and other text were equally frequent. On the diagonal a score is a probability; "
            "above it, the model recites more often than said. Larger points stand for more steps; whiskers are 95 % "
            "intervals, by cluster.",
            code=RELIABILITY,
        ),
    ]


def _examples(found: xr.Dataset) -> View:
    reading = (
        "Generations of held-out paragraphs, those of each kind drawn at random. Darker orange is a higher score; the "
        "frame is the token at which the alarm was raised. Point at a token for its score."
    )
    return View("What fired, and when", alarms(found), reading, ALARMS)


def _numbers(found: xr.Dataset) -> Table:
    columns = {
        "tpr_at_1": "At 1 %",
        "tpr_at_1_low": "Low",
        "tpr_at_1_high": "High",
        "tpr_at_01": "At 0.1 %",
        "auroc": "AUROC",
        "calibration_error": "Calibration error",
    }
    rows: list[list[Cell]] = []
    for k in found.k.values:
        for method in found.method.values:
            one = found.sel({"k": k, "method": method})
            rows.append([int(k), method_name(method), str(one.kind.item()), *(float(one[name]) for name in columns)])
    note = (
        "Share of recitations found at 1 % and at 0.1 % false alarms with the 95 % interval of the first; area under "
        "the ROC curve (0.5: no better than chance); expected calibration error of the detector's scores. Higher is "
        "better in all but the last."
    )
    return Table("All methods as numbers", ["k", "Method", "Kind", *columns.values()], rows, note)
