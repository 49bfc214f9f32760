"""The page of `attribution.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from outputs import kept_text, stamp

import mechmem as mm
from mechmem.localize.attribution import default_method
from mechmem.localize.metrics import nll
from mechmem.stats.ranges import CORRELATION, SHARE

DIRECTIONS = ("noising", "denoising", "mean")
# What a method estimates, by what it is.
QUESTIONS = {
    "gradient": "one direction; with direction mean, both",
    "both_ends": "the mean of both directions",
    "integrated": "the mean of both directions",
    "RelP": "one direction",
    "AtP*": "one direction, sizes",
}


def page_lines(found: Mapping[str, Any], clusters: Mapping[str, Sequence[int]], settings: Any) -> list[str]:
    """The page.

    Args:
        found: model -> site -> metric -> direction -> method -> measure -> one number for each pair.
        clusters: model -> the cluster of each pair.
        settings: of the script.
    """
    lines = [
        "# Attribution against exact patching",
        "",
        f"{stamp('attribution')}, seed {settings.seed}. For each pair, over all cells that can have an effect: "
        "Spearman's and Pearson's correlation with exact patching, and the share of the "
        f"{settings.best:.0%} of cells with the largest exact effects that are among the method's own. Means over "
        f"metrics ({', '.join(settings.metrics)}, at the first token that differs) and pairs, with 95 % intervals "
        "over pairs by cluster. *mean* is half of noising minus denoising, of the estimates and of the exact effects: "
        "there `gradient` and `both_ends` are one. RelP: Jafari et al. 2025, arXiv 2508.21258; it holds attention "
        "patterns constant and so says nothing of queries and patterns. AtP*: Kramar et al. 2024, arXiv 2403.00745, "
        "with the sign of the gradient. Neither is in the library.",
        "",
        f"<!-- answer -->{kept_text(settings.page, 'answer')}<!-- answer -->",
    ]
    for model, sites in found.items():
        labels = np.asarray(clusters[model])
        lines += ["", f"## {model[:1].upper()}{model[1:]} model, {len(labels)} pairs", ""]
        lines += [*best_lines(sites), ""]
        for site, metrics in sites.items():
            lines += [f"### {site}", "", *site_lines(metrics, labels), ""]
        lines += kl_lines(sites, settings)
    return lines


def pooled(metrics: Mapping[str, Any], way: str, method: str, measure: str) -> np.ndarray:
    """One number for each pair: the mean over metrics, without KL."""
    rows = [by_way[way][method][measure] for metric, by_way in metrics.items() if metric != "kl"]
    return np.mean(rows, 0)


def best_lines(sites: Mapping[str, Any]) -> list[str]:
    """By site and direction the method with the highest rank correlation and with the most of the best cells."""
    lines = [
        "| site | highest correlation: noising | denoising | mean | most of the best cells: noising | denoising | "
        "mean | `attribute` takes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for site, metrics in sites.items():
        methods = list(next(iter(metrics.values()))["noising"])
        cells = []
        for measure in ("spearman", "best"):
            for way in DIRECTIONS:
                means = {method: float(pooled(metrics, way, method, measure).mean()) for method in methods}
                known = {method: value for method, value in means.items() if np.isfinite(value)}
                near = [method for method, value in known.items() if value > max(known.values()) - 0.005]
                cells.append(", ".join(near) or "–")
        lines.append(f"| {site} | {' | '.join(cells)} | {default_method(site, nll)} |")
    return lines


def site_lines(metrics: Mapping[str, Any], clusters: np.ndarray) -> list[str]:
    """Every method of one site."""
    lines = [
        "| method | it estimates | Spearman: noising | denoising | mean | best cells: noising | denoising | mean | "
        "Pearson: noising | denoising | mean |",
        "|---|---|" + "---|" * 9,
    ]
    for method in next(iter(metrics.values()))["noising"]:
        cells = []
        for measure in ("spearman", "best", "pearson"):
            for way in DIRECTIONS:
                values = pooled(metrics, way, method, measure)
                # Where nothing has an effect, nothing correlates with it.
                text = f"{values.mean():.2f}" if np.isfinite(values).all() else "–"
                if measure != "pearson" and text != "–":
                    within = CORRELATION if measure == "spearman" else SHARE
                    low, high = mm.cluster_bootstrap(values, clusters, within=within)
                    text += f" [{low:.2f}, {high:.2f}]"
                cells.append(text)
        lines.append(f"| {method} | {QUESTIONS[method]} | {' | '.join(cells)} |")
    return lines


def kl_lines(sites: Mapping[str, Any], settings: Any) -> list[str]:
    """KL to the unpatched run, where it was measured."""
    rows = []
    for site, metrics in sites.items():
        for method in metrics.get("kl", {}).get("noising", {}):
            cells = [
                f"{np.mean(metrics['kl'][way][method][measure]):.2f}"
                for measure in ("spearman", "best")
                for way in DIRECTIONS[:2]
            ]
            rows.append(f"| {site} | {method} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "### KL to the unpatched run",
        "",
        "It has no slope at the unpatched run, so one gradient is refused. Sizes cannot be below zero, estimates can: "
        f"the {settings.best:.0%} of largest cells are found, the order of the others is not.",
        "",
        "| site | method | Spearman: noising | denoising | best cells: noising | denoising |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]
