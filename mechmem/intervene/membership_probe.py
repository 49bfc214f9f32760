"""What a linear probe on the residual stream still reads after an edit: which text the original knew by heart."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from mechmem.data.bounds import Count, Rate, Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, batches
from mechmem.intervene.oracle_check import check_oracle
from mechmem.model.forward import advance, check_fit, residual_before
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

BATCH = 16
MEASURES = {
    "auroc": "of a probe that was trained on this model",
    "original_probe": "of the probe that was trained on the original",
    "shuffled": "of a probe that was trained on this model with the labels of clusters shuffled",
}


@public("run")
def membership_probe(
    original: HookedTransformer,
    edited: HookedTransformer,
    targets: Paragraphs,
    other: Paragraphs,
    *,
    oracle: HookedTransformer | None = None,
    folds: Count = 4,
    regularization: Rate = 0.01,
    seed: Seed = 0,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Train probes that tell targets from other text, and see whether the edited model still lets them.

    1. The residual stream at each layer boundary is averaged over the columns that score the continuation.
    2. Clusters of both sets are dealt into folds. For each fold a logistic probe (standardized, L2) is trained on the
       others and judged on it: AUROC, the mean over folds.
    3. The same probes read the edited model; new ones are trained on it; and new ones on shuffled labels, the control:
       they are at 0.5 if nothing leaks between the folds.

    An AUROC above 0.5 need not be memory: targets and other text may differ in kind. The oracle says what a probe reads
    from the text alone; what an edited model lets a probe read beyond that is memory.

    Args:
        original: hooks on it and on the other models are run.
        edited: the model after the edit, of the same shape.
        targets: paragraphs that the original has memorized; whole clusters are held out where there is a column
            `cluster`.
        other: paragraphs that it has not, best of the same kinds and lengths.
        oracle: a model of the same recipe that never read the targets.
        folds: of the clusters, at least two; each set needs as many clusters.
        regularization: inverse strength of the L2 penalty (scikit-learn's C), on standardized dimensions.
        seed: deals the folds and shuffles the labels.
        batch_size: paragraphs of one forward; None: 16.
        progress: called with (boundaries done, boundaries of all models).

    Returns:
        Dataset [model, boundary], model "before", "after" and, where given, "oracle"; boundary 0 (the embedding) ...
        n_layers: auroc, original_probe and shuffled, each higher: more is read.

    Raises:
        InputError: fewer clusters than folds, sets of different lengths, models of different shapes, an oracle that is
            one of the others, or paragraphs that do not fit.
    """
    for model in (original, edited):
        check_fit(model, targets)
        check_fit(model, other)
    check_oracle(original, edited, oracle)
    labels, clusters = _labels(targets, other, folds)
    models = {"before": original, "after": edited} | ({} if oracle is None else {"oracle": oracle})
    report, depth = as_callback(progress, "probing"), original.cfg.n_layers + 1
    splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(labels, labels, clusters))
    shuffled = _shuffled(labels, clusters, seed)
    found = {name: np.full((len(models), depth), np.nan) for name in MEASURES}
    known: dict[int, list[Pipeline | None]] = {}
    for row, model in enumerate(models.values()):
        for boundary, features in enumerate(_features(model, targets, other, batch_size or BATCH)):
            own = [_fitted(features[train], labels[train], regularization) for train, _ in splits]
            by_chance = [_fitted(features[train], shuffled[train], regularization) for train, _ in splits]
            # The first model is the original: its probes read all others.
            known.setdefault(boundary, own)
            for name, probes, truth in (
                ("auroc", own, labels),
                ("original_probe", known[boundary], labels),
                ("shuffled", by_chance, shuffled),
            ):
                found[name][row, boundary] = _area(probes, features, truth, splits)
            if report is not None:
                report(row * depth + boundary + 1, len(models) * depth)
    about = {"units": "1", "higher": "more is read"}
    data = {name: (("model", "boundary"), found[name], about | {"long_name": MEASURES[name]}) for name in MEASURES}
    coords = {"model": list(models), "boundary": np.arange(depth)}
    return xr.Dataset(data, coords, {"folds": folds, "regularization": regularization, "seed": seed})


def _labels(targets: Paragraphs, other: Paragraphs, folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each paragraph is a target, and its cluster; rows without clusters are their own."""
    shapes = [(part.tokens.shape[1], part.prefix_len) for part in (targets, other)]
    if shapes[0] != shapes[1]:
        raise InputError(f"got targets of length and prefix {shapes[0]} and other text of {shapes[1]}; need one shape")
    both = targets.has("cluster") and other.has("cluster")
    first = targets.clusters if both else np.arange(len(targets))
    second = other.clusters if both else len(targets) + np.arange(len(other))
    if shared := set(first.tolist()) & set(second.tolist()):
        raise InputError(
            f"{len(shared)} clusters stand in both the targets and the other text; need none: select others"
        )
    counts = [len(np.unique(part)) for part in (first, second)]
    if folds < 2 or min(counts) < folds:
        raise InputError(
            f"got {folds} folds for {counts[0]} clusters of targets and {counts[1]} of other text; need at least 2 "
            "folds and a cluster of both sets in each: give more paragraphs"
        )
    return np.repeat([1, 0], [len(targets), len(other)]), np.concatenate([first, second])


def _shuffled(labels: Int[np.ndarray, " paragraph"], clusters: np.ndarray, seed: int) -> Int[np.ndarray, " paragraph"]:
    """The labels, given to the clusters at random: near-duplicates keep a common one."""
    _, first, members = np.unique(clusters, return_index=True, return_inverse=True)
    return np.random.default_rng(seed).permutation(labels[first])[members]


@torch.no_grad()
def _features(
    model: HookedTransformer, targets: Paragraphs, other: Paragraphs, size: int
) -> list[Float[np.ndarray, "paragraph d"]]:
    """The mean residual stream of each paragraph's columns, boundary after boundary."""
    tokens, start = torch.cat([targets.tokens.cpu(), other.tokens.cpu()]), targets.prefix_len - 1
    residuals = [residual_before(model, tokens[rows].to(model.cfg.device), 0) for rows in batches(len(tokens), size)]
    found = []
    for boundary in range(model.cfg.n_layers + 1):
        if boundary:
            residuals = [advance(model, part, boundary - 1, boundary) for part in residuals]
        found.append(torch.cat([part[:, start:-1].double().mean(1) for part in residuals]).cpu().numpy())
    return found


def _fitted(
    features: Float[np.ndarray, "row d"], labels: Int[np.ndarray, " row"], regularization: float
) -> Pipeline | None:
    """A probe; None where all rows have one label, as shuffled ones of few clusters may."""
    if len(np.unique(labels)) < 2:
        return None
    return make_pipeline(StandardScaler(), LogisticRegression(C=regularization, max_iter=1000)).fit(features, labels)


def _area(
    probes: list[Pipeline | None],
    features: Float[np.ndarray, "paragraph d"],
    labels: Int[np.ndarray, " paragraph"],
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> float:
    """Mean over folds with both labels; values of different probes are never compared."""
    areas = [
        roc_auc_score(labels[test], probe.decision_function(features[test]))
        for probe, (_, test) in zip(probes, splits, strict=True)
        if probe is not None and 0 < labels[test].sum() < len(test)
    ]
    return float(np.mean(areas)) if areas else float("nan")
