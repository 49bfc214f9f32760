"""The stage of a study that removes memories and measures the price."""

from __future__ import annotations

import shutil

import numpy as np
import torch
import xarray as xr

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import part_of
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import kl, score
from mechmem.measure.stats import cluster_bootstrap
from mechmem.model.export import export
from mechmem.model.load import HookedTransformer
from mechmem.model.masks import Mask
from mechmem.model.sites import editable_parameters, reduce_by_component
from mechmem.model.support import changed_weights
from mechmem.stages import Run


def removal_stage(run: Run) -> None:
    """Unlearn targets through the top weights, random ones and all; -> unlearn.nc, edited/.

    1. Memorized paragraphs are halved by cluster: targets come from one half, held-out memorized from the other.
    2. The keep set and the `other` that is evaluated are halved by cluster as well.
    3. Three edits by the same recipe, which differ in the weights that may move; the dense one has a rate of its own.
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
    rows = {"before": _evaluate(run.model, run.model, sets, settings.seed)}
    objectives: dict[str, np.ndarray] = {}
    for number, (name, mask) in enumerate(masks.items()):
        edited, history = unlearn(
            run.model,
            targets,
            keep,
            mask=mask,
            steps=settings.steps,
            seed=settings.seed,
            learning_rate=settings.dense_learning_rate if mask is None else settings.learning_rate,
            stop=lambda row: row["memorized_nll"] >= settings.forgotten_nll,
            progress=part_of(run.progress, number, len(masks)),
        )
        rows[name] = _evaluate(run.model, edited, sets, settings.seed)
        objectives[name] = history.memorized_nll.values
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
    run.save(result, "unlearn.nc")


def evaluation_sets(run: Run) -> tuple[dict[str, Paragraphs], Paragraphs]:
    """The sets that an edit is judged on, and the keep set, which is not among them and shares no cluster with them.

    `other` paragraphs of clusters that hold a memorized one are left out: they are near-duplicates of what is to go.
    """
    seed, count = run.settings.seed, run.settings.evaluated
    memorized, other = run.subset("memorized"), run.subset("other")
    targeted, held_out = memorized.split_by_cluster(0.5, seed=seed)
    other = other.select(~np.isin(other.column("cluster"), memorized.column("cluster")))
    known = other.table.column_names if other.table is not None else []
    unseen = other.column("seen") != "trained" if "seen" in known else np.zeros(len(other), dtype=bool)
    keep, evaluated = other.select(~unseen).split_by_cluster(0.5, seed=seed)
    sets = {
        "targeted memorized": _sample(targeted, run.settings.targets, seed),
        "held-out memorized": _sample(held_out, count, seed),
        "other": _sample(evaluated, count, seed),
    }
    if unseen.any():
        sets["never seen"] = _sample(other.select(unseen), count, seed)
    return {name: paragraphs for name, paragraphs in sets.items() if len(paragraphs)}, _sample(keep, count, seed)


def selected_share(model: HookedTransformer, mask: Mask) -> xr.DataArray:
    """Share of a mask's weights that sit in each component, [layer, component], summing to 1."""
    chosen: dict[str, torch.Tensor] = {}
    for name, parameter in editable_parameters(model).items():
        flat = torch.zeros(parameter.numel())
        flat[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1 / mask.count
        chosen[name] = flat.view(parameter.shape)
    return reduce_by_component(model, chosen, "sum").assign_attrs(units="share of the selected weights", higher="more")


def _evaluate(
    before: HookedTransformer, after: HookedTransformer, sets: dict[str, Paragraphs], seed: int
) -> xr.Dataset:
    columns: dict[str, list[float]] = {}
    for paragraphs in sets.values():
        scores = score(after, paragraphs)
        low, high = cluster_bootstrap(scores.em.values.astype(float), paragraphs.column("cluster"), seed=seed)
        values = {
            "em_mean": float(scores.em.mean()),
            "em_low": low,
            "em_high": high,
            "exact_fraction": float((scores.em == paragraphs.continuation_len).mean()),
            "nll_mean": float(scores.nll.mean()),
            "kl": 0.0 if before is after else float(kl(before, after, paragraphs).mean()),
            "paragraphs": float(len(paragraphs)),
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    units = {"em_mean": "tokens", "em_low": "tokens", "em_high": "tokens", "nll_mean": "nats per token"}
    units["kl"] = "nats per token, from the original model"
    data = {name: ("set", np.array(values), {"units": units.get(name, "1")}) for name, values in columns.items()}
    result = xr.Dataset(data, coords={"set": list(sets)})
    return result.assign(weights_changed=changed_weights(before, after))


def _ragged(rows: dict[str, np.ndarray]) -> xr.DataArray:
    """Series of unequal lengths as [mask, step], filled up with NaN."""
    longest = max(map(len, rows.values()))
    filled = np.full((len(rows), longest), np.nan)
    for row, values in zip(filled, rows.values(), strict=True):
        row[: len(values)] = values
    coords = {"mask": list(rows), "step": np.arange(longest)}
    return xr.DataArray(filled, coords, ("mask", "step"), attrs={"units": "nats per token, before the step's update"})


def _sample(paragraphs: Paragraphs, count: int, seed: int) -> Paragraphs:
    if len(paragraphs) <= count:
        return paragraphs
    return paragraphs.select(np.sort(np.random.default_rng(seed).choice(len(paragraphs), count, replace=False)))


def _export(run: Run, edited: HookedTransformer) -> None:
    """Write the edited checkpoint, anew where a stage that was cut off left one."""
    folder = run.folder / "edited"
    if folder.exists():
        shutil.rmtree(folder)
    export(edited, folder)
