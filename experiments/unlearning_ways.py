"""The rows of the unlearning leaderboard: methods, masks and controls, and the paper's own recipe."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.intervene.published_recipe import Recipe, published_recipe
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters

Sets = dict[str, mm.Paragraphs]


@dataclass(frozen=True)
class Row:
    """One line of the leaderboard.

    Attributes:
        name: its name in the table.
        method: of `mm.unlearn`, or "edit", "recipe", "recipe, decay everywhere".
        weights: which weights may move: "all", one of `MASKS`, or "transplant".
        rates: learning rates to choose from; empty for methods without a learning rate.
        fraction: share of the weights that may move; None: that of the settings.
        options: of the method.
        null_space: of `mm.Training`.
    """

    name: str
    method: str
    weights: str
    rates: tuple[float, ...] = ()
    fraction: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    null_space: float | None = None


# The fewer weights may move, the further each has to.
RATES = {1e-4: (3e-3, 1e-2, 3e-2), 1e-3: (1e-3, 3e-3, 1e-2), 1e-2: (3e-4, 1e-3, 3e-3)}
SPARSE, DENSE = RATES[1e-3], (3e-5, 1e-4, 3e-4)
LOCALIZED = {
    "top": "top",
    "fisher": "Fisher ratio",
    "gates": "gates",
    "attribution": "attribution at both ends",
    "dense edit": "largest changes of a dense edit",
    "random": "random",
}
ROWS = (
    Row("contrastive, top 0.1 %", "contrastive", "top", SPARSE),
    Row("contrastive, Fisher ratio 0.1 %", "contrastive", "fisher", SPARSE),
    Row("contrastive, random 0.1 %", "contrastive", "random", SPARSE),
    Row("contrastive, all", "contrastive", "all", DENSE),
    Row("ascent, top 0.1 %", "ascent", "top", SPARSE),
    Row("ascent, all", "ascent", "all", DENSE),
    Row("GradDiff, all", "grad_diff", "all", DENSE),
    *(
        Row(f"NPO, {said} {100 * fraction:g} %", "npo", weights, rates, fraction)
        for weights, said in LOCALIZED.items()
        for fraction, rates in RATES.items()
    ),
    Row("NPO, all", "npo", "all", DENSE),
    Row("NPO, all, null space", "npo", "all", DENSE, null_space=0.9),
    Row("NPO, top 1 %, null space", "npo", "top", RATES[1e-2], 1e-2, null_space=0.9),
    Row("NPO with SAM, all", "npo_sam", "all", DENSE),
    Row("NPO with SAM, top 0.1 %", "npo_sam", "top", SPARSE),
    Row("SimNPO, all", "simnpo", "all", DENSE),
    Row("DPO, all", "dpo", "all", DENSE),
    Row("WGA, all", "wga", "all", DENSE),
    Row("SatImp, all", "satimp", "all", DENSE),
    Row("RMU, all", "rmu", "all", DENSE),
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


# These need the model that never read the targets.
ORACLE_ROWS = tuple(
    Row(f"NPO, transplant {100 * fraction:g} %", "npo", "transplant", rates, fraction)
    for fraction, rates in RATES.items()
)


def by_gradient(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:  # noqa: ARG001
    """The weights with the largest gradient of the targets' NLL."""
    return mm.Mask.top(mm.weight_gradients(model, sets["targets"]), fraction=fraction)


