"""The tables of unlearning on the ladder, and its three claims with their intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ladder_tables import LENGTH, head, row, said
from ladder_unlearning import ALL, BEFORE, EDIT, EDIT_RANDOM, ORACLE, RANDOM, TOP

import mechmem as mm
from mechmem.data.own_files import read_json
from mechmem.stats.ranges import NOT_NEGATIVE, Range, change_of, range_of

# Row -> part -> what `ladder_unlearning.costs` gives.
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
COLUMNS = {
    "targets nll": ("targets' NLL", 2),
    "targets em": ("targets' EM", 1),
    "targets distance": ("targets' distance to the oracle", 2),
    "never inserted distance": ("distance to the oracle, never inserted", 2),
    "never inserted kl": ("KL, never inserted", 3),
    "memories nll_change": ("other memories' NLL change", 2),
    "steps": ("steps", 0),
}
# Claim -> the rows whose difference says it, first minus second. All rows end by one rule: what a claim is about is
# whether the rule was met, and at what cost.
CLAIMS = {
    "Claim that sparse equals dense (contrastive, top 0.1 % minus all)": (TOP, ALL),
    "Claim that top beats random (contrastive, top 0.1 % minus random)": (TOP, RANDOM),
    "Claim that editing is harder (editing minus unlearning, top 0.1 %)": (EDIT, TOP),
}
SAID = {"targets nll": "targets' NLL", "never inserted kl": "KL on text never inserted"}
PAIRS = ((TOP, ALL), (TOP, RANDOM), (EDIT, TOP), (EDIT, EDIT_RANDOM))


def unlearned(folder: Path, parts: int = 2) -> Results:
    """What a rung's unlearning gave, once all rows of it are whole; otherwise empty."""
    path = folder / "unlearning" / "results.json"
    found = read_json(path) if path.exists() else {}
    whole = {name for name, each in found.items() if len(each) == parts}
    return {name: found[name] for name in found if name in whole} if {BEFORE, ORACLE, TOP} <= whole else {}


def values_of(results: Results, name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of a row, one number for each document, and the cluster of each.

    Targets are each in one part. Other documents are in all: theirs are means over parts.
    """
    runs = list(results[name].values())
    if column == "steps":
        return np.array([run["steps"] for run in runs], dtype=float), np.arange(len(runs))
    part, measure = column.rsplit(" ", 1)
    if measure == "distance":
        # 1: as far as the two snapshots are on text that neither has read.
        before = results[BEFORE].values()
        unit = np.mean([run["never inserted oracle_kl"] for run in before])
        values = [np.divide(run[f"{part} oracle_kl"], unit) for run in runs]
    else:
        values = [np.asarray(run[column], dtype=float) for run in runs]
    clusters = [np.asarray(run[f"{part} cluster"]) for run in runs]
    if part == "targets":
        return np.concatenate(values), np.concatenate(clusters)
    return np.mean(values, 0), clusters[0]


def range_in(column: str) -> Range:
    """What a column of the table can be."""
    measure = column.rsplit(" ", 1)[-1]
    if measure == "steps":
        return NOT_NEGATIVE
    return range_of("oracle_distance" if measure == "distance" else measure, LENGTH)


def table(results: Mapping[str, Results]) -> list[str]:
    """Every row of every model."""
    lines = head(["model", "row", *(title for title, _ in COLUMNS.values())])
    for model, rows in results.items():
        for name in sorted(rows, key=lambda name: (name not in (BEFORE, ORACLE), name)):
            cells = []
            for column, (_, digits) in COLUMNS.items():
                if column == "steps":
                    steps = [] if name in (BEFORE, ORACLE) else values_of(rows, name, column)[0]
                    cells.append(f"{np.mean(steps):.0f}" if len(steps) else "–")
                else:
                    cells.append(said(*values_of(rows, name, column), digits, within=range_in(column)))
            lines.append(row([model, name, *cells]))
    return lines


def difference(results: Results, first: str, second: str, column: str) -> tuple[float, float, float]:
    """First minus second, of the same documents, and its interval by cluster."""
    values, clusters = values_of(results, first, column)
    values = values - values_of(results, second, column)[0]
    return (float(values.mean()), *mm.cluster_bootstrap(values, clusters, within=change_of(range_in(column))))


def differences(results: Mapping[str, Results]) -> list[str]:
    """Differences of rows on the same documents."""
    columns = [column for column in COLUMNS if column != "steps"]
    lines = head(["model", "difference", *(COLUMNS[column][0] for column in columns)])
    for model, rows in results.items():
        for first, second in PAIRS:
            if first in rows and second in rows:
                cells = [
                    "{:+.2f} [{:+.2f}, {:+.2f}]".format(*difference(rows, first, second, column)) for column in columns
                ]
                lines.append(row([model, f"{first} − {second}", *cells]))
    return lines


def claims(results: Mapping[str, Results]) -> dict[str, dict[str, str]]:
    """Model -> claim -> the differences that it is about, each with a word on where its interval lies."""
    found: dict[str, dict[str, str]] = {}
    for model, rows in results.items():
        for claim, (first, second) in CLAIMS.items():
            if first in rows and second in rows:
                cells = [
                    f"{title} {_with_word(*difference(rows, first, second, column))}" for column, title in SAID.items()
                ]
                found.setdefault(model, {})[claim] = ", ".join(cells)
    return found


def _with_word(value: float, low: float, high: float) -> str:
    word = "higher" if low > 0 else "lower" if high < 0 else "not told apart"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] ({word})"
