"""Where a memory is known by training or by exact effects: times of the quick ways against the plain ones.

    python experiments/benchmarks/truth.py      # three minutes of one core

Attribution against exact patching, transplants of all parts against a copied model for each, and the ladder's training
step against the plain one. All run in turn in one process; ratios are taken within a round, figures are medians, and
what both compute is compared. Writes docs/benchmarks/truth.md.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import xarray as xr
from rounds import alternate, spread, stamp, write_page

sys.path.append(str(Path(__file__).parents[1]))

from corpus_training import ModelTraining, build, descend, keep_allocator
from fused_step import fused_step
from ladder_rungs import SHAPES, RungSettings
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed, check_fields
from mechmem.localize.attribution import rank_correlation
from mechmem.model.activation_sites import Site
from mechmem.model.load import HookedTransformer

METHODS = ("gradient", "both_ends", "integrated")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        rounds: runs of each kind that count.
        pairs: memorized paragraphs with their worst perturbation, for attribution.
        candidates: paragraphs that are scored to find memorized ones.
        sites: that are patched.
        transplanted: paragraphs that are scored with every transplant.
        batches: rows of 256 tokens in a training step; the ladder has 8.
        seed: of what is drawn.
        page: the tables, or None.
    """

    rounds: Count = 5
    pairs: Count = 2
    candidates: Count = 300
    sites: tuple[Site, ...] = ("z", "mlp_out", "resid_pre")
    transplanted: Count = 4
    batches: tuple[Count, ...] = (8,)
    seed: Seed = 0
    page: Path | None = Path("docs/benchmarks/truth.md")

    def __post_init__(self) -> None:
        check_fields(self)


# Attribution ----------------------------------------------------------------------------------------------------------
def attribution(settings: Settings, model: HookedTransformer, memorized: mm.Paragraphs) -> dict[str, dict[str, Any]]:
    """Of each site: exact patching's seconds, how many times as fast each method is, and its rank correlations."""
    drop = mm.perturb_prefix(model, memorized, seed=settings.seed)
    clean, corrupt = mm.worst_perturbations(model, memorized, drop)
    few = np.arange(min(settings.pairs, len(clean)))
    pair = clean.select(few), corrupt.select(few)
    return {site: one_site(model, pair, site, settings.rounds) for site in settings.sites}


def one_site(
    model: HookedTransformer, pair: tuple[mm.Paragraphs, mm.Paragraphs], site: Site, rounds: int
) -> dict[str, Any]:
    """Noising, scored at the first token in which the two texts differ; correlated also with both directions' mean."""
    results: dict[str, xr.DataArray] = {}

    def run(name: str, way: Callable[..., xr.DataArray], **options: Any) -> Callable[[], None]:
        return lambda: results.__setitem__(name, way(model, *pair, site=site, scored="impact", **options))

    work = {"exact": run("exact", mm.patch)}
    work |= {method: run(method, mm.attribute, method=method) for method in METHODS}
    seconds = alternate(work, rounds)
    run("back", mm.patch, direction="denoising")()
    mean = (results["exact"] - results["back"]) / 2
    return {
        "seconds": float(np.median(seconds["exact"])),
        "cells": int(results["exact"].size),
        "pairs": len(pair[0]),
        "ratio": {method: seconds["exact"] / seconds[method] for method in METHODS},
        "correlation": {
            method: [rank_correlation(results[method], whole) for whole in (results["exact"], mean)]
            for method in METHODS
        },
    }


