"""The sets of paragraphs on which an edit should be judged."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from mechmem.data.bounds import Count, Seed, checked
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.scores import memorized_other


@checked
def cost_sets(
    scored: Paragraphs,
    *,
    targets: Count = 32,
    targets_from: Paragraphs | None = None,
    evaluated: Count = 100,
    seed: Seed = 0,
) -> tuple[dict[str, Paragraphs], Paragraphs]:
    """Targets of an edit, the sets that it should be judged on, and the keep set.

    1. Clusters that hold a memorized paragraph (EM is all) are drawn for the targets, at most half of them so that
       others are left; one memorized paragraph of each is a target. With `targets_from`, the memorized paragraphs of
       these texts alone may be targets, as many clusters of them as asked for, and their clusters are in no other set.
    2. What else is in the targets' clusters is near-duplicates, memorized or not; a row with a target's very tokens is
       in no set.
    3. Other paragraphs (EM of a fifth or less, their own true text) are those of clusters that hold no memorized one.
       They are halved by cluster into the keep set and the set that is evaluated; those that were never trained on
       (column `seen`, where it is known, is not "trained") are a set of their own.

    Args:
        scored: paragraphs with columns `em` and `cluster`, and `seen` where it is known.
        targets: at most so many.
        targets_from: the texts that should go, of the same lengths as `scored`; None: any memorized paragraph.
        evaluated: at most so many paragraphs of every other set, and of the keep set.
        seed: of all draws.

    Returns:
        The sets "targets", "memorized", "near-duplicates", "other" and "never seen", without those that are empty, and
        the keep set, which shares no cluster with any of them. It may be empty.

    Raises:
        InputError: a column is missing, no paragraph is memorized or none of `targets_from`, texts of other lengths, or
            a count below 1.
    """
    em, cluster = scored.column("em"), scored.column("cluster")
    memorized, other = memorized_other(em, scored.continuation_len)
    if not memorized.any():
        raise InputError(
            f"none of {len(scored)} paragraphs has EM {scored.continuation_len}, so there is nothing to target; give "
            "paragraphs that the model was scored on and has memorized"
        )
    rng = np.random.default_rng(seed)
    holding = np.unique(cluster[memorized])
    wanted = np.ones(len(scored), dtype=bool) if targets_from is None else rows_of(scored, targets_from)
    may = np.unique(cluster[memorized & wanted])
    if not len(may):
        raise InputError(
            f"got targets_from with {int(wanted.sum())} of the scored paragraphs, none of them memorized; need at "
            "least 1 that the model reproduces"
        )
    drawn = rng.permutation(may)[: min(targets, (len(may) + 1) // 2 if targets_from is None else len(may))]
    aimed = np.sort([rng.choice(np.flatnonzero(memorized & wanted & (cluster == label))) for label in drawn])
    same = set(map(tuple, scored.tokens[aimed].tolist()))
    repeated = np.array([tuple(row) in same for row in scored.tokens.tolist()])
    theirs = np.isin(cluster, drawn)
    unseen = scored.column("seen") != "trained" if scored.has("seen") else np.zeros(len(scored), dtype=bool)
    # Texts that should go are no measure of what should stay, targets or not.
    going = np.isin(cluster, np.unique(cluster[wanted])) if targets_from is not None else theirs
    other &= ~np.isin(cluster, holding) & ~going
    never = _sample(other & unseen, evaluated, rng)
    # A cluster with text that is judged as never seen is not held either.
    known = other & ~unseen & ~np.isin(cluster, cluster[never])
    labels = np.unique(cluster[known])
    kept = known & np.isin(cluster, rng.permutation(labels)[: len(labels) // 2])
    rows = {
        "targets": aimed,
        "memorized": _sample(memorized & ~going & ~repeated, evaluated, rng),
        "near-duplicates": _sample(theirs & ~repeated, evaluated, rng),
        "other": _sample(known & ~kept, evaluated, rng),
        "never seen": never,
    }
    sets = {name: scored.select(chosen) for name, chosen in rows.items() if len(chosen)}
    return sets, scored.select(_sample(kept, evaluated, rng))


def rows_of(scored: Paragraphs, texts: Paragraphs) -> Bool[np.ndarray, " paragraph"]:
    """Which paragraphs are one of these texts.

    Raises:
        InputError: texts of other lengths, or none of them is among the paragraphs.
    """
    lengths = [(part.prefix_len, part.continuation_len) for part in (texts, scored)]
    if lengths[0] != lengths[1]:
        got, need = (f"{prefix} + {continuation} tokens" for prefix, continuation in lengths)
        raise InputError(f"got targets_from of {got}; need {need}, as the scored paragraphs")
    named = set(map(tuple, texts.tokens.tolist()))
    rows = np.array([tuple(row) in named for row in scored.tokens.tolist()])
    if not rows.any():
        raise InputError(
            f"got targets_from with {len(texts)} paragraphs, none of them among the {len(scored)} of the corpus; need "
            "at least 1 with the same token ids"
        )
    return rows


def _sample(candidates: np.ndarray, count: int, rng: np.random.Generator) -> Int[np.ndarray, " chosen"]:
    rows = np.flatnonzero(candidates)
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))
