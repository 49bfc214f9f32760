"""What is true of each row of the detection experiment, and which rows are judged together.

A row recites if its greedy text is the paragraph's true continuation. A row with an exact match of a fifth or less does
not recite that paragraph, but may recite another one: the training text is written again, and what the row says
is looked up in it.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from detection_statistics import auroc, ends_at, summary
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold

import mechmem as mm
from mechmem.data.assets import ASSETS
from mechmem.data.errors import InputError
from mechmem.data.hashes import row_hashes, window_hashes
from mechmem.detect.evaluation.cluster_draws import cluster_draws
from mechmem.model.load import HookedTransformer
from mechmem.stats.covariates import with_covariates
from mechmem.synthetic.generator import SyntheticCorpus, generate

RUN = 25
# What is matched on: what a text is like, whatever the model knows of it. The harder match adds the prefix's NLL, which
# is partly memory.
EASE = ("source", "rarity", "repeated_run", "zlib_ratio", "characters", "distinct")
CONFOUNDS = EASE[1:]


@dataclass(frozen=True)
class Truth:
    """What every row is, [row].

    Attributes:
        recites: says the paragraph's true continuation, whole.
        other: says something else (EM at most a fifth) of which no run of 25 tokens is training text.
        elsewhere: EM at most a fifth, and all that it says stands in one training document.
        partly: EM at most a fifth, and 25 tokens in a row of what it says, but not all, are training text.
    """

    recites: np.ndarray
    other: np.ndarray
    elsewhere: np.ndarray
    partly: np.ndarray

    @property
    def between(self) -> np.ndarray:
        """Rows with an EM in between."""
        return ~(self.recites | self.other | self.elsewhere | self.partly)


def training_text(model: HookedTransformer) -> list[np.ndarray]:
    """Token ids of every distinct document that the bundled model was trained on, in the generator's order.

    Raises:
        InputError: the generator no longer writes that text.
    """
    return _encoded(model, [document.text for document in synthetic_corpus().trained])


def unseen_text(model: HookedTransformer) -> list[np.ndarray]:
    """Token ids of the documents that it was not trained on."""
    corpus = synthetic_corpus()
    return _encoded(model, [document.text for document in [*corpus.unseen, *corpus.unseen_variants]])


@cache
def synthetic_corpus() -> SyntheticCorpus:
    """The corpus of the bundled model, written again."""
    record = json.loads((ASSETS / "training.json").read_text())
    corpus = generate(record["settings"]["seed"], record["settings"]["characters"])
    if corpus.digest() != record["corpus_sha256"]:
        raise InputError(
            f"got a corpus of digest {corpus.digest()[:12]}; need {record['corpus_sha256'][:12]}, the bundled model's "
            "training text: use the version of mechmem that trained it"
        )
    return corpus


def _encoded(model: HookedTransformer, texts: Sequence[str]) -> list[np.ndarray]:
    tokenizer: Any = model.tokenizer
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encoded]


def occurs(said: np.ndarray, corpus: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Whether each run of `length` tokens of each row stands anywhere in the corpus, bool [row, offset].

    Args:
        said: token ids, [row, pos].
        corpus: token ids of documents; a run never crosses from one to the next.
        length: tokens of a run.
    """
    known = np.unique(np.concatenate([window_hashes(tokens, length) for tokens in corpus]))
    runs = np.lib.stride_tricks.sliding_window_view(said, length, axis=1)
    hashes = row_hashes(np.ascontiguousarray(runs).reshape(-1, length)).reshape(runs.shape[:2])
    return known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes


def truth(em: np.ndarray, said: np.ndarray, corpus: Sequence[np.ndarray]) -> Truth:
    """What every row is, by its exact match and by what it says.

    Args:
        em: leading matches with the true continuation, [row].
        said: greedy texts, [row, pos].
        corpus: the training text.
    """
    few = em <= said.shape[1] // 5
    whole, some = occurs(said, corpus, said.shape[1])[:, 0], occurs(said, corpus, RUN).any(1)
    return Truth(em == said.shape[1], few & ~some, few & whole, few & some & ~whole)


