"""The runs of item 5: sparse unlearning and editing, as the study's code does it and as its text says."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.edit import edit
from mechmem.intervene.published_recipe import Recipe, published_recipe
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.localize.paragraph_gradients import contrastive_gradients
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.scores import kl, score
from mechmem.measure.worst_pairs import worst_perturbations
from mechmem.model.load import HookedTransformer
from mechmem.study.paper.paper_folder import PaperFolder
from mechmem.study.paper.readings import own_text, published_columns
from mechmem.study.paper.rows import Reading
from mechmem.weights.mask_choice import size
from mechmem.weights.masks import Mask
from mechmem.weights.support import moved_outside
from mechmem.weights.training import Training

Task = Literal["unlearn", "edit"]
Ways = Literal["all", "top", "random"]
# Beside the paper's steps, half of them: its public code takes 5 and not 10.
Key = tuple[Reading, Task, Literal["all", "top", "random", "top, half the steps"]]
READINGS: tuple[Reading, Reading] = ("as published", "corrected")
TASKS: tuple[Task, Task] = ("unlearn", "edit")
WAYS: tuple[Ways, Ways, Ways] = ("all", "top", "random")
# The public code takes half of the share that the paper names.
SLIPPED_SHARE = 0.5


@dataclass(frozen=True)
class Draw:
    """The paragraphs of one run, and what is made of them once.

    Attributes:
        targets: memorized paragraphs to unlearn or rewrite.
        clean: those of them that a replacement makes the model continue otherwise.
        perturbed: the same after the worst replacement, with the model's continuation.
        keep: other paragraphs that are held.
        keep_own: the same with the model's own continuation, as the study holds them.
        held: other paragraphs that are evaluated, with the model's own continuation.
        seed: of masks and orders.
    """

    targets: Paragraphs
    clean: Paragraphs
    perturbed: Paragraphs
    keep: Paragraphs
    keep_own: Paragraphs
    held: Paragraphs
    seed: int


def draws(paper: PaperFolder) -> list[Draw]:
    """Targets and other paragraphs of every repetition, as far as possible of other clusters each time."""
    settings, made = paper.settings, []
    memorized = paper.sample("memorized", settings.targets * settings.repeats)
    other = paper.sample("other", 2 * settings.kept * settings.repeats)
    for repeat in range(settings.repeats):
        rng = np.random.default_rng([paper.seed, repeat])
        targets = memorized.select(rng.permutation(len(memorized))[: settings.targets])
        first, second = np.array_split(rng.permutation(len(other))[: 2 * settings.kept], 2)
        # With one paragraph there is none left to evaluate.
        second = second if len(second) else first
        held = own_text(paper.model, other.select(second))
        perturbation = perturb_prefix(
            paper.model, targets, seed=paper.seed + repeat, progress=paper.at(f"perturbing targets, run {repeat + 1}")
        )
        clean, perturbed = worst_perturbations(paper.model, targets, perturbation, before="all")
        keep = other.select(first)
        keep_own = own_text(paper.folded, keep)
        made.append(Draw(targets, clean, perturbed, keep, keep_own, held, paper.seed + repeat))
    return made


def bernoulli_mask(like: Mask, fraction: float, seed: int) -> Mask:
    """The study's random mask: every weight with the same chance, so that counts by tensor are left to chance."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {
        name: (torch.rand(size(shape), generator=generator) < fraction).nonzero().flatten()
        for name, shape in sorted(like.shapes.items())
    }
    return Mask(chosen, like.shapes)


def others_labels(draw: Draw) -> torch.Tensor:
    """For each target the perturbed text of a random other one, as the study's code pairs them."""
    order = np.random.default_rng(draw.seed).permutation(len(draw.perturbed))
    partner = np.empty(len(order), dtype=np.int64)
    partner[order] = np.roll(order, 1)
    return draw.perturbed.continuation[torch.from_numpy(partner)]


def published_masks(paper: PaperFolder, draw: Draw) -> dict[Ways, Mask | None]:
    """Half of the share that is named; the random mask by chance over all weights."""
    fraction = SLIPPED_SHARE * paper.settings.fraction
    top = Mask.top(weight_gradients(paper.folded, published_columns(draw.targets)), fraction=fraction)
    return {"all": None, "top": top, "random": bernoulli_mask(top, fraction, draw.seed)}


