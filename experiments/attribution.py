"""How well approximations rank the cells that exact patching finds, site by site.

    python experiments/attribution.py     # five minutes on one core; writes docs/attribution.md and results/attribution

Every approximation is compared with exact patching of the same pairs: memorized paragraphs, one of each cluster,
against their worst perturbation, and on a planted model the memories against the same without their rare token. For
each pair: Spearman's and Pearson's correlation over all cells that can have an effect, and the share of the 5 % of
cells with the largest exact effects that are among the approximation's own 5 %. A part of the work that is finished is
not done again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from attribution_methods import METHODS, RELP_SITES, approximated
from attribution_page import page_lines
from inputs import Inputs, open_inputs, start
from ladder_corpus import BASE, PREFIX_LEN, with_prefix
from outputs import agree_on_settings, read_json, write_json, write_page
from samples import by_em
from scipy.stats import pearsonr

import mechmem as mm
from mechmem.data.bounds import Count, Seed, Share
from mechmem.data.ranking import largest, share_of
from mechmem.localize.attribution import Method, rank_correlation
from mechmem.localize.metrics import kl, metric_of
from mechmem.localize.patch_effects import effect_array, grid_of
from mechmem.localize.patch_pairs import OneDirection, ScoredAt, check_pairs
from mechmem.model.load import HookedTransformer

Site = Literal["z", "v", "q", "pattern", "attn_out", "mlp_out", "mlp_post", "resid_pre", "resid_mid", "resid_post"]
MetricName = Literal["nll", "logit_difference"]
# Copies from which on a document of a rung may make a pair.
OFTEN = 64
MEASURES = ("spearman", "pearson", "best")
Pair = tuple[mm.Paragraphs, mm.Paragraphs]


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates and replacements; of the planted model.
        candidates: paragraphs that are scored, at random.
        pairs: memorized paragraphs that are perturbed, one of each cluster.
        before: only tokens before this one are perturbed: the last of the prefix are next to the continuation.
        sites: that are patched.
        metrics: at the first token in which a pair differs, or over the continuation where none does; figures are means
            over them.
        kl_sites: of these also KL to the unpatched run, which has no slope there.
        best: share of the cells that count as the best.
        steps: of integrated gradients.
        planted: whether to measure on a planted model, too.
        ladder: a folder with another model, such as a snapshot of one of the ladder's; None: without it.
        ladder_corpus: the text that it was trained on, with clusters, such as a rung's documents.parquet.
        out: folder of the results.
        page: the tables, or None.
    """

    seed: Seed = 0
    candidates: Count = 300
    pairs: Count = 10
    before: Count = 40
    sites: tuple[Site, ...] = ("z", "v", "q", "pattern", "mlp_out", "resid_pre")
    metrics: tuple[MetricName, ...] = ("nll", "logit_difference")
    kl_sites: tuple[Site, ...] = ("z", "mlp_out")
    best: Share = 0.05
    steps: Count = 5
    planted: bool = True
    ladder: str | None = None
    ladder_corpus: str | None = None
    out: Path = Path("results/attribution")
    page: Path | None = Path("docs/attribution.md")


def main(settings: Settings, model: HookedTransformer | None = None) -> dict[str, Any]:
    """Measure what is not measured yet, and write the page.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        model -> site -> metric -> direction -> method -> measure -> one number for each pair.
    """
    others = iter(models(settings, model))
    first = next(others)
    agree_on_settings(settings.out, settings, free=("device", "out", "page", "planted", "ladder", "ladder_corpus"))
    found, clusters = {}, {}
    for name, opened, pairs in chain([first], others):
        labels = np.unique(pairs[0].clusters, return_inverse=True)[1].tolist()
        clusters[name] = labels
        found[name] = {site: measured(settings, name, opened, pairs, site) for site in settings.sites}
    write_json(settings.out / "clusters.json", clusters)
    write_page(settings.page, page_lines(found, clusters, settings))
    return found


def models(settings: Settings, model: HookedTransformer | None) -> Iterator[tuple[str, HookedTransformer, Pair]]:
    """Each model by its name, with its pairs."""
    opened, shipped = open_inputs(settings, model)
    yield settings.model, opened, perturbed_pairs(settings, opened, shipped)
    if settings.planted:
        truth = mm.planted(mm.PlantedSettings(seed=settings.seed))
        tokens = truth.memorized.tokens.clone()
        tokens[torch.arange(len(tokens)), torch.from_numpy(truth.triggers)] = int(truth.other.tokens.max())
        few = np.arange(min(settings.pairs, len(tokens)))
        yield "planted", truth.model, (truth.memorized.select(few), truth.memorized.replace_tokens(tokens).select(few))
    if settings.ladder is not None:
        other = Inputs(settings.ladder, settings.ladder_corpus, settings.device)
        opened, text = open_inputs(other)
        yield name_of(Path(settings.ladder)), opened, perturbed_pairs(settings, opened, text)


