"""The stages of a study that remove memories, measure the cost, and try to get them back."""

from __future__ import annotations

import shutil

import numpy as np
import torch
import xarray as xr

from mechmem.data.progress import Progress
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters, reduce_by_component
from mechmem.study.edit_making import make_edit
from mechmem.study.edit_settings import EditSettings
from mechmem.study.edits import attack_edit, evaluate_edit, export_edit
from mechmem.study.folder import StudyFolder
from mechmem.study.saved_edit import SavedEdit
from mechmem.study.sets import TARGETS
from mechmem.study.settings import PlannedEdit
from mechmem.weights.masks import Mask

ORIGINAL = "original"
# The row of `evaluate` for the model that never read the targets, and what is kept of it.
ORACLE = "oracle"
OF_ORACLE = ("em", "em_low", "em_high", "nll", "p_extractable")


def unlearn_stage(study: StudyFolder) -> str:
    """Make the planned edits and evaluate each; -> edits/, edited/, unlearn.nc.

    1. Memorized paragraphs are split by cluster: a target of each of some, held-out memorized from the others.
    2. The keep set and the `other` that is evaluated are halved by cluster as well.
    3. The edits have the same targets, keep set and stopping rule; they differ in method and in which weights may
       change. An edit that is in its folder already is not made again.
    4. The first is exported.
    """
    planned = study.settings.planned_edits()
    titles = [edit.title(study.settings.fraction) for edit in planned]
    steps, evaluating = 3.0 * 32 * min(study.settings.steps, 40), 15.0 * study.settings.evaluated
    parts = study.parts(
        {f"{do} {title}": work for title in titles for do, work in (("making", steps), ("evaluating", evaluating))}
    )
    for edit, title in zip(planned, titles, strict=True):
        _make(study, edit, parts[f"making {title}"])
        if study.edits[edit.name].costs is None:
            evaluate_edit(study, edit.name, progress=parts[f"evaluating {title}"])
    edits = {title: study.edits[edit.name] for edit, title in zip(planned, titles, strict=True)}
    shutil.rmtree(study.folder / "edited", ignore_errors=True)
    export_edit(study, planned[0].name, study.folder / "edited")
    result = removal_results(study.model, edits)
    study.save(result, "unlearn.nc")
    before, after = (float(result.em.sel(set=TARGETS, edit=name)) for name in (ORIGINAL, titles[0]))
    return f"{titles[0]}: mean EM of {result.attrs['targets']} targets from {before:.1f} to {after:.1f} tokens"


def attack_stage(study: StudyFolder) -> str:
    """Try to get the targets back after each edit but the controls of random weights; -> attacks.nc."""
    settings = study.settings
    planned = [edit for edit in settings.planned_edits() if edit.weights != "random"] or settings.planned_edits()[:1]
    titles = [edit.title(settings.fraction) for edit in planned]
    parts = study.parts({f"attacking {title}": 1 for title in titles})
    rows: list[xr.Dataset] = []
    for edit, title in zip(planned, titles, strict=True):
        known = study.edits[edit.name].attacks
        progress = parts[f"attacking {title}"]
        rows.append(attack_edit(study, edit.name, progress=progress) if known is None else known)
    axis = xr.DataArray(titles, dims="edit", name="edit")
    # The same study gives the same file, however long it took.
    attacks = xr.concat(
        [row.drop_vars("seconds", errors="ignore") for row in rows], axis, combine_attrs="drop_conflicts"
    )
    study.save(attacks, "attacks.nc")
    # The original's last layers hold the text themselves: what they recover was not left in the edited model.
    after = attacks.em_after.isel(edit=0).where(attacks.attack != "late layers", drop=True)
    best = str(after.attack.values[int(after.values.argmax())])
    return f"{titles[0]}: the strongest attack ({best}) gets {float(after.max()):.1f} tokens of EM back"


def _make(study: StudyFolder, edit: PlannedEdit, progress: Progress) -> None:
    if edit.name in study.edits:
        return
    settings = study.settings
    wanted = EditSettings(
        method=edit.method,
        weights=edit.weights,
        learning_rate=edit.learning_rate,
        fraction=settings.fraction,
        steps=settings.steps,
        seed=settings.seed,
        target_em=settings.target_em,
    )
    make_edit(study, edit.name, wanted, progress=progress)


def removal_results(model: HookedTransformer, edits: dict[str, SavedEdit]) -> xr.Dataset:
    """What every edit did: the costs [edit, set] after each, the original first; NLL of the targets at each step.

    With an oracle, also its distances, and its own EM, NLL and p-extractable as `em_of_oracle` and so on, [set].
    """
    costs = {title: edit.costs for title, edit in edits.items()}
    first = next(found for found in costs.values() if found is not None)
    of_models = ("oracle_scale", "oracle_scale_low", "oracle_scale_high")
    of_pair = [name for name, values in first.data_vars.items() if "model" not in values.dims and name not in of_models]
    unchanged = first.sel(model=first.model[0], drop=True).map(
        lambda values: xr.zeros_like(values) if values.name in of_pair else values, keep_attrs=True
    )
    rows = [unchanged.assign({name: first[name] for name in ("paragraphs", "clusters")})]
    rows += [found.sel(model=found.model[1], drop=True) for found in costs.values() if found is not None]
    axis = xr.DataArray([ORIGINAL, *edits], dims="edit", name="edit")
    result = xr.concat(rows, dim=axis, combine_attrs="drop_conflicts")
    if ORACLE in first.model.values:
        own = first.sel(model=ORACLE, drop=True)
        result = result.assign({f"{name}_of_oracle": own[name] for name in OF_ORACLE})
    histories = {title: edit.history for title, edit in edits.items()}
    result["nll_history"] = _ragged({title: found.memorized_nll.values for title, found in histories.items()})
    result["ended"] = ("edit", np.array(["", *(str(found.attrs["ended"]) for found in histories.values())], object))
    rates = [np.nan, *(float(found.attrs.get("learning_rate", np.nan)) for found in histories.values())]
    result["learning_rate"] = ("edit", rates, {"units": "1"})
    mask = next((edit.mask for edit in edits.values() if edit.settings["weights"] == "top"), None)
    if mask is not None:
        result["selected_share"] = selected_share(model, mask)
        result.attrs |= {"weights_selected": mask.count}
    total = sum(parameter.numel() for parameter in editable_parameters(model).values())
    result.attrs |= {"weights_total": total, "targets": len(next(iter(edits.values())).targets)}
    return result


def selected_share(model: HookedTransformer, mask: Mask) -> xr.DataArray:
    """Share of a mask's weights that are in each component, [layer, component], summing to 1."""
    chosen: dict[str, torch.Tensor] = {}
    for name, parameter in editable_parameters(model).items():
        flat = torch.zeros(parameter.numel())
        flat[mask.indices.get(name, torch.zeros(0, dtype=torch.long))] = 1 / mask.count
        chosen[name] = flat.view(parameter.shape)
    return reduce_by_component(model, chosen, "sum").assign_attrs(units="share of the selected weights", higher="more")


def _ragged(rows: dict[str, np.ndarray]) -> xr.DataArray:
    """Series of unequal lengths as [edit, step], filled up with NaN; the original has none."""
    longest = max(map(len, rows.values()))
    filled = np.full((len(rows) + 1, longest), np.nan)
    for row, values in zip(filled[1:], rows.values(), strict=True):
        row[: len(values)] = values
    coords = {"edit": [ORIGINAL, *rows], "step": np.arange(longest)}
    return xr.DataArray(filled, coords, ("edit", "step"), attrs={"units": "nats per token, before the step's update"})
