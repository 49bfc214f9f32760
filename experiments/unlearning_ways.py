"""The rows of the unlearning leaderboard: methods, masks and controls, and the paper's own recipe."""

import time
from dataclasses import dataclass, replace
from typing import Any, cast

import mechmem as mm
from mechmem.intervene.published_recipe import Recipe, published_recipe
from mechmem.model.load import HookedTransformer

Sets = dict[str, mm.Paragraphs]


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Attributes:
        name: its name in the table.
        method: of `mm.unlearn`, or "edit", "recipe", "recipe, decay everywhere".
        weights: which weights may move: "top" by gradient, "fisher" (gradient over the keep set's), "random", "all".
        rates: learning rates to choose from; empty for methods without a learning rate.
    """

    name: str
    method: str
    weights: str
    rates: tuple[float, ...] = ()


SPARSE, DENSE = (1e-3, 3e-3), (3e-5, 1e-4, 3e-4)
ROWS = (
    Row("contrastive, top 0.1 %", "contrastive", "top", SPARSE),
    Row("contrastive, Fisher ratio 0.1 %", "contrastive", "fisher", SPARSE),
    Row("contrastive, random 0.1 %", "contrastive", "random", SPARSE),
    Row("contrastive, all", "contrastive", "all", DENSE),
    Row("ascent, top 0.1 %", "ascent", "top", SPARSE),
    Row("ascent, all", "ascent", "all", DENSE),
    Row("GradDiff, all", "grad_diff", "all", DENSE),
    Row("NPO, top 0.1 %", "npo", "top", SPARSE),
    Row("NPO, all", "npo", "all", DENSE),
    Row("SimNPO, all", "simnpo", "all", DENSE),
    Row("uniform, all", "uniform", "all", DENSE),
    Row("BalancedSubnet", "balanced_subnet", "all"),
    Row("Hard Concrete", "hard_concrete", "all"),
    Row("neuron drop", "neuron_drop", "all"),
    Row("head drop", "head_drop", "all"),
    Row("K-FAC", "kfac", "all"),
    Row("task arithmetic", "task_arithmetic", "all"),
    Row("edit, top 0.1 %", "edit", "top", SPARSE),
    Row("edit, random 0.1 %", "edit", "random", SPARSE),
    Row("edit, all", "edit", "all", DENSE),
    Row("paper's recipe", "recipe", "top"),
    Row("paper's recipe, decay everywhere", "recipe, decay everywhere", "top"),
)


def chosen_weights(model: HookedTransformer, row: Row, sets: Sets, fraction: float, seed: int) -> mm.Mask | None:
    """The mask of a row."""
    if row.weights == "all":
        return None
    contrast = "fisher" if row.weights == "fisher" else "plain"
    top = mm.Mask.top(
        mm.contrastive_gradients(model, sets["targets"], sets["keep"], method=contrast), fraction=fraction
    )
    return mm.Mask.random_like(top, seed=seed) if row.weights == "random" else top


def run(
    model: HookedTransformer, row: Row, sets: Sets, settings: Any, seed: int, rate: float | None
) -> tuple[HookedTransformer, dict[str, Any]]:
    """Edit the model as one row says; return it with steps and seconds."""
    mask = chosen_weights(model, row, sets, settings.fraction, seed)
    training = mm.Training(steps=settings.steps)
    if rate is not None:
        training = replace(training, learning_rate=rate, batch_size=64)
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": seed}
    started = time.perf_counter()
    if row.method.startswith("recipe"):
        recipe = Recipe(decay_everywhere=row.method != "recipe")
        edited = published_recipe(model, sets["targets"], sets["keep"], mask=mask, recipe=recipe)
        steps = recipe.steps
    elif row.method == "edit":
        clean, corrupt = rewritten(model, sets["targets"], seed)
        # `edit` ends by itself when the model produces the new text; EM of the old text is then near zero.
        edited, history = mm.edit(model, clean, corrupt, sets["keep"], **common)
        steps = history.sizes["step"]
    else:
        edited, history = mm.unlearn(
            model,
            sets["targets"],
            sets["keep"],
            method=cast(Any, row.method),
            stop=mm.Stop(target_em=settings.target_em),
            check_targets=False,
            **common,
        )
        steps = history.sizes["step"]
    return edited, {"steps": int(steps), "seconds": time.perf_counter() - started}


def rewritten(model: HookedTransformer, targets: mm.Paragraphs, seed: int) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """Targets, and the same prefixes with the model's continuation after the worst single-token perturbation."""
    return mm.worst_perturbations(model, targets, mm.perturb_prefix(model, targets, seed=seed))