def corrected_masks(paper: PaperFolder, draw: Draw) -> dict[Ways, Mask | None]:
    """The whole share, by a gradient that knows the keep set; the random mask with the same count in every tensor."""
    weights = contrastive_gradients(paper.model, draw.targets, draw.keep, method="fisher")
    top = Mask.top(weights, fraction=paper.settings.fraction)
    return {"all": None, "top": top, "random": Mask.random_like(top, seed=draw.seed)}


def by_recipe(
    paper: PaperFolder, draw: Draw, task: Task, mask: Mask | None, recipe: Recipe | None = None
) -> HookedTransformer:
    """The study's fine-tuning on folded weights: columns from prefix_len on, other text by the model itself.

    Editing shows the model a memorized paragraph and wants the perturbed text of another one.
    """
    settings = paper.settings
    targets = draw.targets if task == "unlearn" else draw.clean
    labels = None if task == "unlearn" else others_labels(draw)[:, 1:]
    return published_recipe(
        paper.folded,
        published_columns(targets),
        published_columns(draw.keep_own),
        mask=mask,
        labels=labels,
        recipe=recipe or Recipe(steps=settings.steps, learning_rate=settings.learning_rate),
        progress=paper.at(f"{task}, as published"),
    )


def by_library(
    paper: PaperFolder, draw: Draw, task: Task, mask: Mask | None, rate: float | None = None
) -> tuple[HookedTransformer, xr.Dataset]:
    """`mechmem.unlearn` or `mechmem.edit` on raw weights: only the mask moves, and each text has its own pair."""
    training = Training(steps=paper.settings.steps, learning_rate=rate)
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": draw.seed}
    with warnings.catch_warnings():
        # That a random mask does nothing is a result here.
        warnings.simplefilter("ignore", RuntimeWarning)
        if task == "edit":
            return edit(paper.model, draw.clean, draw.perturbed, draw.keep, **common, progress=paper.at("edit"))
        return unlearn(
            paper.model,
            draw.targets,
            draw.keep,
            method="contrastive",
            check_targets=False,
            **common,
            progress=paper.at("unlearn"),
        )


@dataclass(frozen=True)
class Outcome:
    """What one edited model does.

    Attributes:
        memorized: EM of each target, tokens.
        other: EM of each held-out other paragraph against the model's own text before, tokens.
        kl: KL from the original on these, nats per token.
        outside: weights outside the mask that moved; 0 without a mask.
        rewritten: leading tokens of its own perturbed text that each target's prefix is continued with.
    """

    memorized: np.ndarray
    other: np.ndarray
    kl: np.ndarray
    outside: int
    rewritten: np.ndarray


def outcome(original: HookedTransformer, edited: HookedTransformer, draw: Draw, mask: Mask | None) -> Outcome:
    """Evaluate an edited model."""
    new = draw.clean.replace_tokens(torch.cat([draw.clean.prefix, draw.perturbed.continuation], 1))
    return Outcome(
        score(edited, draw.targets).em.values,
        score(edited, draw.held).em.values,
        kl(original, edited, draw.held).values,
        0 if mask is None else moved_outside(original, edited, mask),
        score(edited, new).em.values,
    )


def run(paper: PaperFolder, draw: Draw) -> tuple[dict[Key, Outcome], dict[str, Any]]:
    """All twelve edits of one repetition; also the masks, and the rates that were found for `by_library`."""
    found: dict[Key, Outcome] = {}
    masks = {"as published": published_masks(paper, draw), "corrected": corrected_masks(paper, draw)}
    rates: dict[tuple[Task, Ways], float] = {}
    for task in TASKS:
        for way in WAYS:
            mask = masks["as published"][way]
            edited = by_recipe(paper, draw, task, mask)
            found["as published", task, way] = outcome(paper.folded, edited, draw, mask)
            mask = masks["corrected"][way]
            # The random mask gets the rate that was found for the mask that it is compared with.
            edited, history = by_library(paper, draw, task, mask, rates.get((task, "top")) if way == "random" else None)
            rates[task, way] = float(history.attrs["learning_rate"])
            found["corrected", task, way] = outcome(paper.model, edited, draw, mask)
            del edited
    mask, settings = masks["as published"]["top"], paper.settings
    half = Recipe(steps=max(1, settings.steps // 2), learning_rate=settings.learning_rate)
    edited = by_recipe(paper, draw, "unlearn", mask, half)
    found["as published", "unlearn", "top, half the steps"] = outcome(paper.folded, edited, draw, mask)
    return found, {"masks": masks, "rates": rates}