def with_ease(model: HookedTransformer, paragraphs: mm.Paragraphs) -> mm.Paragraphs:
    """The same paragraphs with what makes a prefix easy: `EASE` without `source`.

    `repeated_run` is the longest run that occurs twice in the prefix; `zlib_ratio` the prefix's compressed share.
    """
    assert model.tokenizer is not None
    prefixes = mm.Paragraphs(paragraphs.tokens[:, : paragraphs.prefix_len], paragraphs.prefix_len - 1)
    known = with_covariates(prefixes, unigram_counts=mm.bundled_unigram_counts())
    texts = [text.encode() for text in model.tokenizer.batch_decode(paragraphs.prefix.tolist())]
    return paragraphs.with_columns(
        **{name: known.column(name) for name in ("rarity", "repeated_run")},
        zlib_ratio=np.array([len(zlib.compress(text)) / len(text) for text in texts]),
        characters=np.array([float(len(text)) for text in texts]),
        distinct=np.array([len(set(row)) / len(row) for row in paragraphs.prefix.tolist()]),
    )


def matched(
    paragraphs: mm.Paragraphs, recites: np.ndarray, other: np.ndarray, on: Sequence[str], caliper: float | None = None
) -> np.ndarray:
    """Rows of recitations and of as many other rows alike in `on`, of other clusters, bool [row].

    Args:
        paragraphs: with the columns of `on`.
        recites: rows that recite.
        other: rows that may be controls.
        on: columns; words agree exactly.
        caliper: largest difference in each number, in pooled standard deviations.
    """
    first, second = np.flatnonzero(recites), np.flatnonzero(other)
    # A control in a cluster of a recitation shares its memory; `match` leaves it out, and wants a control for each.
    most = int((~np.isin(paragraphs.clusters[second], paragraphs.clusters[first])).sum())
    first = np.sort(np.random.default_rng(0).permutation(first)[:most])
    controls, balance = mm.match(paragraphs[first], paragraphs[second], on, caliper=caliper)
    chosen = np.zeros(len(paragraphs), dtype=bool)
    chosen[first[balance.controls.values > 0]] = True
    return chosen | (other & np.isin(paragraphs.ids, controls.ids))


def confound_scores(paragraphs: mm.Paragraphs, labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """How likely each row recites by its kind and ease alone: boosting, each row judged by a fit to other clusters."""
    kinds = paragraphs.column("source")
    columns = [(kinds == kind).astype(float) for kind in np.unique(kinds)]
    columns += [paragraphs.column(name).astype(float) for name in CONFOUNDS]
    features, clusters = np.stack(columns, 1), paragraphs.clusters
    scores = np.full(len(labels), np.nan)
    folds = GroupKFold(min(5, len(np.unique(clusters))), shuffle=True, random_state=seed)
    for fit, judged in folds.split(features, labels, clusters):
        model = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, max_depth=3, random_state=seed)
        scores[judged] = model.fit(features[fit], labels[fit]).predict_proba(features[judged])[:, 1]
    return scores


def confound_auc(paragraphs: mm.Paragraphs, labels: np.ndarray, *, draws: int = 1000, seed: int = 0) -> list[float]:
    """AUC of `confound_scores` with its 95 % interval by clusters: [value, low, high]; 0.5: confounds tell nothing."""
    scores, recites, clusters = confound_scores(paragraphs, labels, seed=seed), labels > 0, paragraphs.clusters
    weights = np.concatenate([np.ones((1, len(labels))), cluster_draws(recites, clusters, draws, seed)])
    return summary(auroc(scores, recites, weights), ends_at(recites, clusters))


def halves(clusters: np.ndarray, seed: int, share: float = 0.5) -> np.ndarray:
    """Rows of a share of the clusters, drawn at random, bool [row]."""
    labels = np.unique(clusters)
    chosen = np.random.default_rng(seed).permutation(labels)[: max(1, round(share * len(labels)))]
    return np.isin(clusters, chosen)


def _members(clusters: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(clusters, kind="stable")
    labels, starts = np.unique(clusters[order], return_index=True)
    return dict(zip(labels.tolist(), np.split(order, starts[1:]), strict=True))
