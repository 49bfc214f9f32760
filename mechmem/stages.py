"""The stages of a study: each reads the folder's earlier files and writes its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from mechmem.data.atomic import replacing
from mechmem.data.bundled import bundled_paragraphs, bundled_unigram_counts
from mechmem.data.corpora import read_corpus
from mechmem.data.counts import unigram_counts
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, part_of
from mechmem.localize.ablation import ablate_heads
from mechmem.localize.attribution import attribute, rank_correlation, top_cells
from mechmem.localize.gradients import layer_shares, parameter_gradients
from mechmem.localize.heads import head_patterns, rare_token_attention
from mechmem.localize.patching import patch
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.exact import CALIBRATION, ExactScorer
from mechmem.measure.pairs import worst_perturbations
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.scores import memorized_other
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer, load_model

SETS = ("memorized", "other")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a study's numbers.

    Attributes:
        model: hub name, folder or "bundled".
        corpus: a file that `read_corpus` reads; None for the bundled paragraphs, which need the bundled model's ids.
        seed: every sample and split.
        limit: score no more paragraphs than this.
        gradient_sample: paragraphs of each set for gradients and attention.
        ablation_sample: paragraphs of each set for head ablation.
        pairs: memorized paragraphs that are patched with their worst perturbation.
        patched: share of the heads' cells that are patched exactly, those that attribution puts first.
        targets: memorized paragraphs to unlearn.
        evaluated: paragraphs of every other set that an edit is judged on, and of the keep set.
        fraction: share of the attention and MLP weights that the sparse edits may move.
        steps: most updates of an edit.
        learning_rate: of the edit through the top weights and of its control through random ones.
        dense_learning_rate: of the edit through all weights.
        forgotten_nll: an edit stops when the mean NLL of its batch of targets, in nats a token, reaches this.
    """

    model: str = "bundled"
    corpus: str | None = None
    seed: int = 0
    limit: int | None = None
    gradient_sample: int = 160
    ablation_sample: int = 48
    pairs: int = 12
    patched: float = 0.03
    targets: int = 32
    evaluated: int = 100
    fraction: float = 0.001
    steps: int = 30
    learning_rate: float = 1e-3
    dense_learning_rate: float = 3e-5
    forgotten_nll: float = 1.0


@dataclass
class Run:
    """One study folder while its stages run."""

    folder: Path
    settings: Settings
    device: str | None = None
    progress: Progress = field(default=lambda *_: None)

    @cached_property
    def model(self) -> HookedTransformer:
        """The model, raw weights, loaded on first use."""
        return load_model(self.settings.model, processing="raw", device=self.device)

    @cached_property
    def unscored(self) -> Paragraphs:
        """The corpus' paragraphs, known to fit the model."""
        paragraphs = corpus_paragraphs(self.settings, self.model)
        check_fit(self.model, paragraphs)
        return paragraphs

    @cached_property
    def paragraphs(self) -> Paragraphs:
        """The scored paragraphs."""
        return Paragraphs.load(self.folder / "paragraphs.parquet")

    @property
    def comparable(self) -> bool:
        """Whether both sets hold at least two clusters: splits by cluster and means over others need two."""
        return all(len(self.subset(name, 2, distinct=True)) == 2 for name in SETS)

    def subset(self, name: str, count: int | None = None, *, distinct: bool = False) -> Paragraphs:
        """A set by name, or a random sample of it that draws on as many clusters as it can.

        With `distinct` there is no more than one paragraph of a cluster, so no two are near-duplicates.
        """
        members = np.flatnonzero(self.paragraphs.column("set") == name)
        members = np.random.default_rng([self.settings.seed, len(name)]).permutation(members)
        labels = pd.Series(self.paragraphs.column("cluster")[members])
        turn = labels.groupby(labels).cumcount().to_numpy()
        order = np.argsort(turn, kind="stable")[: int((turn == 0).sum()) if distinct else len(turn)]
        return self.paragraphs.select(np.sort(members[order[:count]]))

    def save(self, result: xr.Dataset, name: str) -> None:
        """Write one result, whole or not at all."""
        with replacing(self.folder / name) as temporary:
            result.to_netcdf(temporary, engine="h5netcdf")


