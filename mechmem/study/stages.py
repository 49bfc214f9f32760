"""The stages of a study: each reads the folder's earlier files and writes its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr

from mechmem.data.assets import bundled_unigram_counts
from mechmem.data.counts import unigram_counts
from mechmem.data.progress import part_of
from mechmem.data.ranking import largest
from mechmem.localize.ablation import ablate_heads
from mechmem.localize.attribution import attribute, rank_correlation, top_cells
from mechmem.localize.gradients import layer_shares, parameter_gradients
from mechmem.localize.heads import head_patterns, rare_token_attention
from mechmem.localize.patching import patch
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.exact import ExactScorer
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.scores import memorized_other
from mechmem.measure.tolerance import CALIBRATION
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.load import HookedTransformer
from mechmem.study.folder import SETS, StudyFolder


def score_stage(run: StudyFolder) -> None:
    """Score every paragraph; label the sets; -> paragraphs.parquet."""
    paragraphs = run.unscored
    scorer = ExactScorer(run.model, paragraphs.select(np.arange(min(CALIBRATION, len(paragraphs)))))
    # Scoring and decoding take about the same time.
    scores = scorer.score(paragraphs, part_of(run.progress, 0, 2))
    said = greedy_continuations(
        scorer.lean,
        paragraphs.tokens,
        paragraphs.prefix_len,
        scores.em,
        scores.rival,
        progress=part_of(run.progress, 1, 2),
    )
    memorized, other = memorized_other(scores.em, paragraphs.continuation_len)
    tokenizer = run.model.tokenizer

    def texts(rows: list[list[int]]) -> list[str]:
        return [str(ids) if tokenizer is None else str(tokenizer.decode(ids)) for ids in rows]

    scored = paragraphs.with_columns(
        em=scores.em,
        nll=scores.nll,
        match_fraction=scores.match_fraction,
        edit_distance=edit_distances(said, paragraphs.continuation.numpy()),
        set=np.select([memorized, other], SETS, default="between"),
        prefix_text=texts(paragraphs.prefix.tolist()),
        continuation_text=texts(paragraphs.continuation.tolist()),
        greedy_text=texts(said.tolist()),
    )
    scored.save(run.folder / "paragraphs.parquet")


def gradient_stage(run: StudyFolder) -> None:
    """Max |gradient| of the mean NLL in every component, for both sets; -> gradients.nc."""
    results = [
        parameter_gradients(
            run.model, run.subset(name, run.settings.gradient_sample), progress=part_of(run.progress, number, len(SETS))
        )
        for number, name in enumerate(SETS)
    ]
    gradients = xr.concat(results, dim=_set_axis(SETS), combine_attrs="override")
    run.save(xr.Dataset({"max_gradient": gradients, "layer_share": layer_shares(gradients)}), "gradients.nc")


def head_stage(run: StudyFolder) -> None:
    """Ablate every head alone, for both sets; -> heads.nc."""
    results = [
        ablate_heads(
            run.model,
            run.subset(name, run.settings.ablation_sample),
            method="mean",
            seed=run.settings.seed,
            progress=part_of(run.progress, number, len(SETS)),
        )
        for number, name in enumerate(SETS)
    ]
    run.save(xr.concat(results, dim=_set_axis(SETS), combine_attrs="override"), "heads.nc")


def attention_stage(run: StudyFolder) -> None:
    """Rare-token attention of every head, and patterns of the heads to look at; -> rare.nc, attention.nc."""
    counts = token_frequencies(run)
    sample = run.subset("memorized", run.settings.gradient_sample, distinct=True)
    rare = rare_token_attention(
        run.model, sample, torch.as_tensor(counts), seed=run.settings.seed, progress=run.progress
    )
    heads = xr.load_dataset(run.folder / "heads.nc", engine="h5netcdf")
    run.save(attention_views(run, heads, rare), "attention.nc")
    run.save(rare, "rare.nc")


def patch_stage(run: StudyFolder) -> None:
    """Patch memorized paragraphs with their worst perturbation; -> patching.nc.

    The residual stream everywhere; head outputs where attribution says that it matters. Denoising, judged at the first
    token that the perturbation changes: what brings the memory back. The last fifth of the prefix is left as it is, so
    that the memory has a way to go from the replaced token to the continuation.
    """
    chosen = run.subset("memorized", 3 * run.settings.pairs, distinct=True)
    perturbed = perturb_prefix(run.model, chosen, seed=run.settings.seed, progress=part_of(run.progress, 0, 3))
    clean, corrupt = worst_perturbations(run.model, chosen, perturbed)
    few = np.arange(min(len(clean), run.settings.pairs))
    clean, corrupt = clean.select(few), corrupt.select(few)
    pairs: dict[str, Any] = {"clean": clean, "corrupt": corrupt, "direction": "denoising", "scored": "impact"}
    stream = patch(run.model, **pairs, site="resid_pre", average=False, progress=part_of(run.progress, 1, 3))
    estimate = attribute(run.model, **pairs, site="z")
    cells = top_cells(estimate, run.settings.patched)
    heads = patch(run.model, **pairs, site="z", cells=cells, average=False, progress=part_of(run.progress, 2, 3))
    heads = heads.assign_attrs(rank_correlation=rank_correlation(estimate, heads.mean("paragraph", skipna=False)))
    results = {"resid_pre": stream, "z": heads, "z_estimate": estimate}
    columns = {name: ("paragraph", clean.column(name)) for name in ("perturbed_pos", "impact_pos", "id")}
    run.save(xr.Dataset(results | columns), "patching.nc")


def token_frequencies(run: StudyFolder) -> np.ndarray:
    """How often each token occurs in the bundled training text, or else in the paragraphs of the corpus, [d_vocab]."""
    if run.settings.model == "bundled" and run.settings.corpus is None:
        return bundled_unigram_counts()
    return unigram_counts(run.paragraphs.tokens.numpy().reshape(-1), run.model.cfg.d_vocab)


def attention_views(
    run: StudyFolder, heads: xr.Dataset, rare: xr.Dataset, *, views: int = 3, slots: int = 4
) -> xr.Dataset:
    """Patterns of the most needed heads, and of those most drawn to rare tokens, on a few memorized paragraphs."""
    chosen = run.subset("memorized", views, distinct=True)
    needed = -heads.em_change.sel(set="memorized")
    findings = {
        "memorized": (needed, "heads whose removal costs the most exact match"),
        "rare": (rare.excess, "heads that attend most to the rarest tokens of the prefix"),
    }
    parts: list[xr.Dataset] = []
    for finding, (values, sentence) in findings.items():
        pairs = top_heads(values, slots)
        patterns = head_patterns(run.model, chosen.tokens, pairs)
        count = len(chosen)
        parts.append(
            xr.Dataset(
                {
                    "pattern": (("view", "head_slot", "query_pos", "key_pos"), patterns.numpy().astype(np.float32)),
                    "token": (("view", "query_pos"), np.array(_token_texts(run.model, chosen.tokens), dtype=object)),
                    "layer": (("view", "head_slot"), np.tile([layer for layer, _ in pairs], (count, 1))),
                    "head": (("view", "head_slot"), np.tile([head for _, head in pairs], (count, 1))),
                    "paragraph_id": (("view",), chosen.column("id")),
                    "caption": (
                        ("view",),
                        np.array([f"Paragraph {i}: {sentence}" for i in chosen.column("id")], object),
                    ),
                    "finding": (("view",), np.array([finding] * count, dtype=object)),
                }
            )
        )
    return xr.concat(parts, dim="view")


def top_heads(values: xr.DataArray, count: int) -> list[tuple[int, int]]:
    """The (layer, head) pairs with the largest values, largest first."""
    order = largest(values.transpose("layer", "head").values, count)
    return [(int(index // values.sizes["head"]), int(index % values.sizes["head"])) for index in order]


def _token_texts(model: HookedTransformer, tokens: torch.Tensor) -> list[list[str]]:
    if model.tokenizer is None:
        return [[str(token) for token in row] for row in tokens.tolist()]
    return [[str(model.tokenizer.decode([token])) for token in row] for row in tokens.tolist()]


def _set_axis(names: tuple[str, ...]) -> xr.DataArray:
    return xr.DataArray(list(names), dims="set", name="set")