def name_of(folder: Path) -> str:
    """A model's folder, or the rung of the ladder whose snapshot it is."""
    folder = folder.resolve()
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def perturbed_pairs(settings: Settings, model: HookedTransformer, text: mm.Paragraphs) -> Pair:
    """Memorized paragraphs, one of each cluster, and their worst perturbations."""
    length = text.continuation_len
    drawn = {"candidates": settings.candidates, "each": 2 * settings.pairs, "seed": settings.seed, "least": 2}
    if text.has("copies"):
        memorized = best_known(model, text, 2 * settings.pairs)
    else:
        memorized = by_em(model, text, {"memorized": (50, 50)}, **drawn)["memorized"]
    changed = mm.perturb_prefix(model, memorized, seed=settings.seed)
    clean, corrupt = mm.worst_perturbations(model, memorized, changed, before=min(settings.before, length))
    few = np.arange(min(len(clean), settings.pairs))
    return clean.select(few), corrupt.select(few)


def best_known(model: HookedTransformer, documents: mm.Paragraphs, count: int) -> mm.Paragraphs:
    """Of a rung's documents inserted often, those with the highest EM: its model may know none whole."""
    often = (documents.column("text_of") == BASE) & (documents.column("copies") >= OFTEN)
    paragraphs = with_prefix(documents.select(often), PREFIX_LEN)
    scores = mm.score(model, paragraphs)
    return paragraphs.select(np.lexsort((scores.nll.values, -scores.em.values))[:count])


def measured(settings: Settings, name: str, model: HookedTransformer, pairs: Pair, site: Site) -> dict[str, Any]:
    """All figures of one site, from the folder where they are there."""
    file = settings.out / f"{name.replace('/', '-')}-{site}.json"
    known = read_json(file)
    metrics = [*settings.metrics, *(["kl"] if site in settings.kl_sites else [])]
    if scored_at(pairs) == "continuation":
        # Both texts go on alike: no token is preferred to another.
        metrics = [metric for metric in metrics if metric != "logit_difference"]
    for metric in metrics:
        if metric not in known:
            known[metric] = figures(settings, model, pairs, site, metric)
            write_json(file, known)
            print(f"{name}, {site}, {metric}: done", flush=True)
    return known


def scored_at(pairs: Pair) -> ScoredAt:
    """The first token in which a pair differs, or all of a continuation that is the same in both."""
    differ = (pairs[0].continuation != pairs[1].continuation).any(-1)
    return "impact" if bool(differ.all()) else "continuation"


def figures(settings: Settings, model: HookedTransformer, pairs: Pair, site: Site, metric: str) -> dict[str, Any]:
    """Direction -> method -> measure -> one number for each pair."""
    options: dict[str, Any] = {"site": site, "metric": metric, "scored": scored_at(pairs), "average": False}
    exact = {way: mm.patch(model, *pairs, direction=way, **options) for way in ("noising", "denoising")}
    if metric_of(metric) is not kl:
        exact["mean"] = (exact["noising"] - exact["denoising"]) / 2
    result: dict[str, Any] = {way: {} for way in exact}
    for method in (*get_args(Method), *METHODS):
        guesses = {}
        for way in ("noising", "denoising"):
            guesses[way] = estimate(settings, model, pairs, way, method, options)
        if guesses["noising"] is None:
            continue
        guesses["mean"] = (guesses["noising"] - guesses["denoising"]) / 2
        for way, effects in exact.items():
            result[way][method] = agreement(guesses[way], effects, settings.best)
    return result


def estimate(
    settings: Settings, model: HookedTransformer, pairs: Pair, way: OneDirection, method: Any, options: dict[str, Any]
) -> Any:
    """One method's estimates, or None where it has none."""
    site, metric = options["site"], metric_of(options["metric"])
    if method == "integrated":
        options = options | {"steps": settings.steps}
    if method in get_args(Method):
        if method == "gradient" and metric is kl:
            return None
        return mm.attribute(model, *pairs, direction=way, method=method, **options)
    if metric is kl or (method == "RelP" and site not in RELP_SITES):
        return None
    checked = check_pairs(model, *pairs, way, options["scored"])
    cells = approximated(method, model, checked, site, metric)
    grid, ends = (
        grid_of(model, site, pairs[0].tokens.shape[1], None),
        np.stack([np.zeros(len(cells)), np.ones(len(cells))]),
    )
    return effect_array(cells, ends, checked, grid, metric, {}, normalize=False, average=False)


def agreement(guess: Any, exact: Any, best: float) -> dict[str, list[float]]:
    """Of each pair: both correlations, and the share of the best cells that the guess has, too."""
    rows: list[list[float]] = []
    for one, true in zip(guess, exact, strict=True):
        # What comes before the perturbed token, or after the scored column, can have no effect.
        there = (one.values != 0) | (true.values != 0)
        a, b = one.values[there], true.values[there]
        count = share_of(len(b), best, best)
        shared = np.intersect1d(largest(np.abs(a), count), largest(np.abs(b), count))
        pearson: Any = pearsonr(a, b)
        rows.append([rank_correlation(one, true), float(pearson.statistic), len(shared) / count])
    return dict(zip(MEASURES, np.array(rows).T.tolist(), strict=True))


if __name__ == "__main__":
    start(main, Settings, __doc__)
