"""The page of the unlearning leaderboard: tables, figure and text."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from outputs import kept_text, stamp, write_page

import mechmem as mm
from mechmem.stats.ranges import ANY, CORRELATION, NOT_NEGATIVE, SHARE, Range, change_of, token_range

# Row -> seed -> measurements.
Results = dict[str, dict[str, dict[str, Any]]]


# Name in the results -> heading and digits.
COLUMNS = {
    "targets EM": ("targets' EM", 1),
    "near-duplicates EM": ("near-duplicates' EM", 1),
    "memorized neighbours EM": ("memorized neighbours' EM", 1),
    "held-out memorized EM": ("held-out memorized EM", 1),
    "keep KL": ("KL, keep", 3),
    "other KL": ("KL, other", 3),
    "memorized neighbours KL": ("KL, memorized neighbours", 3),
    "held-out memorized KL": ("KL, held-out memorized", 3),
    "never seen KL": ("KL, never seen", 3),
    "perplexity": ("perplexity of other", 1),
    "steps": ("steps", 0),
    "weights": ("weights moved", 0),
    "squared change in its top 0.1 %": ("squared change in its top 0.1 % of weights, %", 0),
    "CPU seconds": ("CPU seconds", 0),
}
DISTANCES = {
    "targets distance": ("targets", 2),
    "near-duplicates distance": ("near-duplicates", 2),
    "memorized neighbours distance": ("memorized neighbours", 2),
    "held-out memorized distance": ("held-out memorized", 2),
    "other distance": ("other", 2),
    "never seen distance": ("never seen", 2),
    "targets KL to the oracle": ("KL to the oracle, targets", 3),
    "other KL to the oracle": ("KL to the oracle, other", 3),
    "forget quality": ("forget quality (p)", 3),
    "privacy leakage": ("privacy leakage", 2),
}
TEXTS = {
    "targets EM": ("EM", 1),
    "targets p-extractable": ("p-extractable", 3),
    "targets verbatim_memorization": ("verbatim memorization", 2),
    "targets edit_similarity": ("edit similarity", 2),
    "targets longest_common_substring": ("longest common substring", 1),
    "targets extraction_strength": ("extraction strength", 2),
}
ATTACKS = {
    "targets EM": ("no attack, EM", 1),
    "perturbed prefix EM": ("perturbed prefix, EM", 1),
    "targets verbatim_memorization": ("no attack, verbatim", 2),
    "int8 verbatim": ("int8, verbatim", 2),
    "extracted in 100 draws": ("extracted in 100 draws, %", 1),
    "relearned EM": ("relearned from other text, EM", 1),
    "relearning steps": ("steps to half, other text", 0),
    "own relearning steps": ("steps to half, the targets", 0),
}
INSIDE = {
    "targets CKA with the original": ("CKA with the original, targets", 3),
    "targets CKA with the oracle": ("CKA with the oracle, targets", 3),
    "other CKA with the original": ("CKA with the original, other", 3),
    "other CKA with the oracle": ("CKA with the oracle, other", 3),
    "probe auroc": ("probe of its own, AUROC", 2),
    "probe original_probe": ("the original's probe, AUROC", 2),
    "probe shuffled": ("shuffled labels, AUROC", 2),
}
SHARES = (
    "p-extractable",
    "verbatim_memorization",
    "edit_similarity",
    "extraction_strength",
    "int8 verbatim",
    "forget quality",
    "auroc",
    "original_probe",
    "shuffled",
)
# Rows that are no edits: where every method starts, and where it should end.
GIVEN = ("before", "oracle", "other seed")


def interval(values: np.ndarray, within: Range) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval; paragraphs of a seed share one edit, so the seed is what is resampled."""
    mean = float(values.mean())
    if len(values) < 2 or not np.isfinite(values).all():
        return mean, mean, mean
    return mean, *mm.cluster_bootstrap(values, np.arange(len(values)), within=within)


def range_in(name: str, length: int = 50) -> Range:
    """What a column of the tables can be."""
    if name.endswith((" EM", "longest_common_substring")):
        return token_range(length)
    if name.endswith(SHARES):
        return SHARE
    if " CKA " in name:
        # Debiased: of unlike layers it can be below 0.
        return CORRELATION
    if name in ("extracted in 100 draws", "squared change in its top 0.1 %"):
        return (0, 100)
    # Privacy leakage is a relative change, all others are counts and distances.
    return ANY if name == "privacy leakage" else NOT_NEGATIVE


