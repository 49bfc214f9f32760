"""Speed of localizers, compared with other implementations.

    python experiments/benchmarks/localize.py patching     # exact patching against TransformerLens; 10 minutes
    python experiments/benchmarks/localize.py gradients    # gradients per paragraph against a loop of backward passes
    python experiments/benchmarks/localize.py attribution  # attribution: time, and rank correlation with exact patching
    python experiments/benchmarks/localize.py heads        # attention to rare tokens against one paragraph at a time

The implementations alternate for ROUNDS rounds in one process; figures are medians, and ratios are taken within a
round. The model is a planted one of GPT-Neo 125M's shape, or the bundled one. Writes
docs/benchmarks/localize-<what>.md.
"""

import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch.nn import functional
from transformer_lens import patching

import mechmem as mm
from mechmem.localize.attribution import rank_correlation
from mechmem.localize.metrics import logit_difference, nll
from mechmem.model.hooks import frozen
from mechmem.model.sites import editable_parameters, reduce_by_component
from mechmem.truth.planted import Planted, planted
from mechmem.truth.planted_settings import PlantedSettings

# Settings -------------------------------------------------------------------------------------------------------------
PAGES = Path("docs/benchmarks")
ROUNDS = 5
SEED = 0
SHAPE = PlantedSettings(12, 12, 768, 3072, 50257, 256, layer=1, head=2, memories=16, others=4, seed=SEED)
# Layers that are timed (a cell in a higher layer costs less; the mean of these two is the mean over all layers), and
# number of cells that TransformerLens patches.
LAYERS, THEIRS = (2, 9), 12
PARAGRAPHS, LOOP = 16, 8
PAIRS = 24
# Attribution perturbs only positions before this one: the last positions are next to the continuation.
BEFORE = 40
# Number of paragraphs in the head analysis: mechmem's, and the loop over single paragraphs.
ANALYSED, LOOPED = 400, 6


def swapped(truth: Planted) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """Each memory, and the same text with its rare token replaced by a token without meaning."""
    tokens = truth.memorized.tokens.clone()
    triggers = torch.from_numpy(truth.triggers)
    tokens[torch.arange(len(tokens)), triggers] = int(truth.other.tokens.max())
    return truth.memorized, mm.Paragraphs(tokens, truth.memorized.prefix_len)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def page(name: str, title: str, lines: list[str]) -> None:
    """Write and print a page."""
    head = (
        f"# {title}\n\n`python experiments/benchmarks/localize.py {name}`, {datetime.now(UTC).date()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, seed {SEED}, "
        f"{ROUNDS} rounds.\n\n"
    )
    text = head + "\n".join(lines) + "\n"
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"localize-{name}.md").write_text(text)
    print(text)


# Exact patching -------------------------------------------------------------------------------------------------------
def theirs(model: Any, clean: torch.Tensor, corrupt: torch.Tensor, site: str, cells: list[tuple[int, ...]]) -> Any:
    """TransformerLens: one full forward with one hook per cell, all logits."""
    name = {"z": "z", "resid_pre": "resid_pre"}[site]
    setter = patching.layer_pos_head_vector_patch_setter if site == "z" else patching.layer_pos_patch_setter
    axes = ("layer", "pos", "head") if site == "z" else ("layer", "pos")
    with torch.no_grad():
        _, cache = model.run_with_cache(corrupt, names_filter=lambda hook: hook.endswith(f"hook_{name}"))

        def metric(logits: torch.Tensor) -> torch.Tensor:
            log_probs = logits[:, 49:-1].log_softmax(-1)
            return -log_probs.gather(-1, clean[:, 50:, None]).mean()

        frame = pd.DataFrame(cells, columns=list(axes))
        return patching.generic_activation_patch(model, clean, cache, metric, setter, name, index_df=frame)


