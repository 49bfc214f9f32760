"""The page of the detection experiment: tables, figures and text, from the numbers that were kept."""

from typing import Any

import detection_figures as figures
from detection_compare import BEST, REFERENCES
from detection_statistics import precision
from detection_tables import (
    LOOKED_AT,
    actions_part,
    cell,
    difference,
    grid,
    kinds_part,
    limits_part,
    special_part,
    transfer_part,
)
from outputs import kept_text, photograph, stamp, write_page

# As a referee would ask for it: few, common and rare recitation.
BASE_RATES = (0.4, 0.01, 0.001)
RATE = 0.01


def truth_part(results: dict[str, Any]) -> list[str]:
    """What the rows are."""
    meaning = {
        "recites": "recites: greedy text is the true continuation (EM 50)",
        "recites, but not in the training text": "of these, the paragraph is not in the training text",
        "other": "other: EM at most 10, and no 25 tokens in a row of what it says are training text",
        "elsewhere": "EM at most 10, but all 50 tokens it says are training text: it recites another text",
        "partly": "EM at most 10, but 25 or more tokens in a row are training text",
        "between": "EM 11 to 49",
        "predictable": "predictable texts, written for this page, never seen",
    }
    said = results["said"]
    rows = [
        [
            text,
            str(results["rows"][name][0]),
            str(results["rows"][name][1]),
            f"{said[name]:.2f}" if name in said else "–",
        ]
        for name, text in meaning.items()
    ]
    sets = [
        [name, str(found["recites"]), str(found["other"]), cell(found["confounds"])]
        for name, found in results["sets"].items()
    ]
    return [
        "## What is true of the rows",
        "",
        *grid(["rows", "paragraphs", "clusters", "probability of a token said"], rows),
        "Only recitations and other texts are compared. Recitations of another text are no negatives; they have rows "
        "of their own below. Confounds are the kind, rarity, repeated runs, zlib ratio, characters and the share of "
        "different tokens of the prefix; a boosted classifier on other clusters sees these alone.",
        "",
        *grid(["set", "recitations", "other texts", "AUROC of confounds alone"], sets),
    ]  # fmt: skip


def compared_part(results: dict[str, Any]) -> list[str]:
    """Methods on the matched set, and differences on all sets."""
    matched = results["compared"]["matched"]
    order = sorted(matched, key=lambda name: -matched[name]["TPR at 1 %"]["0"][0])
    rows = [
        [
            name,
            *(cell(matched[name]["AUROC"][k]) for k in LOOKED_AT[:2]),
            *(cell(matched[name]["TPR at 1 %"][k]) for k in LOOKED_AT),
        ]
        for name in order
    ]
    lines = [
        "## Detectors and output statistics, on the matched set",
        "",
        *grid(["method", "AUROC, k = 0", "AUROC, k = 4", *(f"TPR at FPR 1 %, k = {k}" for k in LOOKED_AT)], rows),
        "![Share flagged against k](detection-step.png)",
        "",
        "### Differences",
        "",
        f"Paired by cluster. `{BEST}` is the statistic, with its sign, that does best on the other folds at this k.",
        "",
    ]
    for reference in REFERENCES:
        rows = []
        for name in order:
            if name.startswith(("free", BEST)) or f"minus {reference}" not in matched[name]:
                continue
            cells = [
                difference(results["compared"][part][name][f"minus {reference}"]["TPR at 1 %"][k])
                for part in results["compared"]
                for k in LOOKED_AT[:2]
            ]
            rows.append([name, *cells])
        head = [
            f"TPR at 1 % minus {reference}",
            *(f"{part}, k = {k}" for part in results["compared"] for k in LOOKED_AT[:2]),
        ]
        lines += grid(head, rows)
    return [*lines, "![AUROC by depth](detection-depth.png)", ""]