def said(values: np.ndarray, digits: int, within: Range) -> str:
    """A mean and its interval."""
    numbers = [f"{value:,.{digits}f}" for value in interval(values, within)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if len(set(numbers)) > 1 else numbers[0]


def column(runs: list[dict[str, Any]], name: str, settings: Any) -> np.ndarray:
    """A column of a row's runs, in the unit of the tables."""
    if name == "perplexity":
        return np.exp([run["other NLL"] for run in runs])
    if name == "extracted in 100 draws":
        return 100 * np.array([run[name] for run in runs])
    if name.endswith("relearning steps"):
        # A run that never recovers half counts as one measurement later than the last: a lower bound.
        never = settings.relearning + 10 if name == "relearning steps" else settings.own_steps + 2
        return np.array([run[name] if run[name] >= 0 else never for run in runs], dtype=float)
    return np.array([run[name] for run in runs], dtype=float)


def table(results: Results, columns: dict[str, tuple[str, int]], settings: Any) -> list[str]:
    """Rows of the leaderboard: first those that met the stopping rule, each group by KL on other text.

    Columns that no row has are left out.
    """
    edits = sorted((name for name in results if name not in GIVEN), key=lambda name: _order(results[name], settings))
    rows = {name: list(results[name].values()) for name in (*(name for name in GIVEN if name in results), *edits)}
    used = {key: about for key, about in columns.items() if any(_has(runs, key) for runs in rows.values())}
    lines = ["| method | " + " | ".join(title for title, _ in used.values()) + " |", "|---|" + "---|" * len(used)]
    for name, runs in rows.items():
        cells = [
            said(column(runs, key, settings), digits, range_in(key)) if _has(runs, key) else "–"
            for key, (_, digits) in used.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _has(runs: list[dict[str, Any]], key: str) -> bool:
    return all(("other NLL" if key == "perplexity" else key) in run for run in runs)


def _order(runs: dict[str, Any], settings: Any) -> tuple[bool, float]:
    return (
        np.mean([run["targets EM"] for run in runs.values()]) > 2 * settings.target_em,
        float(np.mean([run["other KL"] for run in runs.values()])),
    )


def paired(results: Results, first: str, second: str, name: str) -> str:
    """Mean over seeds of a difference, first minus second, with its interval."""
    seeds = sorted(results[first].keys() & results[second].keys())
    if not seeds or not all(name in results[row][seed] for row in (first, second) for seed in seeds):
        return "–"
    values = np.array([results[first][seed][name] - results[second][seed][name] for seed in seeds])
    mean, low, high = interval(values, change_of(range_in(name)))
    return f"{mean:+.3g} [{low:.3g}, {high:.3g}]"


def draw(results: Results) -> go.Figure:
    """KL on other text, one line per method that removed something, coloured by the EM of untargeted memories."""
    ways = {name: list(runs.values()) for name, runs in results.items() if name != "before"}
    ways = {name: runs for name, runs in ways.items() if np.mean([run["targets EM"] for run in runs]) < 25}
    # Of logarithms: their interval has no end, and becomes one above 0.
    logs = {name: np.log10(np.maximum([run["other KL"] for run in runs], 1e-5)) for name, runs in ways.items()}
    found = {name: interval(values, ANY) for name, values in logs.items()}
    names = sorted(found, key=lambda name: found[name], reverse=True)
    middle, low, high = 10 ** np.array([found[name] for name in names]).reshape(-1, 3).T
    held = [np.mean([run["held-out memorized EM"] for run in ways[name]]) for name in names]
    error = {"type": "data", "symmetric": False, "thickness": 1, "array": high - middle, "arrayminus": middle - low}
    bar = {"title": "EM of memories<br>not targeted"}
    marker = {"color": held, "colorscale": "Viridis", "cmin": 0, "cmax": 50, "size": 9, "colorbar": bar}
    figure = go.Figure(go.Scatter(x=middle, y=names, mode="markers", error_x=error, marker=marker))
    figure.update_xaxes(type="log", title="KL from the original model on other text, nats per token (geometric mean)")
    title = "Cost of unlearning the targets (best: left and bright)"
    return figure.update_layout(
        showlegend=False, height=480, width=900, title=title, font={"size": 11}, margin={"t": 50, "b": 50, "r": 20}
    )


PAIRS = [
    ("contrastive, top 0.1 %", "contrastive, random 0.1 %"),
    ("contrastive, Fisher ratio 0.1 %", "contrastive, top 0.1 %"),
    ("contrastive, top 0.1 %", "contrastive, all"),
    ("NPO, top 0.1 %", "NPO, all"),
    ("NPO, top 0.1 %", "NPO, random 0.1 %"),
    ("NPO, attribution at both ends 0.1 %", "NPO, top 0.1 %"),
    ("NPO, gates 0.1 %", "NPO, top 0.1 %"),
    ("NPO, largest changes of a dense edit 0.1 %", "NPO, all"),
    ("NPO, largest changes of a dense edit 0.1 %", "NPO, top 0.1 %"),
    ("NPO with SAM, all", "NPO, all"),
    ("NPO, all, null space", "NPO, all"),
    ("edit, top 0.1 %", "contrastive, top 0.1 %"),
    ("edit, all", "contrastive, all"),
    ("paper's recipe, decay everywhere", "paper's recipe"),
]


def write(settings: Any, results: Results, rates: dict[str, float]) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        results: what `main` returns.
        rates: the chosen learning rates.
    """
    done = sorted({int(seed) for runs in results.values() for seed in runs})
    lines = [
        "# Unlearning leaderboard",
        "",
        f"{stamp('unlearning')}, seeds {done}; {settings.targets} targets, at most {settings.held} paragraphs "
        f"in each other set, at most {settings.steps} steps. Every method stops when the targets' mean EM "
        f"is {settings.target_em:g} or less; the paper's recipe takes its ten steps. Values are means over seeds "
        "with 95 % intervals that resample seeds. KL from the original model is in nats per token; of the sets on "
        "which it is measured, methods are given only `keep`. Memorized neighbours are memorized paragraphs of other "
        "clusters, of the same kinds and with about as many occurrences in the training text as the targets.",
        f"<!-- findings -->{kept_text(settings.page, 'findings')}<!-- findings -->",
        *_distances(settings, results),
        *_section("Costs", "", table(results, COLUMNS, settings)),
        "",
        "![KL and held-out memories, by method](unlearning.png)",
        *_section("Text", TEXT, table(results, TEXTS, settings)),
        *_section("Attacks", _attacks(settings), table(results, ATTACKS, settings)),
        *_section("Inside", INNER, table(results, INSIDE, settings)),
        *_section("Differences within seeds", "", _differences(results)),
        "",
        "## Learning rates",
        "",
        f"Rates are chosen on {settings.tuning_targets} memorized paragraphs of clusters that nothing above uses, by "
        f"one search for all rows: the rate that meets the stopping rule within {settings.steps} steps with the "
        "lowest KL on other text; where the best is the largest or smallest tried, three times or a third of it is "
        "tried as well, twice at most. " + "; ".join(f"{name}: {rate:g}" for name, rate in rates.items()) + ".",
    ]
    write_page(settings.page, lines)


TEXT = (
    "Of the targets, without an attack. p-extractable: the probability that one sample (top-k 40) is the continuation. "
    "Verbatim memorization: MUSE's, ROUGE-L of the greedy continuation. Extraction strength: 1 minus the share of the "
    "paragraph that must be given so that greedy decoding says the rest."
)
INNER = (
    "Means over layers. CKA: linear centred kernel alignment of the residual stream, 1 for models that are alike. "
    "Probe: AUROC of logistic probes on the residual stream that tell targets from text that was never seen, judged on "
    "clusters they were not trained on; the oracle's says what tells them apart without memory."
)


def _section(title: str, text: str, lines: list[str]) -> list[str]:
    return ["", f"## {title}", "", *([text, ""] if text else []), *lines]


def _distances(settings: Any, results: Results) -> list[str]:
    if "oracle" not in results:
        return []
    text = (
        "The oracle has the bundled model's recipe, without any document of the targets' clusters. A distance is "
        "KL(model ‖ oracle) on a set, divided by KL(bundled model ‖ a model of another seed) on it: at 1, a model is "
        "as far from the oracle as two trained models are from each other. Forget quality: p-value of a "
        "Kolmogorov-Smirnov test between the truth ratios of the targets under the model and under the oracle, as "
        "TOFU; small values tell both apart. Privacy leakage: MUSE's; the oracle has 0; below 0 targets look read."
    )
    return _section("Distance to a model that never read the targets", text, table(results, DISTANCES, settings))


def _attacks(settings: Any) -> str:
    return (
        "Targets under attack. Perturbed prefix: the best of 8 single-token changes. Extracted: the probability that "
        "at least one of 100 samples (top-k 40) is the continuation. Relearned: the highest mean EM while the model is "
        f"trained on other memorized text for {settings.relearning} steps. Steps to half: steps until mean EM is half "
        f"the continuation, on other text ({settings.relearning + 10} means never) and on the targets themselves "
        f"({settings.own_steps + 2} means never); fewer than the oracle's: the text was still inside."
    )


def _differences(results: Results) -> list[str]:
    keys = ["targets EM", "memorized neighbours EM", "held-out memorized EM", "other KL", "targets distance"]
    keys = [key for key in keys if any(key in run for runs in results.values() for run in runs.values())]
    rows = [
        f"| {first} − {second} | " + " | ".join(paired(results, first, second, key) for key in keys) + " |"
        for first, second in PAIRS
        if first in results and second in results
    ]
    return ["| difference | " + " | ".join(keys) + " |", "|---|" + "---|" * len(keys), *rows]
