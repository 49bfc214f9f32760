"""The stage of a study that removes memories and measures the price."""

from __future__ import annotations

import shutil

import numpy as np
import torch
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import part_of
from mechmem.intervene.attack import attack
from mechmem.intervene.evaluate import cost_sets, evaluate
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.model.export import export
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters, reduce_by_component
from mechmem.study.folder import StudyFolder
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training

NAMES = {"targets": "targeted memorized", "memorized": "held-out memorized"}
# Updates of the attack by relearning.
RELEARNING = 30


def removal_stage(run: StudyFolder) -> None:
    """Unlearn targets through the top weights, random ones and all; -> attacks.nc, edited/, unlearn.nc.

    1. Memorized paragraphs are split by cluster: a target of each of some, held-out memorized from the others.
    2. The keep set and the `other` that is evaluated are halved by cluster as well.
    3. Three edits by the same recipe, which differ in the weights that may move; the dense one has a rate of its own.
    4. The edit of the top weights is attacked: is the text gone, or only hidden?
    """
    settings = run.settings
    sets, keep = evaluation_sets(run)
    targets = sets["targeted memorized"]
    gradients = weight_gradients(run.model, targets)
    top = Mask.top(gradients, fraction=settings.fraction)
    percent = f"{100 * settings.fraction:g} %"
    masks: dict[str, Mask | None] = {
        f"top {percent}": top,
        f"random {percent}": Mask.random_like(top, seed=settings.seed),
        "all weights": None,
    }
    rows = {"before": _costs(run.model, run.model, sets, settings.seed)}
    objectives: dict[str, np.ndarray] = {}
    attacked: dict[str, xr.Dataset] = {}
    for number, (name, mask) in enumerate(masks.items()):
        rate = settings.dense_learning_rate if mask is None else settings.learning_rate
        edited, history = unlearn(
            run.model,
            targets,
            keep,
            method="contrastive",
            mask=mask,
            training=Training(steps=settings.steps, learning_rate=rate),
            seed=settings.seed,
            stop=lambda row: row["memorized_nll"] >= settings.forgotten_nll,
            progress=part_of(run.progress, number, len(masks)),
        )
        rows[name] = _costs(run.model, edited, sets, settings.seed)
        objectives[name] = history.memorized_nll.values
        if mask is top and "held-out memorized" in sets:
            attacked[name] = attack(
                run.model,
                edited,
                targets,
                sets["held-out memorized"],
                near=sets.get("near-duplicates"),
                steps=RELEARNING,
                batch_size=8,
                seed=settings.seed,
            )
        if mask is top and run.model.cfg.original_architecture == "GPTNeoForCausalLM":
            _export(run, edited)
    result = xr.concat(list(rows.values()), dim=xr.DataArray(list(rows), dims="mask", name="mask"))
    result["memorized_nll"] = _ragged({"before": np.zeros(0)} | objectives)
    result["selected_share"] = selected_share(run.model, top)
    result.attrs |= {
        "weights_total": top.total,
        "weights_selected": top.count,
        "targets": len(targets),
        "keep": len(keep),
        "selection": "largest |gradient| of the targets' mean NLL; the KL term has no gradient at the original weights",
    }
    if attacked:
        axis = xr.DataArray(list(attacked), dims="mask", name="mask")
        run.save(xr.concat(list(attacked.values()), dim=axis, combine_attrs="drop_conflicts"), "attacks.nc")
    run.save(result, "unlearn.nc")


def evaluation_sets(run: StudyFolder) -> tuple[dict[str, Paragraphs], Paragraphs]:
    """The sets that an edit is judged on, by the report's names, and the keep set: see `cost_sets`.

    The keep set shares no cluster with any of them.
    """
    settings = run.settings
    sets, keep = cost_sets(run.paragraphs, targets=settings.targets, evaluated=settings.evaluated, seed=settings.seed)
    return {NAMES.get(name, name): paragraphs for name, paragraphs in sets.items()}, keep


def selected_share(model: HookedTransformer, mask: Mask) -> xr.DataArray:
    """Share of a mask's weights that sit in each component, [layer, component], summing to 1."""
    chosen: dict[str, torch.Tensor] = {}
    for name, parameter in editable_parameters(model).items():
        flat = torch.zeros(parameter.numel())
        flat[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1 / mask.count
        chosen[name] = flat.view(parameter.shape)
    return reduce_by_component(model, chosen, "sum").assign_attrs(units="share of the selected weights", higher="more")


def _costs(before: HookedTransformer, after: HookedTransformer, sets: dict[str, Paragraphs], seed: int) -> xr.Dataset:
    """Values of the model after an edit, by the names that the report knows."""
    costs = evaluate(before, after, sets, seed=seed).sel(model="after", drop=True)
    names = {"em": "em_mean", "nll": "nll_mean"}
    return costs.rename(names).drop_vars(["clusters", "em_change", "em_change_low", "em_change_high"])


def _ragged(rows: dict[str, np.ndarray]) -> xr.DataArray:
    """Series of unequal lengths as [mask, step], filled up with NaN."""
    longest = max(map(len, rows.values()))
    filled = np.full((len(rows), longest), np.nan)
    for row, values in zip(filled, rows.values(), strict=True):
        row[: len(values)] = values
    coords = {"mask": list(rows), "step": np.arange(longest)}
    return xr.DataArray(filled, coords, ("mask", "step"), attrs={"units": "nats per token, before the step's update"})


def _export(run: StudyFolder, edited: HookedTransformer) -> None:
    """Write the edited checkpoint, anew where a stage that was cut off left one."""
    folder = run.folder / "edited"
    if folder.exists():
        shutil.rmtree(folder)
    export(edited, folder)
