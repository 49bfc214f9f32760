"""Whether two models of the ladder, or two methods, find the same memories in the same place.

Heads of two seeds have no common order, and neither have heads of models of two sizes: only layers can be compared, by
relative depth. So there are three questions about two models: whether the layers take the same shares of the effect,
whether they are in the same order (of which few models have enough layers for a rank correlation to say much), and
whether a document that sits deeper than others in one model does so in the other. Two methods on one model are compared
head by head.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

import mechmem as mm

# Depths at which profiles of different numbers of layers are compared.
DEPTHS = np.linspace(0, 1, 13)


def shared_profile(some: np.ndarray, others: np.ndarray) -> float:
    """The part of the mean layer profile, from profiles [paragraph, layer], that two models share: 1, or 0 if none."""
    first, second = (at_depths(profile.mean(0)) for profile in (some, others))
    return float(np.minimum(first / first.sum(), second / second.sum()).sum())


def at_depths(profile: np.ndarray) -> np.ndarray:
    """A profile [layer] at the depths that all models have, interpolated, [depth]."""
    return np.interp(DEPTHS, np.linspace(0, 1, len(profile)), profile)


def layer_correlation(some: np.ndarray, others: np.ndarray, rows: np.ndarray | None = None) -> float:
    """Spearman correlation of two mean layer profiles, at the depths of the model with fewer layers.

    Args:
        some: [paragraph, layer], or effects [paragraph, layer, head], of which those above zero are added up.
        others: the same of another model or method.
        rows: of the documents; None: all.
    """
    first, second = (_by_layer(each if rows is None else each[rows]).mean(0) for each in (some, others))
    depths = np.linspace(0, 1, min(len(first), len(second)))
    return spearman(*(np.interp(depths, np.linspace(0, 1, len(each)), each) for each in (first, second)))


def _by_layer(effects: np.ndarray) -> np.ndarray:
    return effects if effects.ndim == 2 else effects.clip(0).sum(-1)


def head_correlation(some: np.ndarray, others: np.ndarray, rows: np.ndarray) -> float:
    """Spearman correlation over heads of two methods' mean effects [paragraph, layer, head] on the same model."""
    return spearman(some[rows].mean(0).ravel(), others[rows].mean(0).ravel())


def depth_correlation(some: np.ndarray, others: np.ndarray) -> float:
    """Spearman correlation over documents of their relative depth in two models, from profiles [paragraph, layer]."""
    return spearman(*(_depths(profile + 1e-12) for profile in (some, others)))


def _depths(profile: np.ndarray) -> np.ndarray:
    return profile @ np.linspace(0, 1, profile.shape[1]) / profile.sum(1)


def spearman(some: np.ndarray, others: np.ndarray) -> float:
    """Rank correlation; 0 where one of both does not vary."""
    first, second = (rankdata(values) - (len(values) + 1) / 2 for values in (some, others))
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float(first @ second / spread) if spread else 0.0


def document_agreement(
    some: np.ndarray, others: np.ndarray, clusters: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman correlation of one number per document in two models, and its interval by cluster.

    Args:
        some: of the first model, such as the relative depth of each document, [paragraph].
        others: of the second, of the same documents.
        clusters: of each document.
        draws: resamples.
        seed: of the resampling.
    """
    return over_rows(lambda rows: spearman(some[rows], others[rows]), clusters, draws, seed)


def over_rows(
    agreement: Callable[[np.ndarray], float], clusters: np.ndarray, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """What a function of documents, given by their rows, says of all of them, and its interval by cluster.

    Args:
        agreement: of rows, [document], each as often as it was drawn.
        clusters: of each document.
        draws: resamples.
        seed: of the resampling.
    """
    rows = np.arange(len(clusters))
    low, high = mm.cluster_bootstrap(
        rows, clusters, statistic=lambda drawn: agreement(np.asarray(drawn, dtype=int)), draws=draws, seed=seed
    )
    return agreement(rows), low, high
