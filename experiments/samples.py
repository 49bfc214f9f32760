"""Which paragraphs an experiment takes: by EM, and by cluster, so that near-duplicates count once."""

from collections.abc import Mapping

import numpy as np

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer

# EM of continuations of this length; ranges of others are the same shares.
LENGTH = 50
MEMORIZED_OTHER = {"memorized": (50, 50), "other": (0, 10)}


def by_em(
    model: HookedTransformer,
    paragraphs: mm.Paragraphs,
    ranges: Mapping[str, tuple[int, int]],
    *,
    candidates: int,
    each: int,
    seed: int,
    least: int = 1,
) -> dict[str, mm.Paragraphs]:
    """Paragraphs of each EM range in random order, no cluster twice within or across ranges.

    Args:
        model: scores them.
        paragraphs: to choose from.
        ranges: name -> lowest and highest EM of 50; see `at_length`.
        candidates: paragraphs that are scored, drawn at random.
        each: most paragraphs of a range.
        seed: of the draw.
        least: fewest paragraphs of a range.

    Returns:
        Name -> paragraphs with a column `em`, equally many of each range.

    Raises:
        InputError: a range in which too few candidates lie.
    """
    pool = shuffled(paragraphs, seed)[:candidates]
    em, cluster = mm.score(model, pool).em.values, pool.clusters
    ends = {name: at_length(edge, pool.continuation_len) for name, edge in ranges.items()}
    members = {name: np.flatnonzero((em >= low) & (em <= high)) for name, (low, high) in ends.items()}
    taken: set[int] = set()
    chosen: dict[str, list[int]] = {}
    # The smallest range chooses first: a cluster that others can do without may be most of what it has.
    for name in sorted(members, key=lambda name: len(members[name])):
        chosen[name] = []
        for index in members[name].tolist():
            if len(chosen[name]) < each and int(cluster[index]) not in taken:
                taken.add(int(cluster[index]))
                chosen[name].append(index)
    refuse_few({f"{name} (EM {range_name(ends[name])})": len(rows) for name, rows in chosen.items()}, len(pool), least)
    count = min(len(rows) for rows in chosen.values())
    return {name: pool.select(chosen[name][:count]).with_columns(em=em[chosen[name][:count]]) for name in ranges}


def at_length(edge: tuple[int, int], length: int) -> tuple[int, int]:
    """A range of EM of 50 as one of continuations of another length; neighbours stay neighbours, and 50 means all."""
    low, high = edge
    if low >= LENGTH or length == LENGTH:
        return low - LENGTH + length if low >= LENGTH else low, high - LENGTH + length if high >= LENGTH else high
    return (0 if low == 0 else (low - 1) * length // LENGTH + 1), high * length // LENGTH


def range_name(edge: tuple[int, int]) -> str:
    """As "11-29", or "50" where there is one number."""
    return f"{edge[0]}-{edge[1]}" if edge[0] < edge[1] else f"{edge[0]}"


def refuse_few(found: Mapping[str, int], candidates: int, least: int = 1) -> None:
    """Refuse sets with too few paragraphs, such as those of a corpus that the model was not trained on.

    Args:
        found: name of each set -> how many paragraphs, of different clusters, it has.
        candidates: how many were scored.
        least: that each set needs.

    Raises:
        InputError: names the set, and says what to do.
    """
    for name, count in found.items():
        if count < least:
            raise InputError(
                f"got {count} clusters of paragraphs in the set {name} among {candidates} candidates; need at least "
                f"{least}: score more candidates, or name text that the model was trained on (--corpus)"
            )


def shuffled(paragraphs: mm.Paragraphs, seed: int) -> mm.Paragraphs:
    """The same paragraphs in random order."""
    return paragraphs.select(np.random.default_rng(seed).permutation(len(paragraphs)))


def one_per_cluster(paragraphs: mm.Paragraphs, count: int) -> mm.Paragraphs:
    """The first paragraph of each cluster, at most this many, in the order in which they stand."""
    _, first = np.unique(paragraphs.clusters, return_index=True)
    return paragraphs.select(np.sort(first)[:count])
