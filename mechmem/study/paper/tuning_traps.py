"""What each slip of the study's fine-tuning changes: traps 1, 6, 9 and 11."""

from __future__ import annotations

from typing import Any

import numpy as np

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.published_recipe import Recipe
from mechmem.localize.paragraph_gradients import contrastive_gradients
from mechmem.measure.scores import score
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.rows import Trap
from mechmem.study.paper.tuning_runs import Draw, Outcome, bernoulli_mask, by_library, by_recipe, outcome
from mechmem.weights.masks import Mask

# Of a cluster of near-duplicates, in the sample that is split.
MEMBERS = 4


def tuning_traps(paper: PaperFolder, draw: Draw, found: dict[Any, Outcome], made: dict[str, Any]) -> list[Trap]:
    """Measure all four on the first repetition; see each."""
    masks, rates = made["masks"], made["rates"]
    rate = rates["unlearn", "top"]
    return [
        dense_decay(paper, draw, masks["as published"]["top"], found["as published", "unlearn", "top"]),
        other_pairs(found, draw),
        unmatched_random(paper, draw, masks["corrected"]["top"], found["corrected", "unlearn", "random"], rate),
        leaking_split(paper),
    ]


def dense_decay(paper: PaperFolder, draw: Draw, mask: Mask, dense: Outcome) -> Trap:
    """Trap 1: the same steps with an optimizer that holds the masked weights alone."""
    settings = paper.settings
    recipe = Recipe(steps=settings.steps, learning_rate=settings.learning_rate, decay_everywhere=False)
    edited = by_recipe(paper, draw, "unlearn", mask, recipe)
    sparse = outcome(paper.folded, edited, draw, mask)
    change = (
        f"Decay that Adam normalises moved {dense.outside:,} of {mask.total - mask.count:,} weights outside the mask; "
        f"held to the mask, {sparse.outside:,}. After {settings.steps} steps the targets' mean EM is "
        f"{dense.memorized.mean():.2f} with the slip and {sparse.memorized.mean():.2f} without, that of other "
        f"paragraphs {dense.other.mean():.2f} and {sparse.other.mean():.2f}."
    )
    title = "Weight decay makes the sparse run dense"
    return Trap(1, title, float(dense.outside), float(sparse.outside), "weights outside the mask that moved", change)


def other_pairs(found: dict[Any, Outcome], draw: Draw) -> Trap:
    """Trap 6: how much of its own perturbed text a prefix is continued with, after both ways of editing."""
    slipped, corrected = (found[reading, "edit", "top"] for reading in ("as published", "corrected"))
    change = (
        f"Wanting another paragraph's perturbed text of a model that reads the memorized one teaches "
        f"{slipped.rewritten.mean():.2f} of {draw.clean.continuation_len} tokens of the paragraph's own perturbed "
        f"text; wanting that text after the memorized prefix teaches {corrected.rewritten.mean():.2f}. The old text "
        f"keeps {slipped.memorized.mean():.2f} and {corrected.memorized.mean():.2f} tokens."
    )
    title, units = "Editing pairs a paragraph with another paragraph's perturbation", "tokens of the new text"
    return Trap(6, title, float(slipped.rewritten.mean()), float(corrected.rewritten.mean()), units, change)


def unmatched_random(paper: PaperFolder, draw: Draw, top: Mask, matched: Outcome, rate: float) -> Trap:
    """Trap 9: a random mask by chance against one with the same count in every tensor, both sparse."""
    mask = bernoulli_mask(top, paper.settings.fraction, draw.seed)
    edited, _ = by_library(paper, draw, "unlearn", mask, rate)
    unmatched = outcome(paper.model, edited, draw, mask)
    elsewhere, own = 100 * misplaced(mask, top), 100 * misplaced(Mask.random_like(top, seed=draw.seed), top)
    change = (
        f"{elsewhere:.1f} % of the chance mask lies in other tensors than the chosen weights do. Unlearning through it "
        f"leaves a mean EM of {unmatched.memorized.mean():.2f} and KL {unmatched.kl.mean():.2g} on other text, through "
        f"the matched one {matched.memorized.mean():.2f} and {matched.kl.mean():.2g}."
    )
    title = "The random mask is not matched tensor by tensor"
    return Trap(9, title, elsewhere, own, "% of the mask in other tensors than the compared mask", change)


def misplaced(mask: Mask, other: Mask) -> float:
    """Share of a mask's weights that would have to move to another tensor for the counts of the other mask."""
    counts = np.array([[len(m.indices.get(name, ())) for name in other.shapes] for m in (mask, other)], dtype=float)
    shares = counts / counts.sum(1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def leaking_split(paper: PaperFolder) -> Trap:
    """Trap 11: unlearn half of some memorized paragraphs and look at the other half, split at random and by cluster."""
    title, units = "Random splits leak near-duplicates", "tokens of EM that held-out paragraphs lose"
    chosen = duplicated(paper.sets.memorized, 2 * paper.settings.targets, paper.seed)
    if len(np.unique(chosen.clusters)) < 2 or len(np.unique(chosen.clusters)) == len(chosen):
        change = "The memorized paragraphs have no near-duplicates in two clusters, so that no split could leak."
        return Trap(11, title, float("nan"), float("nan"), units, change)
    order = np.random.default_rng(paper.seed).permutation(len(chosen))
    half = len(chosen) // 2
    splits = {
        "random": (chosen.select(order[:half]), chosen.select(order[half:])),
        "cluster": chosen.split_by_cluster(0.5, seed=paper.seed),
    }
    lost, shared = {}, {}
    for name, (targets, held) in splits.items():
        lost[name] = _lost(paper, targets, held)
        shared[name] = 100 * float(np.isin(held.clusters, targets.clusters).mean()) if len(held) else 0.0
    change = (
        f"Split at random, {shared['random']:.0f} % of the held-out paragraphs have a near-duplicate among the "
        f"targets, and they lose {lost['random']:.2f} tokens of EM when only the targets are unlearned. Split by "
        f"cluster, none has, and they lose {lost['cluster']:.2f}."
    )
    return Trap(11, title, lost["random"], lost["cluster"], units, change)


def duplicated(memorized: Paragraphs, count: int, seed: int) -> Paragraphs:
    """At most `count` paragraphs of clusters with near-duplicates, at most four of a cluster."""
    labels, sizes = np.unique(memorized.clusters, return_counts=True)
    rows: list[int] = []
    for label in np.random.default_rng(seed).permutation(labels[sizes > 1]):
        rows += np.flatnonzero(memorized.clusters == label)[:MEMBERS].tolist()
    return memorized.select(np.array(sorted(rows[:count]), dtype=np.int64))


def _lost(paper: PaperFolder, targets: Paragraphs, held: Paragraphs) -> float:
    """Mean fall of the held-out paragraphs' EM when the targets are unlearned through the top weights."""
    if not len(held):
        return float("nan")
    keep = paper.sample("other", paper.settings.kept)
    weights = contrastive_gradients(paper.model, targets, keep, method="fisher")
    mask = Mask.top(weights, fraction=paper.settings.fraction)
    draw = Draw(targets, targets, targets, keep, keep, keep, paper.seed)
    edited, _ = by_library(paper, draw, "unlearn", mask)
    return float(score(paper.model, held).em.mean() - score(edited, held).em.mean())
