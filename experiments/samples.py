"""Which paragraphs an experiment takes: by EM, and by cluster, so that near-duplicates count once."""

from collections.abc import Mapping

import numpy as np

import mechmem as mm
from mechmem.model.load import HookedTransformer

MEMORIZED_OTHER = {"memorized": (50, 50), "other": (0, 10)}


def by_em(
    model: HookedTransformer,
    paragraphs: mm.Paragraphs,
    ranges: Mapping[str, tuple[int, int]],
    *,
    candidates: int,
    each: int,
    seed: int,
) -> dict[str, mm.Paragraphs]:
    """Paragraphs of each EM range in random order, no cluster twice within or across ranges.

    Args:
        model: scores them.
        paragraphs: to choose from.
        ranges: name -> lowest and highest EM.
        candidates: paragraphs that are scored, drawn at random.
        each: most paragraphs of a range.
        seed: of the draw.

    Returns:
        Name -> paragraphs with a column `em`, equally many of each range.

    Raises:
        ValueError: a range in which no candidate lies.
    """
    pool = shuffled(paragraphs, seed)[:candidates]
    em, cluster = mm.score(model, pool).em.values, pool.clusters
    members = {name: np.flatnonzero((em >= low) & (em <= high)) for name, (low, high) in ranges.items()}
    taken: set[int] = set()
    chosen: dict[str, list[int]] = {}
    # The smallest range chooses first: a cluster that others can do without may be most of what it has.
    for name in sorted(members, key=lambda name: len(members[name])):
        chosen[name] = []
        for index in members[name].tolist():
            if len(chosen[name]) < each and int(cluster[index]) not in taken:
                taken.add(int(cluster[index]))
                chosen[name].append(index)
    count = min(len(rows) for rows in chosen.values())
    if count == 0:
        raise ValueError(
            f"got {len(pool)} candidates and none of them in one of the EM ranges {dict(ranges)}; score more candidates"
        )
    return {name: pool.select(chosen[name][:count]).with_columns(em=em[chosen[name][:count]]) for name in ranges}


def shuffled(paragraphs: mm.Paragraphs, seed: int) -> mm.Paragraphs:
    """The same paragraphs in random order."""
    return paragraphs.select(np.random.default_rng(seed).permutation(len(paragraphs)))


def one_per_cluster(paragraphs: mm.Paragraphs, count: int) -> mm.Paragraphs:
    """The first paragraph of each cluster, at most this many, in the order in which they stand."""
    _, first = np.unique(paragraphs.clusters, return_index=True)
    return paragraphs.select(np.sort(first)[:count])