def by_fisher_ratio(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:  # noqa: ARG001
    """The weights with the largest squared gradient over that of the keep set."""
    scores = mm.contrastive_gradients(model, sets["targets"], sets["keep"], method="fisher")
    return mm.Mask.top(scores, fraction=fraction)


def by_gates(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:
    """The neurons that trained gates close last; of the last neuron the weights with the largest gradient."""
    scores = mm.localize_neurons(model, sets["targets"], sets["keep"], method="hard_concrete", seed=seed)
    return mm.Mask.top_units(model, scores, fraction=fraction, weights=mm.weight_gradients(model, sets["targets"]))


def by_attribution(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:
    """The neurons whose patch from the perturbed prefix costs the memory most, estimated at both ends."""
    clean, corrupt = rewritten(model, sets["targets"], seed)
    effects = mm.attribute(
        model, clean, corrupt, site="mlp_post", method="both_ends", groups=model.cfg.d_mlp or 1, pos="all"
    )
    rest = [name for name in effects.dims if name not in ("layer", "group")]
    scores = effects.sum(rest).rename(group="neuron").drop_vars("neuron")
    return mm.Mask.top_units(model, scores, fraction=fraction, weights=mm.weight_gradients(model, sets["targets"]))


def by_dense_edit(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:
    """The weights that NPO through all weights moves furthest until the targets' mean EM is a fifth."""
    training = mm.Training(steps=50, learning_rate=DENSE[1], batch_size=64)
    stop = mm.Stop(target_em=float(sets["targets"].continuation_len // 5))
    edited, _ = mm.unlearn(
        model, sets["targets"], sets["keep"], method="npo", training=training, stop=stop, check_targets=False, seed=seed
    )
    ends = editable_parameters(edited)
    return mm.Mask.top(
        {name: ends[name].detach() - value.detach() for name, value in editable_parameters(model).items()},
        fraction=fraction,
    )


def by_chance(model: HookedTransformer, sets: Sets, fraction: float, seed: int) -> mm.Mask:
    """As many weights of every tensor as the largest gradients choose, drawn at random."""
    return mm.Mask.random_like(by_gradient(model, sets, fraction, seed), seed=seed)


MASKS: dict[str, Callable[[HookedTransformer, Sets, float, int], mm.Mask]] = {
    "top": by_gradient,
    "fisher": by_fisher_ratio,
    "gates": by_gates,
    "attribution": by_attribution,
    "dense edit": by_dense_edit,
    "random": by_chance,
}


def by_transplant(model: HookedTransformer, sets: Sets, fraction: float, oracle: HookedTransformer) -> mm.Mask:
    """The weights that differ most from the oracle's, in layers that bring the memory back into the oracle.

    These are the layers whose transplant lowers the oracle's NLL of the targets on average; all layers if none does.
    """
    names = [f"layer{layer}" for layer in range(model.cfg.n_layers)]
    found = mm.transplant_layers(model, oracle, sets["targets"], components=names)
    helped = found.nll_change.mean("paragraph").values < 0
    layers = np.flatnonzero(helped if helped.any() else ~helped).tolist()
    theirs = dict(oracle.named_parameters())
    change = {name: value - theirs[name] for name, value in editable_parameters(model).items()}
    # A share of all weights is a larger one of those of some layers.
    return mm.Mask.top(change, fraction=min(1.0, fraction * model.cfg.n_layers / len(layers)), layers=layers)


def chosen_weights(model: HookedTransformer, row: Row, sets: Sets, settings: Any, seed: int) -> mm.Mask | None:
    """The mask of a row; None: all weights."""
    fraction = settings.fraction if row.fraction is None else row.fraction
    if row.weights == "all":
        return None
    if row.weights == "transplant":
        if settings.oracle is None:
            raise InputError(f"the row {row.name!r} needs a model that never read the targets; name one with --oracle")
        return by_transplant(model, sets, fraction, mm.load_model(settings.oracle))
    return MASKS[row.weights](model, sets, fraction, seed)


def run(
    model: HookedTransformer, row: Row, sets: Sets, settings: Any, seed: int, rate: float | None
) -> tuple[HookedTransformer, dict[str, Any]]:
    """Edit the model as one row says; return it with steps and seconds.

    Unlearning ends at `settings.target_em`, or at `settings.target_nll` where the settings have one. Edits write the
    set "rewritten" where the sets have one, which has a row for each target.
    """
    mask = chosen_weights(model, row, sets, settings, seed)
    training = mm.Training(steps=settings.steps, null_space=row.null_space)
    if rate is not None:
        training = replace(training, learning_rate=rate, batch_size=64)
    common: dict[str, Any] = {"mask": mask, "training": training, "seed": seed}
    started = time.perf_counter()
    if row.method.startswith("recipe"):
        recipe = Recipe(decay_everywhere=row.method != "recipe")
        edited = published_recipe(model, sets["targets"], sets["keep"], mask=mask, recipe=recipe)
        steps = recipe.steps
    elif row.method == "edit":
        clean, corrupt = sets["targets"], sets.get("rewritten")
        if corrupt is None:
            clean, corrupt = rewritten(model, clean, seed)
        # `edit` ends by itself when the model produces the new text; EM of the old text is then near zero.
        edited, history = mm.edit(model, clean, corrupt, sets["keep"], **common)
        steps = history.sizes["step"]
    else:
        edited, history = mm.unlearn(
            model,
            sets["targets"],
            sets["keep"],
            method=cast(Any, row.method),
            stop=mm.Stop(target_em=settings.target_em, target_nll=getattr(settings, "target_nll", None)),
            check_targets=False,
            **common,
            **row.options,
        )
        steps = history.sizes["step"]
    return edited, {"steps": int(steps), "seconds": time.perf_counter() - started}


def rewritten(model: HookedTransformer, targets: mm.Paragraphs, seed: int) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """Targets, and the same prefixes with the model's continuation after the worst single-token perturbation."""
    return mm.worst_perturbations(model, targets, mm.perturb_prefix(model, targets, seed=seed))
