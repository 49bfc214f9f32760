"""Edits of a study's model, once made: evaluated, attacked and exported."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.netcdf import save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.intervene.attack import AttackSizes, attack
from mechmem.intervene.card import edit_card
from mechmem.intervene.evaluate import evaluate
from mechmem.intervene.oracle_check import check_oracle
from mechmem.model.export import check_exportable, check_target, export
from mechmem.model.load import HookedTransformer
from mechmem.study.edit_making import edit_folder
from mechmem.study.folder import StudyFolder
from mechmem.study.saved_edit import SavedEdit
from mechmem.study.sets import HELD_OUT, NEAR, TARGETS, evaluation_sets


def evaluate_edit(
    study: StudyFolder,
    name: str,
    *,
    oracle: HookedTransformer | None = None,
    oracle_scale: HookedTransformer | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Measure what an edit cost on every set; writes costs.nc beside it.

    Args:
        study: that the edit belongs to.
        name: of the edit.
        oracle: a model that never read the targets, and
        oracle_scale: one of another seed, as in `evaluate`; None: those of the study's settings.
        progress: called with (paragraphs done, paragraphs).

    Raises:
        InputError: there is no such edit, or it is of other weights, or a model that is no oracle of the study's.
    """
    saved = saved_edit(study, name)
    if oracle is None and oracle_scale is None:
        oracle, oracle_scale = study.beside
    check_oracle(study.model, study.model, oracle, oracle_scale)
    with study.writing(f"edits/{name}/costs.nc"):
        return _evaluated(study, saved, progress, oracle, oracle_scale)


def _evaluated(
    study: StudyFolder,
    saved: SavedEdit,
    progress: ProgressLike,
    oracle: HookedTransformer | None = None,
    oracle_scale: HookedTransformer | None = None,
) -> xr.Dataset:
    sets, _ = evaluation_sets(study)
    own = {TARGETS: saved.targets} | {label: chosen for label, chosen in sets.items() if label != TARGETS}
    costs = evaluate(
        study.model,
        saved.apply(study.model),
        own,
        oracle=oracle,
        oracle_scale=oracle_scale,
        baseline=study.baseline,
        progress=as_callback(progress, "evaluate_edit"),
    )
    save_netcdf(costs, saved.folder / "costs.nc")
    return costs


def attack_edit(study: StudyFolder, name: str, *, progress: ProgressLike = None) -> xr.Dataset:
    """Try to get back what an edit removed; writes attacks.nc beside it.

    Raises:
        InputError: no such edit, one that removed nothing on purpose, or a study without other memorized paragraphs.
    """
    saved = saved_edit(study, name)
    sets, _ = evaluation_sets(study)
    if saved.settings["kind"] == "memorize":
        raise InputError(f"{name}: is an edit that added paragraphs; attacks need one that removed or rewrote some")
    if HELD_OUT not in sets:
        raise InputError(f"{study.folder}: all memorized paragraphs are targets; attacks need others: scan more text")
    with study.writing(f"edits/{name}/attacks.nc"):
        return _attacked(study, saved, sets, progress)


def _attacked(study: StudyFolder, saved: SavedEdit, sets: dict[str, Paragraphs], progress: ProgressLike) -> xr.Dataset:
    settings = study.settings
    found = attack(
        study.model,
        saved.apply(study.model),
        saved.targets,
        sets[HELD_OUT],
        near=sets.get(NEAR),
        sizes=AttackSizes(
            draws=settings.attack_prefixes, samples=settings.attack_samples, steps=settings.relearning_steps
        ),
        baseline=study.baseline,
        seed=saved.settings["seed"],
        progress=as_callback(progress, "attack_edit"),
    )
    save_netcdf(found, saved.folder / "attacks.nc")
    return found


def export_edit(study: StudyFolder, name: str, out: str | Path) -> None:
    """Write the edited model as a Hugging Face folder, with a card that says what was done and what it cost.

    Raises:
        InputError: no such edit, a folder with files in it, or a model that `export` refuses.
    """
    check_target(out)  # loading the model takes seconds
    saved = saved_edit(study, name)
    check_exportable(study.model, out)
    edited = saved.apply(study.model)
    card = edit_card(
        study.model, edited, saved.targets, settings=saved.settings, history=saved.history, costs=saved.costs
    )
    export(edited, out, card=card)


def can_attack(study: StudyFolder, saved: SavedEdit) -> bool:
    """Whether there is something to get back, and other memorized paragraphs for it."""
    return saved.settings["kind"] != "memorize" and HELD_OUT in evaluation_sets(study)[0]


def outcome(kind: str, history: xr.Dataset) -> str:
    """A sentence on whether an edit did what it was made for, by at least a token of mean EM."""
    name = "memorized_em" if kind == "unlearn" else "target_em"
    before, after = float(history[name][0]), float(history.attrs[f"final_{name}"])
    what = {"unlearn": "the targets", "edit": "the new text", "memorize": "the paragraphs"}[kind]
    moved = f"the mean EM of {what} went from {before:.1f} to {after:.1f} tokens in {history.sizes['step']} steps"
    if (before - after if kind == "unlearn" else after - before) >= 1:
        return moved
    return f"the edit {'removed' if kind == 'unlearn' else 'taught'} nothing: {moved}"


def saved_edit(study: StudyFolder, name: str) -> SavedEdit:
    """A finished edit by name.

    Raises:
        InputError: there is none; the sentence names those that there are.
    """
    folder, known = edit_folder(study, name), study.edits
    if name not in known:
        raise InputError(
            f"{folder}: holds no finished edit; need one of {', '.join(known) or 'none yet'}: make one with `mechmem "
            "unlearn --name NAME`, `mechmem edit` or `mechmem memorize`"
        )
    return known[name]
