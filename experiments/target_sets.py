"""Which clusters the unlearning experiments forget, and which they never do: fixed for all of them and the oracle."""

from collections.abc import Sequence

import numpy as np
from samples import refuse_few

import mechmem as mm

# Of a target's cluster in the training text, documents.
MOST_OCCURRENCES = 250


def target_clusters(paragraphs: mm.Paragraphs, em: np.ndarray, seeds: Sequence[int], each: int) -> dict[int, list[int]]:
    """For each seed, the clusters of its targets; no cluster is in two seeds.

    Half of the clusters with a memorized paragraph, at random, may become targets; the others stay for the sets that
    an edit should leave alone. A cluster that fills much of the training text is no target: a model that is trained
    without it would also differ by having read less text.

    Args:
        paragraphs: the candidates.
        em: of each, tokens.
        seeds: of the experiment.
        each: clusters of a seed.

    Returns:
        Seed -> its clusters, in random order.

    Raises:
        InputError: too few memorized clusters.
    """
    known = em == paragraphs.continuation_len
    if paragraphs.has("cluster_count"):
        known &= paragraphs.column("cluster_count") <= MOST_OCCURRENCES
    memorized = np.unique(paragraphs.clusters[known])
    order = np.random.default_rng(0).permutation(memorized)[: len(memorized) // 2]
    refuse_few({f"memorized, for {len(seeds)} seeds of {each} targets": len(memorized)}, len(em), 2 * len(seeds) * each)
    return {seed: order[place * each : (place + 1) * each].tolist() for place, seed in enumerate(seeds)}
