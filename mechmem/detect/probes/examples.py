"""Decoded texts whose truth is known, and a division of them that separates no cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from mechmem.data.errors import InputError
from mechmem.detect.features.feature_arrays import columns_of
from mechmem.detect.features.feature_choice import FeatureChoice


@dataclass(frozen=True, eq=False)
class Examples:
    """Features of decoded texts, and which of them are recited.

    Attributes:
        features: as `detection_features` returns them.
        recites: whether the model's text is the paragraph's true continuation, [paragraph].
        clusters: label of each paragraph's cluster, [paragraph], of any type that sorts.

    Raises:
        InputError: labels of another number.
    """

    features: xr.Dataset
    recites: Bool[np.ndarray, " paragraph"]
    clusters: np.ndarray

    def __post_init__(self) -> None:
        rows = self.features.sizes["paragraph"]
        if self.recites.shape != (rows,) or self.clusters.shape != (rows,):
            raise InputError(
                f"got features of {rows} paragraphs, {len(self.recites)} truths and {len(self.clusters)} clusters; "
                "need one of each for a paragraph"
            )

    def __len__(self) -> int:
        return len(self.recites)

    @property
    def ks(self) -> tuple[int, ...]:
        """Steps at which there are features."""
        return tuple(self.features.k.values.tolist())

    @property
    def generation_len(self) -> int:
        """Tokens that were said."""
        return self.features.sizes.get("pos", self.ks[-1] + 1)

    def select(self, rows: Int[np.ndarray, " chosen"]) -> Examples:
        """Some of them."""
        return Examples(self.features.isel(paragraph=rows), self.recites[rows], self.clusters[rows])

    def at(self, ks: tuple[int, ...]) -> Examples:
        """Some steps of them."""
        places = [self.ks.index(k) for k in ks]
        return Examples(self.features.isel(k=places), self.recites, self.clusters)

    def columns(self, choice: FeatureChoice) -> tuple[Float[np.ndarray, "paragraph k feature"], tuple[str, ...]]:
        """Columns of a choice, and their names."""
        return columns_of(self.features, choice)


def cluster_kinds(
    recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray
) -> tuple[np.ndarray, Int[np.ndarray, " paragraph"], Int[np.ndarray, " cluster"]]:
    """Labels, each paragraph's place among them, and what each cluster has: 1 others, 2 recited ones, 3 both."""
    labels, members = np.unique(clusters, return_inverse=True)
    kinds = np.zeros(len(labels), dtype=np.int64)
    for bit, rows in ((1, ~recites), (2, recites)):
        kinds[np.unique(members[rows])] |= bit
    return labels, members, kinds


def divide(
    recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, shares: tuple[float, ...], seed: int
) -> list[Int[np.ndarray, " chosen"]]:
    """Rows of parts that share no cluster.

    Clusters with recited paragraphs, with others and with both are dealt out separately, at random, so that each part
    has its share of each.

    Args:
        recites: the truth.
        clusters: labels.
        shares: of the clusters, for each part; they sum to one.
        seed: of the division.
    """
    _, members, kinds = cluster_kinds(recites, clusters)
    rng = np.random.default_rng(seed)
    part = np.zeros(len(kinds), dtype=np.int64)
    for kind in (1, 2, 3):
        chosen = rng.permutation(np.flatnonzero(kinds == kind))
        part[chosen] = _dealt(len(chosen), shares)
    return [np.flatnonzero(part[members] == number) for number in range(len(shares))]


def _dealt(count: int, shares: tuple[float, ...]) -> Int[np.ndarray, " cluster"]:
    """The part of each of `count` clusters, in order; every part gets one while there are enough."""
    ends = np.round(np.cumsum(shares) * count).astype(int)
    sizes = np.diff(np.r_[0, ends])
    for part in np.flatnonzero(sizes == 0):
        if sizes.max() > 1:
            sizes[sizes.argmax()] -= 1
            sizes[part] += 1
    return np.repeat(np.arange(len(shares)), sizes)


def cluster_folds(
    recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, folds: int, seed: int
) -> Int[np.ndarray, " paragraph"]:
    """Fold of each paragraph; a cluster is in one fold. Fewer folds than asked where there are fewer clusters."""
    _, members, kinds = cluster_kinds(recites, clusters)
    least = min(int(np.count_nonzero(kinds & bit)) for bit in (1, 2))
    folds = max(2, min(folds, least))
    found = np.zeros(len(members), dtype=np.int64)
    for number, rows in enumerate(divide(recites, clusters, (1 / folds,) * folds, seed)):
        found[rows] = number
    return found


def check_clusters(recites: Bool[np.ndarray, " paragraph"], clusters: np.ndarray, parts: int = 3) -> None:
    """Refuse examples that cannot be divided into parts that share no cluster.

    Args:
        recites: the truth.
        clusters: labels.
        parts: two with recited and other paragraphs each, or a third one of others.

    Raises:
        InputError: no paragraph of a set, fewer than two clusters of it, or too few for the parts.
    """
    _, _, kinds = cluster_kinds(recites, clusters)
    recited, others = (int(np.count_nonzero(kinds & bit)) for bit in (2, 1))
    if not recites.any():
        raise InputError("got no paragraph that the model recites; need at least 2 clusters of memorized paragraphs")
    if recites.all():
        raise InputError(
            "got no other paragraph, one that the model does not recite; need at least 4 clusters of them to learn "
            "what ordinary text looks like"
        )
    for count, name in ((recited, "memorized"), (others, "other")):
        if count < 2:
            raise InputError(
                f"got {count} cluster of {name} paragraphs; need at least 2, for near-duplicates say nothing about "
                "other text: give more paragraphs"
            )
    if recited < 3 or others < parts + 1:
        raise InputError(
            f"got {recited} clusters of memorized and {others} of other paragraphs; need at least 3 and "
            f"{parts + 1}: a detector is fitted, calibrated and given its threshold on parts that share no cluster"
        )