def whole_part(results: dict[str, Any]) -> list[str]:
    """Whole generations, calibration, TPR at 0.1 %, precision."""
    every, matched = results["compared"]["all"], results["compared"]["matched"]
    order = sorted(every, key=lambda name: -every[name]["flagged early"][0])
    rows = []
    for name in order:
        found = every[name]
        rates = [f"{precision(found['flagged'][0], found['false alarms'][0], rate):.2f}" for rate in BASE_RATES]
        rows.append(
            [name, cell(found["flagged"]), cell(found["flagged early"]), f"{found['tokens to come']:.0f}",
             cell(found["false alarms"]), cell(found["false alarms per 1,000 tokens"], 2), *rates]
        )  # fmt: skip
    head = [
        "method",
        "recitations flagged",
        "with 40 of 50 to come",
        "tokens to come (median)",
        "generations with a false alarm",
    ]
    lines = [
        "## Whole generations",
        "",
        "All rows. The threshold is the conformal one for at most 1 % of generations with a false alarm, from clusters "
        "of the other folds. For the statistics by themselves it comes from all of these clusters, for detectors from "
        "three tenths of them. Precision is given for three base rates.",
        "",
        *grid([*head, "per 1,000 tokens", *(f"precision at {rate:g}" for rate in BASE_RATES)], rows),
    ]
    if "base rates" in results:
        given = ", ".join(f"{value:.3f} of windows ({name})" for name, value in results["base rates"].items())
        lines += [f"The model recites {given} of its training text.", ""]
    calibrated = [name for name in order if every[name]["calibration"]]
    rows = [
        [
            name,
            *(cell(every[name]["calibration"][k]) for k in LOOKED_AT),
            *(cell(matched[name]["TPR at 0.1 %"][k], 2) for k in LOOKED_AT),
        ]
        for name in calibrated
    ]
    head = [
        "detector",
        *(f"calibration error, k = {k}" for k in LOOKED_AT),
        *(f"TPR at FPR 0.1 %, k = {k}" for k in LOOKED_AT),
    ]
    return [
        *lines,
        "Calibration error: all rows, both sets weighted alike. TPR at 0.1 %: matched set; the threshold is nearly the "
        "largest of a few hundred scores, so intervals are wide.",
        "",
        *grid(head, rows),
    ]


PARTS = {
    "rows": truth_part, "compared": compared_part, "special": whole_part, "special ": special_part, "bound": kinds_part,
    "transfer": transfer_part, "gradients": limits_part, "actions": actions_part,
}  # fmt: skip


def write(settings: Any, results: dict[str, Any]) -> None:
    """Write what is known so far, with its figures.

    Args:
        settings: of the run.
        results: its numbers.
    """
    page = settings.page
    lines = [
        "# Detecting recitation while a model speaks",
        "",
        f"{stamp('detection')}, seeds {list(settings.seeds)}, one for each fold of clusters. Values have 95 % "
        f"intervals by cluster ({settings.draws} resamples, for the detectors as fitted). k is the number of "
        "own tokens said.",
        f"<!-- findings -->{kept_text(page, 'findings')}<!-- findings -->",
        "",
    ]  # fmt: skip
    results = _with_text_keys(results)
    for name, part in PARTS.items():
        if name.strip() in results:
            lines += part(results)
    lines.append(f"<!-- limits -->{kept_text(page, 'limits')}<!-- limits -->")
    write_page(page, lines)
    if page is not None and "compared" in results:
        photograph(figures.by_step(results["compared"]["matched"]), page.with_name("detection-step.png"))
        photograph(figures.by_depth(results["compared"]["matched"]), page.with_name("detection-depth.png"))
    if page is not None and "bound" in results:
        photograph(figures.by_kind(results["bound"], RATE), page.with_name("detection-kinds.png"))


def _with_text_keys(value: Any) -> Any:
    """The same with every key as text, as JSON has them."""
    return {str(key): _with_text_keys(each) for key, each in value.items()} if isinstance(value, dict) else value