def exact() -> None:
    """Cells per second of both implementations in the same rounds; their effects are compared, too."""
    truth = planted(SHAPE)
    clean, corrupt = pair = [side.select(np.argsort(truth.triggers)[:1]) for side in swapped(truth)]
    differ = (clean.tokens != corrupt.tokens)[0].long().argmax()
    rng = np.random.default_rng(SEED)
    lines = [
        "| site, one pair | cells | cells/s | TransformerLens | speed-up, median | lowest | highest | difference |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for site in ("z", "resid_pre"):
        shape = {"layer": SHAPE.n_layers} | ({"head": SHAPE.n_heads} if site == "z" else {}) | {"pos": 100}
        cells = xr.DataArray(np.zeros(tuple(shape.values()), dtype=bool), dims=tuple(shape))
        for layer in LAYERS:
            cells[{"layer": layer}] = True
        ours, others, apart = [], [], 0.0
        for _ in range(ROUNDS):
            seconds, found = timed(lambda s=site, c=cells: mm.patch(truth.model, *pair, site=s, cells=c))
            ours.append(int(cells.sum()) / seconds)
            chosen = [
                (
                    int(rng.choice(LAYERS)),
                    int(rng.integers(100)),
                    *([int(rng.integers(SHAPE.n_heads))] if site == "z" else []),
                )
                for _ in range(THEIRS)
            ]
            seconds, values = timed(
                lambda site=site, chosen=chosen: theirs(truth.model, clean.tokens, corrupt.tokens, site, chosen)
            )
            others.append(THEIRS / seconds)
            for cell, value in zip(chosen, values.tolist(), strict=True):
                place = {"layer": cell[0], "pos": cell[1]} | ({"head": cell[2]} if site == "z" else {})
                apart = max(apart, abs(value - found.attrs["base"] - float(found.isel(place))))
        ratios = np.array(ours) / np.array(others)
        lines.append(
            f"| {site} | {int(cells.sum()):,} | {np.median(ours):.1f} | {np.median(others):.2f} | "
            f"{np.median(ratios):.1f} | {ratios.min():.1f} | {ratios.max():.1f} | {apart:.1e} |"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    lines += [
        "",
        f"Layers {' and '.join(map(str, LAYERS))}, all heads and positions. TransformerLens patches {THEIRS} random "
        "cells per round, each with a full forward and all logits, as its `get_act_patch_*` functions do. Metric: NLL "
        "of the continuation, 50 columns. Difference: the largest between the two effects, in nats per token. The pair "
        f"first differs at position {int(differ)}, the earliest of {len(truth.triggers)}; cells before it cannot "
        f"change anything and are not run. Peak memory of the process, model included: {peak:.1f} GB. Target: 10 times "
        "as fast.",
    ]
    page("patching", "Exact activation patching", lines)


# Gradients of single paragraphs ---------------------------------------------------------------------------------------
def loop(model: Any, paras: mm.Paragraphs) -> list[xr.DataArray]:
    """One forward and backward pass per paragraph, gradients of every weight."""
    results = []
    parameters = editable_parameters(model)
    with frozen(model), torch.enable_grad():
        for parameter in parameters.values():
            parameter.requires_grad_()
        for tokens in paras.tokens:
            logits = model(tokens[None], padding_side="right")[0, 49:-1]
            loss = functional.cross_entropy(logits, tokens[50:])
            found = torch.autograd.grad(loss, list(parameters.values()))
            results.append(reduce_by_component(model, dict(zip(parameters, found, strict=True)), "max"))
    return results


def gradients() -> None:
    """Paragraphs per second."""
    truth = planted(SHAPE)
    paras = truth.memorized.select(np.arange(PARAGRAPHS))
    ours, others, apart = [], [], 0.0
    for _ in range(ROUNDS):
        seconds, found = timed(lambda: mm.paragraph_gradients(truth.model, paras))
        ours.append(PARAGRAPHS / seconds)
        seconds, slow = timed(lambda: loop(truth.model, paras.select(np.arange(LOOP))))
        others.append(LOOP / seconds)
        expected = np.stack([row.values for row in slow])
        apart = max(apart, float(np.abs(found.values[:LOOP] - expected).max() / np.abs(expected).max()))
    ratios = np.array(ours) / np.array(others)
    lines = [
        "| 125M shape | paragraphs/s | loop of backward passes | speed-up, median | lowest | highest |",
        "|---|---|---|---|---|---|",
        f"| max of 600 components | {np.median(ours):.2f} | {np.median(others):.2f} | {np.median(ratios):.1f} | "
        f"{ratios.min():.1f} | {ratios.max():.1f} |",
        "",
        f"Largest difference, relative to the largest gradient: {apart:.1e}. Target: 3 times as fast.",
    ]
    page("gradients", "Gradients of single paragraphs", lines)


# Attribution ----------------------------------------------------------------------------------------------------------
def attribution() -> None:
    """Time and rank correlation on the bundled model, on pairs of worst single-token perturbations."""
    model = mm.load_model("bundled")
    known = mm.bundled_paragraphs()
    memorized = known.select(np.random.default_rng(SEED).permutation(len(known))[:400])
    memorized, _ = mm.split(memorized, mm.score(model, memorized))
    memorized = memorized.select(np.arange(min(PAIRS, len(memorized))))
    drop = mm.perturb_prefix(model, memorized, seed=SEED)
    clean, corrupt = mm.worst_perturbations(model, memorized, drop, before=BEFORE)
    lines = [
        "| site | metric at the impact | direction | method | rank correlation | share in the top 5 % | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for site in ("z", "v"):
        for metric in (logit_difference, nll):
            for direction in ("noising", "denoising"):
                options: dict[str, Any] = {"site": site, "metric": metric, "scored": "impact", "direction": direction}
                slow, whole = timed(lambda options=options: mm.patch(model, clean, corrupt, **options))
                for method in ("gradient", "both_ends", "integrated"):
                    quick, found = timed(
                        lambda options=options, method=method: mm.attribute(
                            model, clean, corrupt, method=method, **options
                        )
                    )
                    size = abs(whole).values.ravel()
                    top = np.argsort(-abs(found).values.ravel())[: size.size // 20]
                    lines.append(
                        f"| {site} | {metric.__name__} | {direction} | {method} | "
                        f"{rank_correlation(found, whole):.2f} | "
                        f"{size[top].sum() / size.sum():.2f} | {slow / quick:.0f} |"
                    )
    lines += [
        "",
        f"Bundled model, {len(clean)} memorized paragraphs against their worst perturbation of one of the first "
        f"{BEFORE} tokens (median position {int(np.median(clean.column('perturbed_pos')))}, impact "
        f"{int(np.median(clean.column('impact_pos')))}), one run. Effects are averaged over pairs. The rank "
        "correlation is Spearman's over all cells that can have an effect. 'Share in the top 5 %' is the share of the "
        "sum of exact |effects| in the 5 % of cells that attribution ranks highest. These are heads in one direction, "
        "which one gradient estimates and integrated gradients do not: they estimate the mean of both directions "
        "([all sites](../attribution.md)).",
    ]
    page("attribution", "Attribution patching against exact patching", lines)


# Attention to rare tokens ---------------------------------------------------------------------------------------------
def one_by_one(model: Any, paras: mm.Paragraphs, counts: np.ndarray) -> np.ndarray:
    """The paper's implementation: a full cached forward for each paragraph, then a loop over heads and keys."""
    found = np.zeros((len(paras), model.cfg.n_layers, model.cfg.n_heads))
    for row, tokens in enumerate(paras.tokens):
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens[None])
        for layer in range(model.cfg.n_layers):
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
            for head in range(model.cfg.n_heads):
                seen = [float(pattern[head, 50, key]) for key in range(50)]
                known = [int(counts[int(tokens[key])]) for key in range(50)]
                rank: Any = spearmanr(seen, known)
                found[row, layer, head] = rank.statistic
    return found


def heads() -> None:
    """Paragraphs per second of the whole analysis."""
    truth = planted(SHAPE)
    rng = np.random.default_rng(SEED)
    # Paragraphs come more than once: as new ones, since ids are unique.
    rows = torch.from_numpy(rng.integers(len(truth.memorized), size=ANALYSED))
    many = mm.Paragraphs(truth.memorized.tokens[rows], truth.memorized.prefix_len)
    counts = truth.unigram_counts
    others: list[float] = []
    ours: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    apart = dict.fromkeys(ours, 0.0)
    for _ in range(ROUNDS):
        few = many.select(np.arange(LOOPED))
        seconds, slow = timed(lambda few=few: one_by_one(truth.model, few, counts.numpy()))
        others.append(LOOPED / seconds)
        for name in ours:
            options: dict[str, Any] = {"dtype": getattr(torch, name)}
            seconds, _ = timed(lambda o=options: mm.rare_token_attention(truth.model, many, counts, **o))
            ours[name].append(len(many) / seconds)
            same = mm.rare_token_attention(truth.model, few, counts, permutations=1, **options)
            apart[name] = max(apart[name], abs(float(same.spearman[truth.head]) - slow.mean(0)[truth.head]))
    lines = [
        f"| {len(many):,} paragraphs | paragraphs/s | one at a time | speed-up, median | lowest | highest | difference "
        "|",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rates in ours.items():
        ratios = np.array(rates) / np.array(others)
        lines.append(
            f"| {name} | {np.median(rates):.1f} | {np.median(others):.2f} | {np.median(ratios):.1f} | "
            f"{ratios.min():.1f} | {ratios.max():.1f} | {apart[name]:.1e} |"
        )
    lines += [
        "",
        "mechmem computes three correlations, excess attention with a permutation test over tokens (1,000 shuffles), "
        "previous-token, duplicate-token and induction scores, and entropy. The comparison runs one fully cached "
        f"forward per paragraph ({LOOPED} paragraphs per round), loops over heads and keys, and computes Spearman's "
        "correlation only (SciPy). Difference: between the two correlations of the planted head. Target: 20 times as "
        "fast. In float32, the matrix products for 51 tokens per paragraph alone limit this machine to about 47 "
        "paragraphs per second.",
    ]
    page("heads", "Attention to rare tokens", lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    ways = {"patching": exact, "gradients": gradients, "attribution": attribution, "heads": heads}
    for what in sys.argv[1:] or list(ways):
        ways[what]()
