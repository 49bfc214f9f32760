"""What detectors must beat or cannot: a model with random weights, the corpus' own rate, and gradients as a ceiling."""

import copy
from typing import Any

import numpy as np
import torch
from detection_rows import Rows, decoded
from detection_statistics import auroc, cluster_weights, ends_at, summary, tpr_at
from samples import one_per_cluster
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mechmem as mm
from mechmem.detect.features.gradient_features import own_gradients
from mechmem.model.load import HookedTransformer
from mechmem.synthetic.generator import SyntheticCorpus

STEPS = (0, 4, 16)


def random_model(model: HookedTransformer, seed: int = 0) -> HookedTransformer:
    """A copy with random weights of the same spread, tensor by tensor; norms keep theirs."""
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in copied.named_parameters():
            if ".ln" not in name and not name.startswith("ln"):
                value.copy_(torch.randn(value.shape, generator=generator) * value.std(unbiased=False))
    return copied


def random_model_row(
    rows: Rows, model: HookedTransformer, sets: dict[str, np.ndarray], settings: Any
) -> dict[str, Any]:
    """How well the states of a model that knows nothing tell the bundled model's recitations, from the prefix alone."""
    kept = np.flatnonzero(rows.recites | rows.other)
    features = decoded(
        random_model(model), rows.paragraphs.select(kept), settings.out / "random", groups=("output", "residual"),
        ks=(0,), max_new_tokens=1,
    )  # fmt: skip
    columns = np.concatenate([features.output.values[:, 0], features.residual.values[:, 0, -1]], 1)
    scores = held_out_scores(columns, rows.recites[kept], rows.clusters[kept])
    found = {}
    for name, chosen in sets.items():
        at = chosen[kept]
        labels, clusters = rows.recites[kept][at], rows.clusters[kept][at]
        weights = cluster_weights(clusters, settings.draws)
        found[name] = summary(auroc(scores[at], labels, weights), ends_at(labels, clusters))
    return found


def held_out_scores(columns: np.ndarray, labels: np.ndarray, clusters: np.ndarray, penalty: float = 0.01) -> np.ndarray:
    """Log odds of each row by logistic regression on other clusters, [row]."""
    scores = np.zeros(len(labels))
    for fit, held in GroupKFold(5, shuffle=True, random_state=0).split(columns, labels, clusters):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=500))
        scores[held] = probe.fit(columns[fit], labels[fit]).decision_function(columns[held])
    return scores


def gradient_ceiling(rows: Rows, model: HookedTransformer, settings: Any) -> dict[str, Any]:
    """Gradients of the own text's NLL, by layer, beside the output statistics of the same rows: k -> name -> values."""
    every = rows.paragraphs
    parts = [one_per_cluster(every.select(chosen), settings.gradients) for chosen in (rows.recites, rows.other)]
    kept = np.flatnonzero(np.isin(every.ids, np.concatenate([part.ids for part in parts])))
    some, said = every.select(kept), rows.features.said.values[kept]
    gradients = np.log(own_gradients(model, some.prefix, said, said[:, 0], STEPS, (None,) * len(STEPS)) + 1e-12)
    labels, clusters = rows.recites[kept], rows.clusters[kept]
    weights, ends = cluster_weights(clusters, settings.draws), ends_at(labels, clusters)
    found: dict[str, Any] = {"rows": [int(labels.sum()), int((~labels).sum())]}
    for at, k in enumerate(STEPS):
        output = rows.features.output.sel(k=k).values[kept]
        columns = {
            "output": output,
            "gradient": gradients[:, at],
            "output + gradient": np.concatenate([output, gradients[:, at]], 1),
        }
        found[str(k)] = {}
        for name, values in columns.items():
            scores = held_out_scores(values, labels, clusters, penalty=1.0)
            area, tpr = auroc(scores, labels, weights), tpr_at(scores, labels, clusters, weights, 0.01)[0]
            found[str(k)][name] = {"AUROC": summary(area, ends), "TPR at 1 %": summary(tpr, ends)}
    return found


def base_rates(
    model: HookedTransformer, corpus: SyntheticCorpus, tokens: list[np.ndarray], count: int
) -> dict[str, float]:
    """Share of windows of the training text that the model recites, drawn as they occur, and drawn once each.

    Args:
        model: the bundled model.
        corpus: its training text.
        tokens: of its distinct documents.
        count: windows of each sample.
    """
    rng = np.random.default_rng(0)
    repeats = np.array([document.count for document in corpus.trained], dtype=float)
    lengths = np.array([max(0, len(row) - 99) for row in tokens], dtype=float)
    found = {}
    for name, chance in (("as it occurs", repeats * lengths), ("each document once", lengths)):
        drawn = rng.choice(len(tokens), count, p=chance / chance.sum())
        starts = [rng.integers(0, len(tokens[at]) - 99) for at in drawn]
        windows = np.stack([tokens[at][start : start + 100] for at, start in zip(drawn, starts, strict=True)])
        em = mm.score(model, mm.Paragraphs(torch.from_numpy(windows))).em.values
        found[name] = float((em == 50).mean())
    return found
