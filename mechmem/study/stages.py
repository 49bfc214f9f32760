"""The stages of a study: each reads the folder's earlier files and writes its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int

from mechmem.data.assets import bundled_unigram_counts
from mechmem.data.counts import unigram_counts
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
from mechmem.model.token_text import token_texts
from mechmem.study.folder import SETS, StudyFolder
from mechmem.study.kept_for_view import labels_of, texts_and_patterns, with_intervals


def scan_stage(study: StudyFolder) -> str:
    """Score every paragraph; label the sets; decode some to the end; -> paragraphs.parquet."""
    paragraphs, decoded = study.unscored, study.settings.decoded
    count = len(paragraphs) if decoded is None else min(decoded, len(paragraphs))
    parts = study.parts({"scoring paragraphs": len(paragraphs), "decoding continuations": 2 * count})
    scorer = ExactScorer(study.model, paragraphs.select(np.arange(min(CALIBRATION, len(paragraphs)))))
    token_nll: list[np.ndarray] = []
    scores = scorer.score(
        paragraphs, parts["scoring paragraphs"], each=lambda found: token_nll.append(found.token_nll.cpu().numpy())
    )
    length = paragraphs.continuation_len
    memorized, other = memorized_other(scores.em, length)
    rows = rows_to_decode(scores.em, length, decoded, seed=study.settings.seed)
    said = greedy_continuations(
        scorer.lean,
        paragraphs.tokens[rows],
        paragraphs.prefix_len,
        scores.em[rows],
        scores.rival[rows],
        progress=parts["decoding continuations"],
    )
    # Memorized text is its own continuation; what was not decoded has no distance.
    distance = np.where(memorized, 0.0, np.nan)
    distance[rows] = edit_distances(said, paragraphs.continuation[rows].numpy())
    continuations = _texts(study.model, paragraphs.continuation)
    greedy = np.where(memorized, continuations, "").astype(object)
    greedy[rows] = _texts(study.model, torch.from_numpy(said))
    scored = paragraphs.with_columns(
        em=scores.em,
        nll=scores.nll,
        token_nll=np.concatenate(token_nll),
        token_label=labels_of(study.model, paragraphs.tokens),
        match_fraction=scores.match_fraction,
        edit_distance=distance,
        set=np.select([memorized, other], SETS, default="between"),
        prefix_text=_texts(study.model, paragraphs.prefix),
        continuation_text=continuations,
        greedy_text=greedy.tolist(),
    )
    with study.writing("paragraphs.parquet"):
        scored.save(study.folder / "paragraphs.parquet")
    return f"{memorized.sum():,} of {len(paragraphs):,} paragraphs reproduced exactly"


def rows_to_decode(
    em: Int[np.ndarray, " paragraph"], length: int, limit: int | None, *, seed: int
) -> Int[np.ndarray, " row"]:
    """Rows whose continuation is not known from scoring: all, or half near misses and half a random sample."""
    unknown = np.flatnonzero(em < length)
    if limit is None or limit >= len(unknown):
        return unknown
    near = unknown[np.argsort(-em[unknown], kind="stable")][: limit // 2]
    rest = np.random.default_rng(seed).permutation(np.setdiff1d(unknown, near))[: limit - len(near)]
    return np.sort(np.concatenate([near, rest]))


def gradient_stage(study: StudyFolder) -> str:
    """Max |gradient| of the mean NLL in every component, for both sets; -> gradients.nc."""
    parts = study.parts({f"gradients of {name} text": 1 for name in SETS})
    results = [
        parameter_gradients(
            study.model,
            study.subset(name, study.settings.gradient_sample),
            progress=parts[f"gradients of {name} text"],
        )
        for name in SETS
    ]
    gradients = xr.concat(results, dim=_set_axis(SETS), combine_attrs="override")
    shares = layer_shares(gradients)
    study.save(xr.Dataset({"max_gradient": gradients, "layer_share": shares}), "gradients.nc")
    totals = gradients.sum(["layer", "component"])
    ratio = float(totals.sel(set="other") / totals.sel(set="memorized"))
    top = int(shares.sel(set="memorized").argmax("layer"))
    return f"gradients on other text are {ratio:.1f} times those on memorized text; layer {top} has most of the latter"


def head_stage(study: StudyFolder) -> str:
    """Ablate every head alone, for both sets; -> heads.nc."""
    parts = study.parts({f"ablating heads on {name} text": 1 for name in SETS})
    means: list[xr.Dataset] = []
    seed = study.settings.seed
    for name in SETS:
        sample = study.subset(name, study.settings.ablation_sample)
        progress = parts[f"ablating heads on {name} text"]
        result = ablate_heads(study.model, sample, method="mean", average=False, seed=seed, progress=progress)
        # Each set has other paragraphs, so what is known of single ones is left out.
        means.append(with_intervals(result, sample))
    heads = xr.concat(means, dim=_set_axis(SETS), combine_attrs="override")
    study.save(heads, "heads.nc")
    needed = -heads.em_change.sel(set="memorized")
    ((layer, head),) = top_heads(needed, 1)
    fall = float(needed.sel(layer=layer, head=head))
    return f"ablating L{layer}H{head} lowers EM on memorized text by {fall:.1f} tokens, the most of all heads"


def attention_stage(study: StudyFolder) -> str:
    """Rare-token attention of every head, and patterns of the heads to look at; -> rare.nc, attention.nc."""
    parts = study.parts({"attention to rare tokens": 9, "attention patterns": 1})
    counts = token_frequencies(study)
    sample = study.subset("memorized", study.settings.gradient_sample, distinct=True)
    rare = rare_token_attention(
        study.model,
        sample,
        torch.as_tensor(counts),
        seed=study.settings.seed,
        progress=parts["attention to rare tokens"],
    )
    parts["attention patterns"](0, 1)
    study.save(patterns(study, study.results["heads"], rare), "attention.nc")
    study.save(rare, "rare.nc")
    ((layer, head),) = top_heads(rare.excess, 1)
    excess = 100 * float(rare.excess.sel(layer=layer, head=head))
    return f"L{layer}H{head} attends most to rare tokens: {excess:+.1f} percentage points beyond expectation"


def patch_stage(study: StudyFolder) -> str:
    """Patch memorized paragraphs with their worst perturbation; -> patching.nc.

    The residual stream everywhere; head outputs where attribution says that it matters. Denoising, measured at the
    first token that the perturbation changes: what restores the memory. The last fifth of the prefix is not
    perturbed, so that layers and heads lie between the replaced token and the continuation.
    """
    settings = study.settings
    parts = study.parts({"perturbing prefixes": 3, "patching the residual stream": 3, "patching head outputs": 1})
    chosen = study.subset("memorized", 3 * settings.pairs, distinct=True)
    perturbed = perturb_prefix(study.model, chosen, seed=settings.seed, progress=parts["perturbing prefixes"])
    clean, corrupt = worst_perturbations(study.model, chosen, perturbed)
    few = np.arange(min(len(clean), settings.pairs))
    clean, corrupt = clean.select(few), corrupt.select(few)
    pairs: dict[str, Any] = {"clean": clean, "corrupt": corrupt, "direction": "denoising", "scored": "impact"}
    progress = parts["patching the residual stream"]
    stream = patch(study.model, **pairs, site="resid_pre", average=False, progress=progress)
    estimate = attribute(study.model, **pairs, site="z")
    cells = top_cells(estimate, settings.patched)
    progress = parts["patching head outputs"]
    heads = patch(study.model, **pairs, site="z", cells=cells, average=False, progress=progress)
    heads = heads.assign_attrs(rank_correlation=rank_correlation(estimate, heads.mean("paragraph", skipna=False)))
    columns = {name: ("paragraph", clean.column(name)) for name in ("perturbed_pos", "impact_pos")}
    effects = xr.Dataset({"resid_pre": stream, "z": heads, "z_estimate": estimate} | columns)
    study.save(effects.merge(texts_and_patterns(study.model, clean, corrupt)), "patching.nc")
    rise = stream.attrs["base"] - stream.attrs["source"]
    relief = -heads.mean("paragraph", skipna=False).fillna(0).sum("pos")
    ((layer, head),) = top_heads(relief, 1)
    share = 100 * float(relief.sel(layer=layer, head=head)) / rise
    return f"restoring L{layer}H{head} undoes {share:.0f} % of the {rise:.1f} nats that replacing one token adds"


def token_frequencies(study: StudyFolder) -> np.ndarray:
    """How often each token occurs in the bundled training text, or else in the paragraphs of the corpus, [d_vocab]."""
    if study.settings.model == "bundled" and study.settings.corpus is None:
        return bundled_unigram_counts()
    return unigram_counts(study.paragraphs.tokens.numpy().reshape(-1), study.model.cfg.d_vocab)


def patterns(study: StudyFolder, heads: xr.Dataset, rare: xr.Dataset, *, views: int = 3, slots: int = 4) -> xr.Dataset:
    """Patterns of the most needed heads, and of those that attend most to rare tokens, on a few paragraphs."""
    chosen = study.subset("memorized", views, distinct=True)
    needed = -heads.em_change.sel(set="memorized")
    findings = {
        "memorized": (needed, "heads whose removal costs the most exact match"),
        "rare": (rare.excess, "heads that attend most to the rarest tokens of the prefix"),
    }
    parts: list[xr.Dataset] = []
    for finding, (values, sentence) in findings.items():
        pairs = top_heads(values, slots)
        patterns = head_patterns(study.model, chosen.tokens, pairs)
        count = len(chosen)
        parts.append(
            xr.Dataset(
                {
                    "pattern": (("view", "head_slot", "query_pos", "key_pos"), patterns.numpy().astype(np.float32)),
                    "token": (("view", "query_pos"), token_texts(study.model.tokenizer, chosen.tokens)),
                    "layer": (("view", "head_slot"), np.tile([layer for layer, _ in pairs], (count, 1))),
                    "head": (("view", "head_slot"), np.tile([head for _, head in pairs], (count, 1))),
                    "paragraph_id": (("view",), chosen.ids),
                    "caption": (
                        ("view",),
                        np.array([f"Paragraph {i}: {sentence}" for i in chosen.ids], object),
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


def _texts(model: HookedTransformer, tokens: torch.Tensor) -> list[str]:
    """Each row as text; as numbers where the model has no tokenizer."""
    decode = str if model.tokenizer is None else model.tokenizer.decode
    return [str(decode(ids)) for ids in tokens.tolist()]


def _set_axis(names: tuple[str, ...]) -> xr.DataArray:
    return xr.DataArray(list(names), dims="set", name="set")