def corpus_paragraphs(settings: Settings, model: HookedTransformer) -> Paragraphs:
    """The paragraphs that a study scores, before any score."""
    if settings.corpus is not None:
        return read_corpus(settings.corpus, model.tokenizer, limit=settings.limit, seed=settings.seed)
    if settings.model != "bundled":
        raise InputError(
            f"no corpus came for {settings.model}; the bundled paragraphs are token ids of the bundled model alone: "
            "name text or tokens that the model was trained on with --corpus FILE"
        )
    paragraphs = bundled_paragraphs()
    return paragraphs.select(np.arange(len(paragraphs))[: settings.limit])


def score_stage(run: Run) -> None:
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


def gradient_stage(run: Run) -> None:
    """Max |gradient| of the mean NLL in every component, for both sets; -> gradients.nc."""
    results = [
        parameter_gradients(
            run.model, run.subset(name, run.settings.gradient_sample), progress=part_of(run.progress, number, len(SETS))
        )
        for number, name in enumerate(SETS)
    ]
    gradients = xr.concat(results, dim=_set_axis(SETS), combine_attrs="override")
    run.save(xr.Dataset({"max_gradient": gradients, "layer_share": layer_shares(gradients)}), "gradients.nc")


def head_stage(run: Run) -> None:
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


def attention_stage(run: Run) -> None:
    """Rare-token attention of every head, and patterns of the heads to look at; -> rare.nc, attention.nc."""
    counts = token_frequencies(run)
    sample = run.subset("memorized", run.settings.gradient_sample, distinct=True)
    rare = rare_token_attention(
        run.model, sample, torch.as_tensor(counts), seed=run.settings.seed, progress=run.progress
    )
    heads = xr.load_dataset(run.folder / "heads.nc", engine="h5netcdf")
    run.save(attention_views(run, heads, rare), "attention.nc")
    run.save(rare, "rare.nc")


def patch_stage(run: Run) -> None:
    """Patch memorized paragraphs with their worst perturbation; -> patching.nc.

    The residual stream everywhere; head outputs where attribution says that it matters. Denoising, judged at the first
    token that the perturbation changes: what brings the memory back. The last fifth of the prefix is left as it is, so
    that the memory has a way to go from the replaced token to the continuation.
    """
    chosen = run.subset("memorized", 3 * run.settings.pairs, distinct=True)
    drop = perturb_prefix(run.model, chosen, seed=run.settings.seed, progress=part_of(run.progress, 0, 3))
    clean, corrupt = worst_perturbations(run.model, chosen, drop, before=max(1, chosen.prefix_len * 4 // 5))
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


def token_frequencies(run: Run) -> np.ndarray:
    """How often each token occurs in the bundled training text, or else in the paragraphs of the corpus, [d_vocab]."""
    if run.settings.model == "bundled" and run.settings.corpus is None:
        return bundled_unigram_counts()
    return unigram_counts(run.paragraphs.tokens.numpy().reshape(-1), run.model.cfg.d_vocab)


def attention_views(run: Run, heads: xr.Dataset, rare: xr.Dataset, *, views: int = 3, slots: int = 4) -> xr.Dataset:
    """Patterns of the most needed heads, and of those most drawn to rare tokens, on a few memorized paragraphs."""
    chosen = run.subset("memorized", views, distinct=True)
    needed = heads.em_drop.sel(set="memorized")
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
    order = np.argsort(-values.transpose("layer", "head").values, axis=None, kind="stable")[:count]
    return [(int(index // values.sizes["head"]), int(index % values.sizes["head"])) for index in order]


def _token_texts(model: HookedTransformer, tokens: torch.Tensor) -> list[list[str]]:
    if model.tokenizer is None:
        return [[str(token) for token in row] for row in tokens.tolist()]
    return [[str(model.tokenizer.decode([token])) for token in row] for row in tokens.tolist()]


def _set_axis(names: tuple[str, ...]) -> xr.DataArray:
    return xr.DataArray(list(names), dims="set", name="set")
