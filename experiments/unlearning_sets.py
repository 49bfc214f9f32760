"""The sets of the unlearning experiment: what each seed forgets, what an edit should leave, and what it is tuned on.

No cluster that any seed forgets is in another set, for the oracle has read none of them.
"""

from typing import Any

import numpy as np
from samples import one_per_cluster, refuse_few, shuffled
from target_sets import target_clusters

import mechmem as mm
from mechmem.data.errors import InputError

Sets = dict[str, mm.Paragraphs]
MEMORIZED = ("memorized neighbours", "held-out memorized", "relearned")
# Share of the clusters on which nothing is reported: learning rates are chosen on them.
DEVELOPMENT = 0.2


def splits(paragraphs: mm.Paragraphs, em: np.ndarray, settings: Any) -> tuple[dict[int, Sets], Sets]:
    """The sets of each seed, and the development sets.

    1. Target clusters are those of `target_sets`, fixed for all seeds together.
    2. Of the other clusters with a memorized paragraph, and of those without, a fifth is for development.
    3. "memorized neighbours" are matched to the targets by kind and by occurrences in the training text. "held-out
       memorized" and "relearned" are drawn from what is left.
    4. "keep", "other" and "never seen" have an EM of a fifth or less and no memorized paragraph in their clusters.

    Args:
        paragraphs: all candidates.
        em: of each, tokens.
        settings: of the experiment: seeds, all_seeds, clusters_each, targets, held, tuning_targets.

    Returns:
        Seed -> name -> paragraphs; and name -> paragraphs.

    Raises:
        InputError: too few clusters, a seed that no target belongs to, or more targets than a seed has.
    """
    if not set(settings.seeds) <= set(settings.all_seeds) or settings.targets > settings.clusters_each:
        raise InputError(
            f"got seeds {list(settings.seeds)} and {settings.targets} targets; need seeds among "
            f"{list(settings.all_seeds)} and at most {settings.clusters_each} targets: "
            "the oracle's training left out these"
        )
    clusters = target_clusters(paragraphs, em, settings.all_seeds, settings.clusters_each)
    aimed = np.concatenate([list(some) for some in clusters.values()])
    known = np.unique(paragraphs.clusters[em == paragraphs.continuation_len])
    rng = np.random.default_rng(1000)
    labels = np.setdiff1d(paragraphs.clusters, aimed)
    held_back = np.concatenate(
        [_some(labels[np.isin(labels, known)], rng), _some(labels[~np.isin(labels, known)], rng)]
    )
    reported = paragraphs.select(~np.isin(paragraphs.clusters, held_back))
    tuned = ~np.isin(paragraphs.clusters, aimed) & np.isin(paragraphs.clusters, held_back)
    rest = em[~np.isin(paragraphs.clusters, held_back)]
    found = {seed: _of_seed(reported, rest, clusters, aimed, known, seed, settings) for seed in settings.seeds}
    return found, _development(paragraphs.select(tuned), em[tuned], known, settings)


def _some(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(labels)[: round(DEVELOPMENT * len(labels))]


def _of_seed(
    paragraphs: mm.Paragraphs,
    em: np.ndarray,
    clusters: dict[int, list[int]],
    aimed: np.ndarray,
    known: np.ndarray,
    seed: int,
    settings: Any,
) -> Sets:
    order = np.random.default_rng(seed).permutation(len(paragraphs))
    paragraphs, em = paragraphs.select(order), em[order]
    full, label = em == paragraphs.continuation_len, paragraphs.clusters
    own = np.isin(label, clusters[seed][: settings.targets])
    targets = one_per_cluster(paragraphs.select(full & own), settings.targets)
    texts = set(map(tuple, targets.tokens.tolist()))
    repeated = np.array([tuple(row) in texts for row in paragraphs.tokens.tolist()])
    free = one_per_cluster(paragraphs.select(full & ~np.isin(label, aimed)), len(paragraphs))
    neighbours = matched(targets, free)
    left = free.select(~np.isin(free.clusters, neighbours.clusters))
    refuse_few({"memorized clusters that no seed forgets": len(left)}, len(em), 2)
    held = min(settings.held, len(left) // 2)
    few, keep = _others(paragraphs, em, known, aimed)
    sets = {
        "targets": targets,
        "near-duplicates": paragraphs.select(own & ~repeated)[: settings.held],
        "memorized neighbours": neighbours,
        "held-out memorized": left[:held],
        "relearned": left[held : 2 * held],
        # Methods see it in every step: half as many take a quarter of the time off.
        "keep": keep[: max(1, settings.held // 2)],
        **{name: part[: settings.held] for name, part in few.items()},
    }
    return {name: part for name, part in sets.items() if len(part)}


def matched(targets: mm.Paragraphs, candidates: mm.Paragraphs) -> mm.Paragraphs:
    """For each target a memorized paragraph of the same kind and of about as many occurrences in the training text."""
    on = [name for name in ("source", "log_count") if name == "log_count" or targets.has(name)]
    if not targets.has("cluster_count"):
        return candidates[: min(len(targets), len(candidates) // 3)]
    first, second = (
        part.with_columns(log_count=np.log(part.column("cluster_count").clip(1))) for part in (targets, candidates)
    )
    return mm.match(first, second, on)[0]


def _others(
    paragraphs: mm.Paragraphs, em: np.ndarray, known: np.ndarray, aimed: np.ndarray
) -> tuple[Sets, mm.Paragraphs]:
    """Sets without memorized clusters, one paragraph a cluster, and the keep set."""
    low = (em <= paragraphs.continuation_len // 5) & ~np.isin(paragraphs.clusters, np.concatenate([known, aimed]))
    unread = paragraphs.column("seen") == "never seen" if paragraphs.has("seen") else np.zeros(len(em), dtype=bool)
    read = one_per_cluster(paragraphs.select(low & ~unread), len(em))
    refuse_few({f"EM {paragraphs.continuation_len // 5} or less": len(read)}, len(em), 2)
    half = len(read) // 2
    sets = {"other": read[half:], "never seen": one_per_cluster(paragraphs.select(low & unread), len(em))}
    return {name: part for name, part in sets.items() if len(part)}, read[:half]


def _development(paragraphs: mm.Paragraphs, em: np.ndarray, known: np.ndarray, settings: Any) -> Sets:
    """Memorized targets, a keep set and other text, of clusters that no seed uses."""
    order = np.random.default_rng(1000).permutation(len(paragraphs))
    paragraphs, em = paragraphs.select(order), em[order]
    few, keep = _others(paragraphs, em, known, np.array([], dtype=known.dtype))
    memorized = one_per_cluster(paragraphs.select(em == paragraphs.continuation_len), settings.tuning_targets)
    refuse_few({"memorized clusters for development": len(memorized)}, len(em))
    return {"targets": memorized, "keep": keep[: settings.tuning_targets], "other": few["other"][: settings.held]}


def scored_candidates(model: Any, paragraphs: mm.Paragraphs, settings: Any) -> tuple[mm.Paragraphs, np.ndarray]:
    """The candidates that the settings ask for, and the EM of each."""
    if settings.candidates is not None:
        paragraphs = shuffled(paragraphs, 0)[: settings.candidates]
    return paragraphs, mm.score(model, paragraphs).em.values
