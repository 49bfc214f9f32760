"""Detectors judged on text of another kind than they were trained on: each change a row, with its own truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
import xarray as xr
from detection_methods import FALSE_ALARMS
from detection_rows import Rows, concatenated, decoded
from detection_sets import RUN, occurs, unseen_text
from detection_statistics import auroc, cluster_weights, ends_at, share, summary
from samples import one_per_cluster

import mechmem as mm
from mechmem.data.hashes import row_hashes, window_hashes
from mechmem.detect.detector import Detector
from mechmem.detect.probes.fit import step_scores, step_statistics
from mechmem.model.load import HookedTransformer

GROUPS = ("output", "prefix", "residual")
KS = (0, 4, 16)
# Never trained on: the rows of this fold, whose detectors were trained on the other folds.
FOLD = 0


@dataclass(frozen=True)
class Judged:
    """Texts of one row of the table.

    Attributes:
        features: at every step.
        recites: rows that recite, at each step, bool [row, k].
        other: rows that do not, bool [row, k].
        clusters: [row].
        notes: numbers of the row's own.
    """

    features: xr.Dataset
    recites: np.ndarray
    other: np.ndarray
    clusters: np.ndarray
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every row is made from: the bundled model, the rows of a fold, and the detectors of the other folds."""

    model: HookedTransformer
    rows: Rows
    test: np.ndarray
    detectors: Mapping[str, Detector]
    settings: Any

    @property
    def memorized(self) -> mm.Paragraphs:
        """Recitations of the fold."""
        return self.rows.paragraphs.select(self.test & self.rows.recites)

    @property
    def other(self) -> mm.Paragraphs:
        """Other texts of the fold."""
        return self.rows.paragraphs.select(self.test & self.rows.other)

    def decode(
        self, name: str, paragraphs: mm.Paragraphs, model: HookedTransformer | None = None, **how: Any
    ) -> xr.Dataset:
        """Features of paragraphs, kept under a name."""
        work = self.settings.out / "transfer" / name
        return decoded(model or self.model, paragraphs, work, groups=GROUPS, **how)

    def by_truth(self, name: str, paragraphs: mm.Paragraphs, model: HookedTransformer | None = None) -> Judged:
        """Greedy texts with the standard truth: the true continuation, or none that training text holds."""
        features = self.decode(name, paragraphs, model)
        em, length = features.em.values, paragraphs.continuation_len
        clean = (em <= length // 5) & ~occurs(features.said.values, self.rows.corpus, RUN).any(1)
        steps = np.ones((1, features.sizes["k"]), dtype=bool)
        return Judged(features, (em == length)[:, None] & steps, clean[:, None] & steps, paragraphs.clusters, {})


def standard(bench: Bench) -> Judged:
    """The fold's own rows, decoded greedily: what the other rows of the table are compared with."""
    chosen = bench.test & (bench.rows.recites | bench.rows.other)
    features = bench.rows.features[[*GROUPS, "said", "em"]].isel(paragraph=np.flatnonzero(chosen))
    steps = np.ones((1, features.sizes["k"]), dtype=bool)
    recites, other = (rows[chosen][:, None] & steps for rows in (bench.rows.recites, bench.rows.other))
    return Judged(features, recites, other, bench.rows.clusters[chosen], {})


def sampled(bench: Bench) -> Judged:
    """Sampling at temperature 1. A memorized row recites at k while all k sampled tokens are the true ones."""
    paragraphs = bench.rows.paragraphs.select(bench.test & (bench.rows.recites | bench.rows.other))
    features = bench.decode("sampled", paragraphs, temperature=1.0)
    known = bench.rows.recites[bench.test & (bench.rows.recites | bench.rows.other)]
    said, true = features.said.values, paragraphs.continuation.numpy()
    so_far = np.cumprod(np.c_[np.ones(len(said), int), said[:, :-1] == true[:, :-1]], 1).astype(bool)
    clean = ~known & ~occurs(said, bench.rows.corpus, RUN).any(1)
    whole = float((said == true)[known].all(1).mean())
    return Judged(
        features,
        so_far & known[:, None],
        np.repeat(clean[:, None], said.shape[1], 1),
        paragraphs.clusters,
        {"sampled whole": whole},
    )


def replaced(bench: Bench) -> Judged:
    """One prefix token, at random, replaced by another at random; recitations are those that recite all the same."""
    rng, memorized = np.random.default_rng(0), bench.memorized
    tokens, index = memorized.tokens.clone(), np.arange(len(memorized))
    places = rng.integers(0, memorized.prefix_len, len(memorized))
    tokens[index, places] = torch.from_numpy(rng.integers(1, bench.model.cfg.d_vocab, len(memorized)))
    judged = bench.by_truth("replaced", memorized.replace_tokens(tokens))
    notes = {"share that recite all the same": float(judged.recites[:, 0].mean())}
    others = bench.by_truth("replaced-other", bench.other)
    return together(judged, others, notes)


def perturbed(bench: Bench) -> Judged:
    """One prefix token replaced: of all places, with a random token each, the one that costs most EM."""
    few = one_per_cluster(bench.memorized, bench.settings.perturbed)
    found = mm.perturb_prefix(bench.model, few, samples=1)
    places, index = found.sample_em.values[0].argmin(1), np.arange(len(few))
    tokens = few.tokens.clone()
    tokens[index, places] = torch.from_numpy(found.replacement.values[0][index, places].astype(np.int64))
    judged = bench.by_truth("perturbed", few.replace_tokens(tokens))
    notes = {"share that recite after the worst of 50 replacements": float(judged.recites[:, 0].mean())}
    notes["mean EM then, tokens"] = float(judged.features.em.mean())
    for name, detector in bench.detectors.items():
        flagged = step_statistics(detector, judged.features)[:, -1] > detector.threshold(FALSE_ALARMS)
        notes[f"share of all flagged then, {name}"] = float(flagged.mean())
    others = bench.by_truth("perturbed-other", bench.other[: bench.settings.perturbed])
    return together(judged, others, notes)


def short_prefix(bench: Bench) -> Judged:
    """The last 20 tokens of each prefix alone."""
    rows = bench.rows.paragraphs.select(bench.test & (bench.rows.recites | bench.rows.other))
    return bench.by_truth("prefix-20", _cut(rows, rows.tokens[:, 30:], 20))


def long_prefix(bench: Bench) -> Judged:
    """The paragraphs' 100 tokens as a prefix, followed in their document by the 50 tokens to come."""
    rows = bench.rows.paragraphs.select(bench.test & (bench.rows.recites | bench.rows.other))
    longer, kept = _extended(rows.tokens.numpy(), [*bench.rows.corpus, *unseen_text(bench.model)], 50)
    return bench.by_truth("prefix-100", _cut(rows.select(kept), torch.from_numpy(longer), 100))


ROWS: dict[str, Callable[[Bench], Judged]] = {
    "standard": standard,
    "sampling, temperature 1": sampled,
    "random replacement in the prefix": replaced,
    "worst replacement in the prefix": perturbed,
    "prefix of 20 tokens": short_prefix,
    "prefix of 100 tokens": long_prefix,
}


def judge(judged: Judged, detectors: Mapping[str, Detector], draws: int) -> dict[str, Any]:
    """AUROC at `KS`, and shares flagged within the generation at the detector's own threshold, by detector.

    A row that recites only for a while counts as flagged if the alarm comes before it strays.
    """
    found: dict[str, Any] = {}
    for name, detector in detectors.items():
        if not set(detector.choice.groups) <= set(judged.features.data_vars):
            continue
        scores, statistic = step_scores(detector, judged.features), step_statistics(detector, judged.features)
        alarm = statistic > detector.threshold(FALSE_ALARMS)
        found[name] = {"flagged": _flagged(alarm & judged.recites, judged.recites, judged.clusters)}
        found[name]["false alarms"] = _flagged(alarm & judged.other, judged.other, judged.clusters)
        for k in KS:
            rows = judged.recites[:, k] | judged.other[:, k]
            labels = judged.recites[rows, k]
            if labels.all() or not labels.any():
                continue
            clusters = judged.clusters[rows]
            area = auroc(scores[rows, k], labels, cluster_weights(clusters, draws))
            found[name][f"AUROC at k = {k}"] = summary(area, ends_at(labels, clusters))
    return found


def _flagged(alarm: np.ndarray, there: np.ndarray, clusters: np.ndarray) -> list[float] | None:
    rows = there.any(1)
    return share(np.any(alarm[rows], axis=1), clusters[rows]) if rows.any() else None


def together(first: Judged, second: Judged, notes: Mapping[str, Any]) -> Judged:
    """The recitations of one part and the other rows of the next, as one row of the table."""
    features = concatenated([first.features, second.features])
    recites = np.r_[first.recites, np.zeros_like(second.recites)]
    other = np.r_[np.zeros_like(first.other), second.other]
    return Judged(features, recites, other, np.r_[first.clusters, second.clusters], notes)


def _cut(rows: mm.Paragraphs, tokens: torch.Tensor, prefix_len: int) -> mm.Paragraphs:
    assert rows.table is not None
    return mm.Paragraphs(
        tokens, prefix_len, datasets.Dataset.from_dict({"id": rows.ids.tolist(), "cluster": rows.clusters.tolist()})
    )


def _extended(tokens: np.ndarray, documents: list[np.ndarray], more: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows with the tokens that follow them in the first document that holds them and so many more; and which."""
    length = tokens.shape[1]
    wanted = {int(value): row for row, value in enumerate(row_hashes(tokens))}
    found: dict[int, np.ndarray] = {}
    for document in documents:
        hashes = window_hashes(document, length)
        for place in np.flatnonzero(np.isin(hashes, np.fromiter(wanted, np.uint64))):
            row, whole = wanted[int(hashes[place])], document[place : place + length + more]
            if len(whole) == length + more:
                found.setdefault(row, whole)
    kept = np.array(sorted(found), dtype=int)
    return np.stack([found[row] for row in kept.tolist()]), kept


def bench_of(settings: Any, model: HookedTransformer, rows: Rows, folds: np.ndarray, names: Sequence[str]) -> Bench:
    """The fold that is judged, and the saved detectors of the others."""
    detectors = {name: Detector.load(settings.out / f"folds/{name}-{FOLD}") for name in names}
    return Bench(model, rows, folds == FOLD, detectors, settings)