def attribution_lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """The table of attribution."""
    lines = [
        "| site | cells of a pair | exact, s | method | times as fast | lowest | highest | noising | both directions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for site, one in found.items():
        for method in METHODS:
            ranks = " | ".join(f"{value:.2f}" for value in one["correlation"][method])
            start = f"| {site} | {one['cells']:,} | {one['seconds']:.2f} | {method}"
            lines.append(f"{start} | {spread(one['ratio'][method])} | {ranks} |")
    return lines


# Transplants ----------------------------------------------------------------------------------------------------------
def transplants(settings: Settings, model: HookedTransformer, memorized: mm.Paragraphs) -> dict[str, Any]:
    """Every part of the model alone in another of its shape: in place, and by a copy of the whole model for each."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator) * weight.float().std().cpu()
            weight.add_(noise.to(weight), alpha=0.3)
    some, results = memorized.select(np.arange(min(settings.transplanted, len(memorized)))), {}

    def quick() -> None:
        results["quick"] = mm.transplant_layers(model, other, some)

    def plain() -> None:
        results["plain"] = one_by_one(model, other, some, results["quick"].component.values)

    seconds = alternate({"quick": quick, "plain": plain}, settings.rounds)
    apart = np.abs(results["quick"].nll_change.values - results["plain"]).max()
    return {
        "components": results["quick"].sizes["component"],
        "paragraphs": len(some),
        "seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "ratio": seconds["plain"] / seconds["quick"],
        "difference": float(apart),
    }


def one_by_one(
    source: HookedTransformer, target: HookedTransformer, paragraphs: mm.Paragraphs, components: Any
) -> np.ndarray:
    """Change of NLL, [paragraph, component], by `transplant` and `score` alone."""
    before = mm.score(target, paragraphs).nll.values
    columns = []
    for name in components:
        mask = mm.Mask.components(target, [str(name)], biases=True)
        columns.append(mm.score(mm.transplant(source, target, mask), paragraphs).nll.values - before)
    return np.stack(columns, 1)


def transplant_lines(one: dict[str, Any]) -> list[str]:
    """The table of transplants."""
    rates = " | ".join(f"{one['seconds'][name]:.2f}" for name in ("plain", "quick"))
    return [
        "| parts | paragraphs | a copy for each, s | in place, s | times as fast | lowest | highest | NLL apart |",
        "|---|---|---|---|---|---|---|---|",
        f"| {one['components']} | {one['paragraphs']} | {rates} | {spread(one['ratio'], '.2f')} | "
        f"{one['difference']:.1e} |",
    ]


# Training -------------------------------------------------------------------------------------------------------------
def trainer(
    recipe: ModelTraining, step: Callable[..., float], rows: torch.Tensor, losses: list[float]
) -> Callable[[], None]:
    """A training step from weights of the seed on, which appends its loss."""
    model = build(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    return lambda: losses.append(step(model, optimizer, rows, recipe.clip_norm))


def compare(recipe: ModelTraining, rounds: int) -> dict[str, Any]:
    """Tokens a second of both steps, their ratio by round, and the largest difference of their losses."""
    generator = torch.Generator().manual_seed(recipe.seed)
    rows = torch.randint(0, recipe.d_vocab, (recipe.batch, recipe.n_ctx), generator=generator)
    losses: dict[str, list[float]] = {"plain": [], "fused": []}
    steps = {"plain": descend, "fused": fused_step}
    work = {name: trainer(recipe, step, rows, losses[name]) for name, step in steps.items()}
    seconds = alternate(work, rounds, warm_up=True)
    return {
        "rate": {name: rows.numel() / np.median(values) for name, values in seconds.items()},
        "ratio": seconds["plain"] / seconds["fused"],
        "difference": float(np.abs(np.subtract(losses["plain"], losses["fused"])).max()),
    }


def training_lines(found: dict[tuple[str, int], dict[str, Any]]) -> list[str]:
    """The table of training."""
    lines = [
        "| model | rows | plain, tokens/s | fused, tokens/s | times as fast | lowest | highest | losses apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (shape, batch), one in found.items():
        rates = " | ".join(f"{one['rate'][name]:,.0f}" for name in ("plain", "fused"))
        lines.append(f"| {shape} | {batch} | {rates} | {spread(one['ratio'], '.2f')} | {one['difference']:.1e} |")
    return lines


def training(settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    """Both steps for every shape of the ladder."""
    keep_allocator()
    found = {}
    for shape, (layers, width, heads) in SHAPES.items():
        recipe = RungSettings(seed=settings.seed, n_layers=layers, d_model=width, n_heads=heads)
        for batch in settings.batches:
            found[shape, batch] = compare(replace(recipe, batch=batch), settings.rounds)
    return found


def main(settings: Settings, model: HookedTransformer | None = None) -> dict[str, Any]:
    """Measure and write the page.

    Args:
        settings: what is measured.
        model: the bundled model, if it is loaded already.
    """
    model = mm.load_model("bundled") if model is None else model
    # No perturbation changes what some of them are continued with.
    spare = 4 * settings.pairs + 4
    drawn = {"candidates": settings.candidates, "each": max(spare, settings.transplanted), "seed": settings.seed}
    memorized = by_em(model, mm.bundled_paragraphs(), {"memorized": (50, 50)}, **drawn)["memorized"]
    found: dict[str, Any] = {
        "attribution": attribution(settings, model, memorized[:spare]),
        "transplants": transplants(settings, model, memorized),
        "training": training(settings),
    }
    write_page(settings.page, page_lines(settings, found))
    return found


def page_lines(settings: Settings, found: dict[str, Any]) -> list[str]:
    """The page.

    Args:
        settings: what was measured.
        found: what `main` gives.
    """
    pairs = next(iter(found["attribution"].values()))["pairs"]
    return [
        "# Truth by exact effects and by training: benchmarks",
        "",
        stamp("truth.py", settings.rounds, settings.seed),
        "Seconds are of a machine that may have been busy; ratios are within a round.",
        "",
        "## Attribution against exact patching",
        "",
        f"Bundled model, {pairs} memorized paragraphs and their worst perturbation of one prefix token; NLL of the "
        "first token in which the two differ; noising. The last two columns are Spearman's correlations with exact "
        "patching over all cells: in this direction, and with half of noising minus denoising ([all sites and "
        "methods](../attribution.md)).",
        "",
        *attribution_lines(found["attribution"]),
        "",
        "## Transplants",
        "",
        "Each layer, its attention and its MLP, the embedding and the unembedding alone, from the bundled model into "
        "a copy of it with noise on every weight: `transplant_layers` against `transplant` and `score` for each part. "
        "The last column is the largest difference of the two changes of NLL, in nats per token.",
        "",
        *transplant_lines(found["transplants"]),
        "",
        "## Training the ladder's models",
        "",
        "The plain step is transformers' forward in bfloat16 autocast; the fused step is `experiments/fused_step.py`.",
        "The last column is the largest difference of the two losses in a step, in nats per token.",
        "",
        *training_lines(found["training"]),
    ]


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
