"""Tables of the detection page: how numbers are written, and the tables on other text, nulls and actions."""

from collections.abc import Sequence
from typing import Any

from detection_compare import BEST

LOOKED_AT = ("0", "4", "16")


def cell(value: Sequence[float] | None, digits: int = 3, scale: float = 1) -> str:
    """A value with its interval."""
    if value is None:
        return "–"
    middle, low, high = (scale * number for number in value)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def difference(value: Sequence[float]) -> str:
    """A difference with its interval, with its sign; bold where the interval leaves out 0."""
    middle, low, high = value
    text = f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def cells(values: dict[str, Any], count: int = 3) -> list[str]:
    """Values at the first `count` of the steps that are looked at."""
    return [cell(values[k]) for k in LOOKED_AT[:count]]


def special_part(results: dict[str, Any]) -> list[str]:
    """Rows that are no plain negatives."""
    found = results["special"]
    names = [name for name in next(iter(found.values())) if name not in ("rows", "clusters")]
    shown = [
        name
        for name in names
        if name in (BEST, "free: nll", "free: prefix_nll", "free: entropy") or name.startswith("output")
    ]
    rows = [
        [name, f"{part['rows']} ({part['clusters']})", *(cell(part[method], 2) for method in shown)]
        for name, part in found.items()
    ]
    return [
        "## Rows that are no plain negatives",
        "",
        "Share of generations flagged. For recitations of another text an alarm is right; for predictable texts and "
        "other texts it is false. The tenth said most surely is chosen by the output, which makes it hardest for "
        "methods that read the output alone.",
        "",
        *grid(["rows", "paragraphs (clusters)", *shown], rows),
    ]


def kinds_part(results: dict[str, Any]) -> list[str]:
    """One kind held out at a time."""
    rows = []
    for name, found in results["kinds"]["all"].items():
        rows.append([name, *cells(found["AUROC"], 2), *cells(found["TPR at 1 %"], 2)])
    lines = [
        "## Kinds that were never trained on",
        "",
        "Ten detectors, each without one kind; every kind judged by the one that never saw it. All rows.",
        "",
        *grid(["method", "AUROC, k = 0", "AUROC, k = 4", "TPR at 1 %, k = 0", "TPR at 1 %, k = 4"], rows),
    ]
    rows = []
    for name, ways in results["bound"].items():
        for way, found in ways.items():
            if way != "by kind":
                alarms, count = found["one per cluster"]
                rows.append([name, way, cell(found["false alarms"]), f"{alarms} of {count}",
                             f"{found['p that the bound holds']:.3g}", cell(found["flagged"])])  # fmt: skip
    head = [
        "method",
        "threshold from",
        "generations with a false alarm",
        "one of each cluster",
        "p if the rate is 1 %",
        "recitations flagged",
    ]
    return [
        *lines,
        "Does the bound of 1 % hold there? `own`: clusters of the kinds trained on, as `train_detector` does; `other "
        "kinds`: statistics of kinds that were held out themselves; `worst kind`: the highest of these kinds' own "
        "thresholds.",
        "",
        *grid(head, rows),
        "![False alarms by kind](detection-kinds.png)",
        "",
    ]


def transfer_part(results: dict[str, Any]) -> list[str]:
    """Transfer rows."""
    rows, notes = [], []
    for name, found in results["transfer"].items():
        for method, values in found.items():
            if method not in ("rows", "notes"):
                rows.append([name, f"{found['rows'][0]} / {found['rows'][1]}", method,
                             *(cell(values.get(f"AUROC at k = {k}"), 2) for k in (0, 4, 16)),
                             cell(values["flagged"], 2), cell(values["false alarms"], 3)])  # fmt: skip
        for key, value in found["notes"].items():
            notes.append(f"- {name}: {key}: {value if isinstance(value, str) else f'{value:.2f}'}")
    head = [
        "text",
        "recitations / other",
        "detector",
        *(f"AUROC, k = {k}" for k in (0, 4, 16)),
        "recitations flagged",
        "false alarms",
    ]
    return ["## Transfer", "", "Detectors of the first fold, trained on greedy text of the unedited model alone.", "",
            *grid(head, rows), *notes, ""]  # fmt: skip


def limits_part(results: dict[str, Any]) -> list[str]:
    """Nulls and the ceiling."""
    random = ", ".join(f"{name} {cell(value)}" for name, value in results["random model"].items())
    found = results["gradients"]
    rows = [
        [f"{k}", name, cell(values["AUROC"]), cell(values["TPR at 1 %"])]
        for k, part in found.items()
        if k != "rows"
        for name, values in part.items()
    ]
    return ["## Nulls, and gradients as a ceiling", "",
            f"AUROC of the states of a model of the same shape with random weights, at k = 0: {random}. It knows the "
            "text, and nothing of the model. Labels dealt out anew among clusters are a row of the first table.", "",
            f"Gradients by layer of the own text's NLL need a backward at every step and are no detector; "
            f"{found['rows'][0]} recitations and {found['rows'][1]} other texts, one of each cluster.", "",
            *grid(["k", "features", "AUROC", "TPR at 1 %"], rows)]  # fmt: skip


def actions_part(results: dict[str, Any]) -> list[str]:
    """What actions do."""
    columns = ("EM", "near-verbatim", "longest true run", "acted, memorized", "acted, other", "text changed, other")
    rows = [[name, *(cell(found[column], 2) for column in columns)] for name, found in results["actions"].items()]
    return ["## What the actions prevent and cost", "", "`mm.Monitor` at 1 % false alarms, one row of each cluster of "
            "the first fold. Near-verbatim: at least nine tenths of the true continuation's tokens.", "",
            *grid(["action", *columns], rows)]  # fmt: skip
