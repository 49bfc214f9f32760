"""What the unlearning experiment measures on an edited model, once for every row and seed."""

import copy
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from unlearning_sets import Sets

import mechmem as mm
from mechmem.intervene.attacks.quantize import quantize
from mechmem.intervene.attacks.relearn import first_step, train_and_watch
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters

# Of `mm.evaluate`, its name in the results; those of the oracle only where there is one.
EACH = {"em": "EM", "nll": "NLL", "oracle_kl": "KL to the oracle", "p_extractable": "p-extractable"}
PAIR = {"kl": "KL"}
SCALED = {"oracle_distance": "distance"}


@dataclass(frozen=True)
class Models:
    """The models that edited ones are compared with; what they make of the sets of a seed is computed once.

    Attributes:
        original: before any edit.
        oracle: trained without the targets; None: no such columns.
        other_seed: trained on everything with another seed; None: no distances in its unit.
        baseline: of the original, where results are kept.
    """

    original: HookedTransformer
    oracle: HookedTransformer | None = None
    other_seed: HookedTransformer | None = None
    baseline: mm.Baseline = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", mm.Baseline(self.original))


def measure(models: Models, edited: HookedTransformer, sets: Sets, settings: Any, seed: int) -> dict[str, Any]:
    """Costs on every set, the distance to the oracle, near-verbatim text, attacks, and what is left inside.

    Args:
        models: those to compare with.
        edited: the model of a row.
        sets: of the seed.
        settings: relearning steps and rates.
        seed: of perturbed prefixes and of the order of relearning.

    Returns:
        Name of a column -> value.
    """
    started = time.process_time()
    found = costs(models, edited, sets)
    found |= concentration(models.original, edited)
    text = mm.verbatim(edited, sets["targets"])
    found |= {f"targets {name}": float(values.mean()) for name, values in text.data_vars.items()}
    found |= attacks(edited, sets, settings, seed)
    found |= inside(models, edited, sets, seed)
    return found | {"measuring, CPU seconds": time.process_time() - started}


def costs(models: Models, edited: HookedTransformer, sets: Sets) -> dict[str, Any]:
    """What `mm.evaluate` says of every set but the one that is relearned from."""
    judged = {name: part for name, part in sets.items() if name != "relearned"}
    # The oracle has a row as well; an edit may have its weights, and a model cannot be compared with itself.
    edited = copy.deepcopy(edited) if edited in (models.oracle, models.other_seed) else edited
    result = mm.evaluate(
        models.original,
        edited,
        judged,
        oracle=models.oracle,
        oracle_scale=models.other_seed,
        baseline=models.baseline,
    )
    found: dict[str, Any] = {"weights": int(result.weights_changed)}
    for name in judged:
        one = result.sel(set=name)
        found |= {f"{name} {title}": float(one[key]) for key, title in PAIR.items()}
        for key, title in (EACH | SCALED).items():
            if key in one:
                found[f"{name} {title}"] = float(one[key].sel(model="after"))
    for key in ("forget_quality", "privacy_leakage"):
        if key in result:
            found[key.replace("_", " ")] = float(result[key].sel(model="after"))
    return found


def concentration(original: HookedTransformer, edited: HookedTransformer, share: float = 0.001) -> dict[str, float]:
    """Percent of the squared change of attention and MLP weights that lies in the few that moved furthest.

    What an edit of so few weights could carry at most of this one. Nothing where no weight moved.
    """
    ends = editable_parameters(edited)
    squared = torch.cat(
        [
            (ends[name] - value).detach().flatten().double().square()
            for name, value in editable_parameters(original).items()
        ]
    )
    whole = float(squared.sum())
    few = squared.topk(max(1, round(share * len(squared)))).values
    return {"squared change in its top 0.1 %": 100 * float(few.sum()) / whole} if whole else {}


def attacks(edited: HookedTransformer, sets: Sets, settings: Any, seed: int) -> dict[str, Any]:
    """How much of the targets comes back."""
    targets = sets["targets"]
    perturbed = mm.perturbed_prefix_attack(edited, targets, draws=8, seed=seed)
    sampled = mm.sampling_attack(edited, targets, draws=(100,), top_k=40)
    # The forward's own EM, as in relearning: `score` would settle near-ties that rounding to int8 makes anew.
    rounded = mm.verbatim(quantize(edited, "int8"), targets)
    training = mm.Training(settings.relearning, 1e-4, batch_size=8)
    other = mm.relearning_attack(edited, targets, sets["relearned"], training=training, every=10, seed=seed)
    half, own = 0.5 * targets.continuation_len, mm.Training(settings.own_steps, settings.own_rate)
    curve = train_and_watch(edited, targets, targets, own, 2, seed, until=half)
    back = first_step(curve.em, half)
    return {
        "perturbed prefix EM": float(perturbed.em_best.mean()),
        "extracted in 100 draws": float(sampled.probability.values.mean()),
        "int8 verbatim": float(rounded.verbatim_memorization.mean()),
        "relearning steps": int(other.attrs.get("steps_until", -1)),
        "relearned EM": float(other.em.mean("paragraph").max()),
        "own relearning steps": -1 if back is None else back,
    }


def inside(models: Models, edited: HookedTransformer, sets: Sets, seed: int) -> dict[str, Any]:
    """How alike the layers are, and what a probe still reads: means over layers."""
    found: dict[str, Any] = {}
    unread = sets.get("never seen", sets["other"])
    for name in ("targets", "other"):
        for beside, model in (("the original", models.original), ("the oracle", models.oracle)):
            if model is not None:
                alike = mm.layer_similarity(model, edited, sets[name])
                found[f"{name} CKA with {beside}"] = float(alike[1:].mean())
    folds = min(4, len(np.unique(unread.clusters)), len(np.unique(sets["targets"].clusters)))
    if folds < 2:
        return found
    # No oracle here: it has a row of its own.
    probed = mm.membership_probe(models.original, edited, sets["targets"], unread, folds=folds, seed=seed)
    after = probed.sel(model="after").isel(boundary=slice(1, None))
    for name in probed.data_vars:
        found[f"probe {name}"] = float(np.mean(after[name]))
    return found
