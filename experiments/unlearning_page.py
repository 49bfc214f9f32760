"""The page of the unlearning leaderboard: tables, figure and text."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
from outputs import kept_text, stamp, write_page
from scipy.stats import t

# Row -> seed -> measurements.
Results = dict[str, dict[str, dict[str, Any]]]


COLUMNS = {
    "targets EM": ("targets' EM", 1),
    "held-out memorized EM": ("held-out memorized EM", 1),
    "other EM": ("other EM", 1),
    "keep KL": ("KL, keep", 3),
    "other KL": ("KL, other", 3),
    "held-out memorized KL": ("KL, held-out memorized", 3),
    "perplexity": ("perplexity of other", 1),
    "steps": ("steps", 0),
    "weights": ("weights moved", 0),
    "seconds": ("seconds", 1),
}
ATTACKS = {
    "targets EM": ("no attack", 1),
    "perturbed prefix EM": ("perturbed prefix", 1),
    "int8 EM": ("int8", 1),
    "extracted in 100 draws": ("extracted in 100 draws, %", 1),
    "relearned EM": ("relearned EM", 1),
    "relearning steps": ("steps to half", 0),
}


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's t: five values are too few to resample."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    margin = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - margin, mean + margin


def said(values: np.ndarray, digits: int) -> str:
    """A mean and half the width of its interval."""
    mean, low, _ = interval(values)
    return f"{mean:,.{digits}f} ± {mean - low:,.{digits}f}"


def column(runs: list[dict[str, Any]], name: str, settings: Any) -> np.ndarray:
    """A column of a row's runs, in the unit of the tables."""
    if name == "perplexity":
        return np.exp([run["other NLL"] for run in runs])
    if name == "extracted in 100 draws":
        return 100 * np.array([run[name] for run in runs])
    if name == "relearning steps":
        # A run that never recovers half counts as one measurement later than the last: a lower bound.
        return np.array([run[name] if run[name] >= 0 else settings.relearning + 10 for run in runs], dtype=float)
    return np.array([run[name] for run in runs], dtype=float)


def table(results: Results, columns: dict[str, tuple[str, int]], settings: Any) -> list[str]:
    """Rows of the leaderboard: first those that met the stopping rule, each group by KL on other text."""
    names = [
        "before",
        *sorted((name for name in results if name != "before"), key=lambda n: _order(results[n], settings)),
    ]
    lines = ["| method | " + " | ".join(title for title, _ in columns.values()) + " |", "|---|" + "---|" * len(columns)]
    for name in names:
        runs = list(results[name].values())
        cells = [
            said(column(runs, key, settings), digits) if key in runs[0] or key == "perplexity" else "–"
            for key, (_, digits) in columns.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _order(runs: dict[str, Any], settings: Any) -> tuple[bool, float]:
    return (
        np.mean([run["targets EM"] for run in runs.values()]) > 2 * settings.target_em,
        float(np.mean([run["other KL"] for run in runs.values()])),
    )


def paired(results: Results, first: str, second: str, name: str) -> str:
    """Mean over seeds of a difference, first minus second, with its interval."""
    seeds = sorted(results[first].keys() & results[second].keys())
    values = np.array([results[first][seed][name] - results[second][seed][name] for seed in seeds])
    mean, low, high = interval(values)
    return f"{mean:+.3g} [{low:.3g}, {high:.3g}]"


def draw(results: Results) -> go.Figure:
    """KL on other text, one line per method that removed something, coloured by the EM of untargeted memories."""
    ways = {name: list(runs.values()) for name, runs in results.items() if name != "before"}
    ways = {name: runs for name, runs in ways.items() if np.mean([run["targets EM"] for run in runs]) < 25}
    found = {
        name: interval(np.log10(np.maximum([run["other KL"] for run in runs], 1e-5))) for name, runs in ways.items()
    }
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


def write(settings: Any, results: Results, rates: dict[str, float]) -> None:
    """The page of docs.

    Args:
        settings: of the run.
        results: what `main` returns.
        rates: the chosen learning rates.
    """
    pairs = [
        ("contrastive, top 0.1 %", "contrastive, random 0.1 %"),
        ("contrastive, Fisher ratio 0.1 %", "contrastive, top 0.1 %"),
        ("contrastive, top 0.1 %", "contrastive, all"),
        ("edit, top 0.1 %", "contrastive, top 0.1 %"),
        ("edit, all", "contrastive, all"),
        ("paper's recipe, decay everywhere", "paper's recipe"),
    ]
    compared = [
        f"| {first} − {second} | " + " | ".join(
            paired(results, first, second, key) for key in ("targets EM", "held-out memorized EM", "other KL")
        ) + " |"
        for first, second in pairs
        if first in results and second in results
    ]  # fmt: skip
    lines = [
        "# Unlearning leaderboard",
        "",
        f"{stamp('unlearning')}, seeds {list(settings.seeds)}; {settings.targets} targets, {settings.held} paragraphs "
        f"in each other set, at most {settings.steps} steps. Every method stops when the targets' mean EM "
        f"is {settings.target_em:g} of 50 or less; the paper's recipe takes its ten steps. Values are means over seeds "
        "with 95 % intervals (Student's t). KL from the original model is in nats per token; of the sets on which it "
        "is measured, methods are given only `keep`.",
        f"<!-- findings -->{kept_text(settings.page, 'findings')}<!-- findings -->",
        "",
        "## Costs",
        "",
        *table(results, COLUMNS, settings),
        "",
        "![KL and held-out memories, by method](unlearning.png)",
        "",
        "## Attacks",
        "",
        "EM of the targets under attack, in tokens. Perturbed prefix: the best of 16 single-token changes. Extracted: "
        "the probability that at least one of 100 samples (top-k 40) is the continuation. Relearned: the highest mean "
        f"EM while the edited model is trained on other memorized text for {settings.relearning} steps. Steps to half: "
        f"steps until mean EM reaches 25 ({settings.relearning + 10} means never).",
        "",
        *table(results, ATTACKS, settings),
        "",
        "## Differences within seeds",
        "",
        "| difference | targets' EM | held-out memorized EM | KL, other |",
        "|---|---|---|---|",
        *compared,
        "",
        "## Learning rates",
        "",
        "Rates are chosen on nearly memorized paragraphs (EM 30 to 49) of other clusters: the rate that meets the "
        f"stopping rule within {settings.tuning_steps} steps with the lowest KL on partly known paragraphs. "
        + "; ".join(f"{name}: {rate:g}" for name, rate in rates.items()) + ".",
    ]  # fmt: skip
    write_page(settings.page, lines)
