"""Whether two models of the ladder keep the same memories in the same place.

Heads of two seeds have no common order, and neither have heads of models of two sizes: only layers can be compared, by
relative depth. So there are two questions: whether the layers take the same shares of the effect (of which few models
have enough layers for a rank correlation to mean anything), and whether a document that sits deeper than others in one
model does so in the other, which is a rank correlation over documents.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

import mechmem as mm

# Depths at which profiles of different numbers of layers are compared.
DEPTHS = np.linspace(0, 1, 13)


def shared_profile(some: np.ndarray, others: np.ndarray) -> float:
    """The part of the mean layer profile, from profiles [paragraph, layer], that two models share: 1, or 0 if none."""
    first, second = (_at_depths(profile.mean(0)) for profile in (some, others))
    return float(np.minimum(first, second).sum())


def _at_depths(profile: np.ndarray) -> np.ndarray:
    values = np.interp(DEPTHS, np.linspace(0, 1, len(profile)), profile)
    return values / values.sum()


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

    def agreement(chosen: np.ndarray) -> float:
        first, second = rankdata(some[chosen]), rankdata(others[chosen])
        spread = first.std() * second.std()
        return float(((first - first.mean()) * (second - second.mean())).mean() / spread) if spread else 0.0

    return over_rows(agreement, clusters, draws, seed)


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
